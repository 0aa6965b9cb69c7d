"""Fine-tuning: the next item by softmax over the whole catalogue (equations 12 and 13). Baselines too."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from msm4sr.data.batches import Batch, count_batches, epoch_batches
from msm4sr.data.dataset import Dataset, training_histories
from msm4sr.evaluation.evaluate import EvaluationSettings, evaluate
from msm4sr.models.base import Scorer
from msm4sr.objectives import next_item_cross_entropy
from msm4sr.training.loop import Device, EpochRecord, Monitor, Silent, StageSettings, fit


class FinetuneSettings(StageSettings):
    """The second stage; defaults are the paper's."""


def finetune_loss(model: Scorer, batch: Batch) -> Tensor:
    """Mean negative log-likelihood of the batch's next items; the catalogue is encoded once."""
    catalogue = model.encode_items()
    prefixes = model.encode_histories(batch.items, catalogue)[batch.mask]  # [P, Q]
    return next_item_cross_entropy(prefixes, model.scoring_vectors(catalogue), batch.targets[batch.mask])


class FinetuneTask(nn.Module):
    """The loss of a batch as a module, which is what Lightning Fabric wraps."""

    def __init__(self, model: Scorer) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return finetune_loss(self.model, batch)


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
        FinetuneTask(model),
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
