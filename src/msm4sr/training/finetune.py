"""Fine-tuning: the next item by softmax over the whole catalogue (equations 12 and 13). Baselines too; those that
propagate over the user-item graph learn by BPR in its place (`msm4sr.training.bpr`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from msm4sr.data.batches import Batch
from msm4sr.data.dataset import Dataset
from msm4sr.errors import InputError
from msm4sr.models.base import FactorizedModel, FactorizedScorer
from msm4sr.models.graph_model import GraphModel
from msm4sr.models.layers import take
from msm4sr.objectives import (
    SeenItems,
    bayesian_personalised_ranking,
    next_item_cross_entropy,
    sampled_binary_cross_entropy,
)
from msm4sr.ragged import Ragged
from msm4sr.training.bpr import BPRTask
from msm4sr.training.negatives import absent_items
from msm4sr.training.stage import StageOptions, Task, train_stage
from msm4sr.training.trainer import EpochRecord, StageSettings

SAMPLE_OVER = 100_000  # items; below, all of them cost less than what a sample loses


class FinetuneSettings(StageSettings):
    """The second stage; defaults are the paper's."""

    candidates: Literal["auto", "all", "sampled"] = Field(
        "auto",
        description="items of the softmax: all of the catalogue, or a sample; auto: a sample over 100,000 items",
    )
    samples: int = Field(8192, ge=1, description="items drawn for a step, where they are sampled")
    logit_adjustment: float = Field(
        0.0,
        ge=0,
        description="training adds so many times the log of an item's share of the interactions to its score; ranking "
        "does not, and recommends what is less popular",
    )

    def samples_of(self, n_items: int) -> int | None:
        """How many items to draw of a catalogue of `n_items`; None: all are candidates."""
        sampled = self.candidates == "sampled" or (self.candidates == "auto" and n_items > SAMPLE_OVER)
        return min(self.samples, n_items) if sampled else None


SAMPLED = {"bce": sampled_binary_cross_entropy, "bpr": bayesian_personalised_ranking}


def finetune_loss(
    model: FactorizedScorer, batch: Batch, generator: torch.Generator | None = None, prior: Tensor | None = None
) -> Tensor:
    """The model's loss of the batch's next items, and what it adds; the catalogue is encoded once.

    By default the mean negative log-likelihood, of scores to which `prior` [N] is added. `generator` draws the items
    which `bce` and `bpr` compare with.
    """
    catalogue, targets = model.encode_items(), batch.targets[batch.mask]
    prefixes = model.encode_histories(batch.items, catalogue)[batch.mask]  # [P, Q]
    keys = model.scoring_vectors(catalogue)
    if model.loss == "softmax":
        loss = next_item_cross_entropy(*_adjusted(prefixes, keys, prior), targets, seen=_seen(model, batch))
    else:
        other = absent_items(batch, len(keys), generator)[batch.mask]
        scores = [(prefixes * take(keys, items)).sum(dim=1) for items in (targets, other)]
        loss = SAMPLED[model.loss](*scores)
    return _with_added(loss, model, prefixes, targets, take(catalogue, targets))


def sampled_finetune_loss(
    model: FactorizedScorer, batch: Batch, sample: Tensor, n_items: int, prior: Tensor | None = None
) -> Tensor:
    """`finetune_loss` with the denominator estimated from a uniform sample [S] of distinct items.

    Only those items, the histories' and the next items are encoded. With S = `n_items` it is the full loss.
    """
    items = batch.targets[batch.mask]
    everything, place = torch.unique(torch.cat([sample, items, batch.items.flatten()]), return_inverse=True)
    drawn, target, histories = place.split([len(sample), len(items), batch.items.numel()])
    log_weights = sample.new_full((len(everything),), -torch.inf, dtype=torch.float32)
    log_weights[drawn] = math.log(n_items / len(sample))
    catalogue = model.encode_some_items(everything)
    prefixes = model.encode_histories(histories.view_as(batch.items), catalogue)[batch.mask]
    keys, own_prior = model.scoring_vectors(catalogue), None if prior is None else prior[everything]
    seen = _seen(model, replace(batch, items=histories.view_as(batch.items)))
    loss = next_item_cross_entropy(*_adjusted(prefixes, keys, own_prior), target, log_weights, seen)
    return _with_added(loss, model, prefixes, items, take(catalogue, target))


def log_shares(histories: Ragged, n_items: int) -> Tensor:
    """The log of each item's share of the interactions, float32 [N]; each counts once more, so that none has none."""
    counts = torch.from_numpy(np.bincount(histories.values, minlength=n_items) + 1)
    return (counts / counts.sum()).log().float()


def _adjusted(prefixes: Tensor, keys: Tensor, prior: Tensor | None) -> tuple[Tensor, Tensor]:
    """Prefixes [P, Q] and keys [N, Q] whose product has `prior` [N] in it: the logit-adjusted softmax.

    Reference: Menon et al. 2021, arXiv 2007.07314, equation 10.
    """
    if prior is None:
        return prefixes, keys
    return F.pad(prefixes, (0, 1), value=1.0), torch.cat([keys, prior.to(keys.dtype).unsqueeze(1)], dim=1)


def _seen(model: FactorizedScorer, batch: Batch) -> SeenItems | None:
    """What the prefix of each pair holds, where the model learns something of that."""
    if model.seen_bias is None:
        return None
    row, last = batch.mask.nonzero(as_tuple=True)  # [P] each
    slot = torch.arange(batch.items.shape[1], device=row.device)
    again = (batch.items.unsqueeze(2) == batch.items.unsqueeze(1)).tril(-1).any(dim=2)  # [B, L]: was there before
    return SeenItems(batch.items[row], (slot <= last.unsqueeze(1)) & ~again[row], model.seen_bias)


def _with_added(loss: Tensor, model: FactorizedScorer, prefixes: Tensor, items: Tensor, next_items: Tensor) -> Tensor:
    added = model.auxiliary_loss(prefixes, items, next_items)
    return loss if added is None else loss + added


class FinetuneTask(Task):
    """`finetune_loss`, or over a sample of the items `sampled_finetune_loss`, as a task."""

    model: FactorizedModel
    prior: Tensor | None

    def __init__(self, model: FactorizedModel, settings: FinetuneSettings) -> None:
        super().__init__(model)
        self.n_items = model.n_items
        self.samples = settings.samples_of(model.n_items)
        self.logit_adjustment = settings.logit_adjustment
        self.register_buffer("prior", None)
        of_softmax = {
            "finetune.logit_adjustment": bool(self.logit_adjustment),
            "model.seen_item_bias": model.seen_bias is not None,
        }
        for name, on in of_softmax.items():
            if on and model.loss != "softmax":
                raise InputError(f"{name} is for a softmax, and this model learns by {model.loss}: leave it off")

    def start(self, histories: Ragged) -> None:
        if self.logit_adjustment:
            self.prior = self.logit_adjustment * log_shares(histories, self.n_items)

    def forward(self, batch: Batch, generator: torch.Generator) -> Tensor:
        if self.samples is None or self.model.loss != "softmax":
            return finetune_loss(self.model, batch, generator, self.prior)
        sample = torch.randperm(self.n_items, generator=generator, device=batch.items.device)[: self.samples]
        return sampled_finetune_loss(self.model, batch, sample, self.n_items, self.prior)


def finetune(
    model: FactorizedModel,
    dataset: Dataset,
    settings: FinetuneSettings = FinetuneSettings(),
    **options: Unpack[StageOptions],
) -> list[EpochRecord]:
    """Train a sequence or a graph model on the training parts of the histories; the best epoch's weights remain.

    See `train_stage` for the options.
    """
    task = BPRTask(model, settings) if isinstance(model, GraphModel) else FinetuneTask(model, settings)
    return train_stage("finetune", task, dataset, settings, **options)
