"""Next-item prediction, the fine-tuning of sequence models: softmax over the catalogue (equations 12 and 13)."""

from __future__ import annotations

from dataclasses import replace

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
from msm4sr.training.negatives import absent_items
from msm4sr.training.settings import FinetuneSettings
from msm4sr.training.task import TASKS, Task

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


def sampled_finetune_loss(model: FactorizedScorer, batch: Batch, sample: Tensor, n_items: int) -> Tensor:
    """`finetune_loss` over some candidates: only they are encoded, so that the cost is independent of the catalogue.

    The items of the batch are encoded for its histories and next items anyway, and count as in the full softmax. The
    rest of the catalogue is estimated from the draws of `sample` that fall on it: a stratified sample, by which the
    denominator is unbiased, and exact for the items of the batch, which tend to be popular.

    Args:
        model: one with `loss` "softmax".
        batch: histories and next items.
        sample: int64 [S], uniform draws from the catalogue; if they are all of its items, the result is the full loss.
        n_items: N.
    """
    items = batch.targets[batch.mask]
    own = torch.cat([items, batch.items.flatten()])
    needed, place = torch.unique(torch.cat([own, sample]), return_inverse=True)  # [C], C candidates
    target, histories, drawn = place.split([len(items), batch.items.numel(), len(sample)])
    log_weights = stratified_log_weights(place[: len(own)], drawn, len(needed), n_items)
    renumbered = replace(batch, items=histories.view_as(batch.items))
    embeddings = model.encode_some_items(needed)
    prefixes = model.encode_histories(renumbered.items, embeddings)[batch.mask]
    item_vectors = model.scoring_vectors(embeddings)
    seen = _seen_items(model, renumbered)
    loss = next_item_cross_entropy(prefixes, item_vectors, target, log_weights, seen)
    return _with_auxiliary(loss, model, prefixes, items, take(embeddings, target))


def stratified_log_weights(own: Tensor, drawn: Tensor, candidates: int, n_items: int) -> Tensor:
    """The logarithm of how many items of the catalogue each of C candidates represents: [C].

    Args:
        own: int64, the candidates that are items of the batch: each represents itself.
        drawn: int64 [S], the candidate of each draw. The draws outside of the batch represent the rest of the
            catalogue, each draw the same share.
        candidates: C.
        n_items: N.
    """
    is_own = torch.zeros(candidates, dtype=torch.bool, device=own.device).index_fill_(0, own, True)
    draws = torch.bincount(drawn, minlength=candidates).masked_fill(is_own, 0).float()
    share = (n_items - is_own.sum()) / draws.sum().clamp(min=1)
    return torch.where(is_own, 0, (draws * share).log())


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

    def __init__(self, model: FactorizedModel, settings: FinetuneSettings) -> None:
        super().__init__(model)
        self.n_items = model.n_items
        self.samples = settings.samples_of(model.n_items) if model.loss == "softmax" else None
        if self.samples is not None:
            tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
            self.sparse_tables = [table for table in tables if table.num_embeddings == model.n_items]
        if model.seen_bias is not None and model.loss != "softmax":
            raise InputError(f"model.seen_item_bias needs a softmax, but model.loss is {model.loss}; change either")

    def forward(self, batch: Batch, generator: torch.Generator) -> Tensor:
        if self.samples is None:
            return finetune_loss(self.model, batch, generator)
        sample = torch.randint(self.n_items, (self.samples,), generator=generator, device=batch.items.device)
        return sampled_finetune_loss(self.model, batch, sample, self.n_items)
