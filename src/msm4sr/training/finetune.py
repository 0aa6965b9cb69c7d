"""Fine-tuning: the next item by softmax over the whole catalogue (equations 12 and 13). Baselines too; those that
propagate over the user-item graph learn by BPR in its place (`msm4sr.training.bpr`).
"""

from __future__ import annotations

import math
from typing import Literal, Unpack

import torch
from pydantic import Field
from torch import Tensor

from msm4sr.data.batches import Batch
from msm4sr.data.dataset import Dataset
from msm4sr.models.base import Model, Scorer
from msm4sr.models.graph import GraphModel
from msm4sr.objectives import next_item_cross_entropy
from msm4sr.training.bpr import BPRTask
from msm4sr.training.loop import EpochRecord, StageSettings
from msm4sr.training.stage import StageOptions, Task, train_stage

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


class FinetuneTask(Task):
    """`finetune_loss`, or over a sample of the items `sampled_finetune_loss`, as a task."""

    def __init__(self, model: Model, settings: FinetuneSettings) -> None:
        super().__init__(model)
        self.n_items = model.n_items
        self.samples = settings.samples_of(model.n_items)

    def forward(self, batch: Batch, generator: torch.Generator) -> Tensor:
        if self.samples is None:
            return finetune_loss(self.model, batch)
        sample = torch.randperm(self.n_items, generator=generator, device=batch.items.device)[: self.samples]
        return sampled_finetune_loss(self.model, batch, sample, self.n_items)


def finetune(
    model: Model, dataset: Dataset, settings: FinetuneSettings = FinetuneSettings(), **options: Unpack[StageOptions]
) -> list[EpochRecord]:
    """Train a sequence or a graph model on the training parts of the histories; the best epoch's weights remain.

    See `train_stage` for the options.
    """
    task = BPRTask(model, settings) if isinstance(model, GraphModel) else FinetuneTask(model, settings)
    return train_stage("finetune", task, dataset, settings, **options)
