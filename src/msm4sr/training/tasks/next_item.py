"""Next-item prediction, the fine-tuning of sequence models: softmax over the catalogue (equations 12 and 13)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from msm4sr.data.batches import Batch
from msm4sr.errors import InputError
from msm4sr.models.base import FactorizedModel, FactorizedScorer
from msm4sr.models.layers import take
from msm4sr.objectives import (
    SeenItems,
    bayesian_personalised_ranking,
    next_item_cross_entropy,
    sampled_binary_cross_entropy,
)
from msm4sr.ragged import Ragged
from msm4sr.training.negatives import ItemSampler, absent_items
from msm4sr.training.settings import FinetuneSettings, StageSettings
from msm4sr.training.task import TASKS, Task, TrainingBatch

PAIRWISE = {"bce": sampled_binary_cross_entropy, "bpr": bayesian_personalised_ranking}


def finetune_loss(model: FactorizedScorer, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
    """The loss of the batch's next items, and the model's auxiliary loss; the catalogue is encoded once.

    By default the mean negative log-likelihood of equation 13. A model with `loss` "bce" or "bpr" compares each next
    item with one absent item, which `generator` draws.
    """
    embeddings, targets = model.encode_items(), batch.targets[batch.mask]
    prefixes = model.encode_histories(batch.items, embeddings)[batch.mask]  # [P, Q]
    item_vectors = model.scoring_vectors(embeddings)  # [N, Q]
    if model.loss == "softmax":
        loss = next_item_cross_entropy(prefixes, item_vectors, targets, seen=_seen_items(model, batch))
    else:
        absent = absent_items(batch, len(item_vectors), generator)[batch.mask]
        scores = [(prefixes * take(item_vectors, items)).sum(dim=1) for items in (targets, absent)]
        loss = PAIRWISE[model.loss](*scores)
    return _with_auxiliary(loss, model, prefixes, targets, take(embeddings, targets))


def sampled_finetune_loss(model: FactorizedScorer, batch: Batch, sample: Tensor, probabilities: Tensor) -> Tensor:
    """`finetune_loss` over some candidates: only they are encoded, so that the cost is independent of the catalogue.

    The items of the batch are encoded for its histories and next items anyway, and count as in the full softmax. The
    rest of the catalogue is estimated from the draws of `sample` that fall on it: a stratified sample, by which the
    denominator is unbiased, and exact for the items of the batch, which tend to be popular.

    Args:
        model: one with `loss` "softmax".
        batch: histories and next items.
        sample: int64 [S], independent draws from the catalogue, by any distribution.
        probabilities: [N], that of each item in a draw; they sum to 1.

    Reference: the log-q correction of Yi et al. 2019 (RecSys), for the part that is drawn.
    """
    items = batch.targets[batch.mask]
    own = torch.cat([items, batch.items.flatten()])
    needed, place = torch.unique(torch.cat([own, sample]), return_inverse=True)  # [C], C candidates
    target, histories, drawn = place.split([len(items), batch.items.numel(), len(sample)])
    log_weights = stratified_log_weights(place[: len(own)], drawn, probabilities[needed])
    renumbered = replace(batch, items=histories.view_as(batch.items))
    embeddings = model.encode_some_items(needed)
    prefixes = model.encode_histories(renumbered.items, embeddings)[batch.mask]
    item_vectors = model.scoring_vectors(embeddings)
    seen = _seen_items(model, renumbered)
    loss = next_item_cross_entropy(prefixes, item_vectors, target, log_weights, seen)
    return _with_auxiliary(loss, model, prefixes, items, take(embeddings, target))


def stratified_log_weights(own: Tensor, drawn: Tensor, probabilities: Tensor) -> Tensor:
    """The logarithm of how many items of the catalogue each of C candidates represents: [C].

    Args:
        own: int64, the candidates that are items of the batch: each represents itself.
        drawn: int64 [S], the candidate of each draw. The draws outside of the batch represent the rest of the
            catalogue, each by the inverse of its probability among them.
        probabilities: [C], of each candidate in a draw.
    """
    is_own = torch.zeros(len(probabilities), dtype=torch.bool, device=own.device).index_fill_(0, own, True)
    draws = torch.bincount(drawn, minlength=len(is_own)).masked_fill(is_own, 0).float()
    rest = 1 - (probabilities * is_own).sum()  # the probability of a draw outside of the batch
    expected = draws.sum().clamp(min=1) * probabilities / rest
    return torch.where(is_own, 0, (draws / expected).log())


def _seen_items(model: FactorizedScorer, batch: Batch) -> SeenItems | None:
    """The items of each pair's prefix, for a model with a seen-item bias."""
    if model.seen_bias is None:
        return None
    row, last = batch.mask.nonzero(as_tuple=True)  # [P] each
    slot = torch.arange(batch.items.shape[1], device=row.device)
    repeated = (batch.items.unsqueeze(2) == batch.items.unsqueeze(1)).tril(-1).any(dim=2)  # [B, L]: occurs earlier
    return SeenItems(batch.items[row], (slot <= last.unsqueeze(1)) & ~repeated[row], model.seen_bias)


def _with_auxiliary(
    loss: Tensor, model: FactorizedScorer, prefixes: Tensor, items: Tensor, embeddings: Tensor
) -> Tensor:
    auxiliary = model.auxiliary_loss(prefixes, items, embeddings)
    return loss if auxiliary is None else loss + auxiliary


@TASKS.register("next_item")
class NextItemTask(Task):
    """Minimises `finetune_loss` or, over a sample of a large catalogue, `sampled_finetune_loss`.

    Raises:
        InputError: a seen-item bias without a softmax.
    """

    model: FactorizedModel
    sampler: ItemSampler

    def __init__(self, model: FactorizedModel, settings: FinetuneSettings) -> None:
        super().__init__(model)
        self.draw = settings.draw
        self.samples = settings.samples_of(model.n_items) if model.loss == "softmax" else None
        if self.samples is not None:
            tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
            self.sparse_tables = [table for table in tables if table.num_embeddings == model.n_items]
        if model.seen_bias is not None and model.loss != "softmax":
            raise InputError(f"model.seen_item_bias needs a softmax, but model.loss is {model.loss}; change either")

    def forward(self, batch: Batch, generator: torch.Generator) -> Tensor:
        if self.samples is None:
            return finetune_loss(self.model, batch, generator)
        sample = self.sampler.draw(self.samples, generator)
        return sampled_finetune_loss(self.model, batch, sample, self.sampler.probabilities)

    def batches(self, histories: Ragged, settings: StageSettings, rng: np.random.Generator) -> Iterator[TrainingBatch]:
        self.prepare_sampler(histories)
        return super().batches(histories, settings, rng)

    def prepare_sampler(self, histories: Ragged) -> None:
        """Decide by the training interactions how candidates are drawn, if they are."""
        if self.samples is None:
            return
        counts = np.bincount(histories.values, minlength=self.model.n_items)
        weights = np.sqrt(counts + 1) if self.draw == "popularity" else np.ones(len(counts))
        device = next(self.parameters()).device
        self.sampler = ItemSampler(torch.from_numpy(weights).to(device, torch.float32))
