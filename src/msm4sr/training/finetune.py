"""Fine-tuning: the next item by softmax over the whole catalogue (equations 12 and 13). Baselines too."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from msm4sr.data.batches import Batch, count_batches, epoch_batches
from msm4sr.data.dataset import Dataset, training_histories
from msm4sr.evaluation.evaluate import EvaluationSettings, evaluate
from msm4sr.models.base import Scorer
from msm4sr.objectives import next_item_cross_entropy
from msm4sr.training.loop import Device, EpochRecord, Monitor, Silent, StageSettings, fit

SAMPLE_OVER = 100_000  # items; below, all of them cost less than what a sample loses


class FinetuneSettings(StageSettings):
    """The second stage; defaults are the paper's."""

    candidates: Literal["auto", "all", "sampled"] = Field(
        "auto",
        description="items of the softmax: all of the catalogue, or a sample; auto: a sample over 100,000 items",
    )
    samples: int = Field(8192, ge=1, description="items drawn for a step, where they are sampled")

    def samples_of(self, n_items: int) -> int | None:
        """How many items to draw of a catalogue of `n_items`; None: all are candidates."""
        sampled = self.candidates == "sampled" or (self.candidates == "auto" and n_items > SAMPLE_OVER)
        return min(self.samples, n_items) if sampled else None


def finetune_loss(model: Scorer, batch: Batch) -> Tensor:
    """Mean negative log-likelihood of the batch's next items; the catalogue is encoded once."""
    catalogue = model.encode_items()
    prefixes = model.encode_histories(batch.items, catalogue)[batch.mask]  # [P, Q]
    return next_item_cross_entropy(prefixes, model.scoring_vectors(catalogue), batch.targets[batch.mask])


def sampled_finetune_loss(model: Scorer, batch: Batch, sample: Tensor, n_items: int) -> Tensor:
    """`finetune_loss` with the denominator estimated from a uniform sample [S] of distinct items.

    Only those items, the histories' and the next items are encoded. With S = `n_items` it is the full loss.
    """
    target = batch.targets[batch.mask]
    everything, place = torch.unique(torch.cat([sample, target, batch.items.flatten()]), return_inverse=True)
    drawn, target, histories = place.split([len(sample), len(target), batch.items.numel()])
    log_weights = sample.new_full((len(everything),), -torch.inf, dtype=torch.float32)
    log_weights[drawn] = math.log(n_items / len(sample))
    catalogue = model.encode_some_items(everything)
    prefixes = model.encode_histories(histories.view_as(batch.items), catalogue)[batch.mask]
    return next_item_cross_entropy(prefixes, model.scoring_vectors(catalogue), target, log_weights)


class FinetuneTask(nn.Module):
    """The loss of a batch as a module, which is what Lightning Fabric wraps."""

    def __init__(self, model: Scorer, n_items: int, samples: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.n_items = n_items
        self.samples = samples

    def forward(self, batch: Batch, generator: torch.Generator) -> Tensor:
        if self.samples is None:
            return finetune_loss(self.model, batch)
        sample = torch.randperm(self.n_items, generator=generator, device=batch.items.device)[: self.samples]
        return sampled_finetune_loss(self.model, batch, sample, self.n_items)


def finetune(
    model: Scorer,
    dataset: Dataset,
    settings: FinetuneSettings = FinetuneSettings(),
    *,
    seed: int = 0,
    evaluation: EvaluationSettings = EvaluationSettings(),
    device: Device = Device(),
    monitor: Monitor = Silent(),
    on_best: Callable[[dict[str, Tensor], EpochRecord], object] = lambda weights, record: None,
) -> list[EpochRecord]:
    """Train a sequence model on the training parts of the histories; the best epoch's weights remain.

    See `fit` for the arguments and what is raised.
    """
    histories = training_histories(dataset)

    def batches(epoch: int) -> Iterator[Batch]:
        return epoch_batches(
            histories,
            max_history=model.max_history,
            batch_pairs=settings.batch_pairs,
            pairs=settings.pairs,
            rng=np.random.default_rng([seed, epoch]),
        )

    return fit(
        FinetuneTask(model, dataset.n_items, settings.samples_of(dataset.n_items)),
        model,
        stage="finetune",
        settings=settings,
        batches=batches,
        steps_per_epoch=count_batches(histories, settings.batch_pairs),
        validate=lambda: evaluate(model, dataset, "validation", evaluation),
        seed=seed,
        device=device,
        monitor=monitor,
        on_best=on_best,
    )
