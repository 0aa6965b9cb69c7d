"""Next-item prediction, the fine-tuning of sequence models: softmax over the catalogue (equations 12 and 13)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msm4sr.data.batches import Batch
from msm4sr.errors import InputError
from msm4sr.models.base import FactorizedModel, FactorizedScorer
from msm4sr.models.item_table import item_tables, shard_of
from msm4sr.models.layers import first_occurrence, take
from msm4sr.models.located_items import Limits, LocatedItems, pad_end, pad_slots
from msm4sr.objectives import (
    SeenItems,
    bayesian_personalised_ranking,
    next_item_cross_entropy,
    sampled_binary_cross_entropy,
)
from msm4sr.ragged import Ragged
from msm4sr.training.device import Gather, gather_own, join
from msm4sr.training.negatives import ItemSampler, absent_items
from msm4sr.training.settings import FinetuneSettings, StageSettings
from msm4sr.training.task import TASKS, Task, TrainingBatch

PAIRWISE = {"bce": sampled_binary_cross_entropy, "bpr": bayesian_personalised_ranking}


@dataclass  # not frozen: Lightning Fabric cannot convert frozen dataclasses in mixed precision
class FinetuneStep:
    """What a step of fine-tuning reads. Embeddings are those of the candidates, or of all items."""

    histories: Tensor
    """int64 [B, L], as rows of the embeddings."""
    pairs: Tensor
    """int64 [P], positions of the pairs in the flattened histories."""
    targets: Tensor
    """int64 [P], the next items."""
    target_rows: Tensor
    """int64 [P], the next items as rows of the embeddings."""
    absent: Tensor | None = None
    """int64 [P], an item that is not in the history, for losses that compare two."""
    candidates: LocatedItems | None = None
    """Of the C items of a sampled softmax, those that this process encodes; None: all items."""
    counts: list[int] = field(default_factory=list)
    """How many candidates each process encodes; a single number: every process encodes all."""
    log_weights: Tensor | None = None
    """[C], the logarithm of how many items each candidate represents."""
    weights: Tensor | None = None
    """[P], see `msm4sr.objectives`."""

    @classmethod
    def over_all(
        cls,
        model: FactorizedScorer,
        parts: Sequence[Batch],
        rank: int,
        n_items: int,
        generator: torch.Generator | None = None,
    ) -> FinetuneStep:
        """All items are candidates, and `generator` draws absent ones; the rows are `parts[rank]` of a batch."""
        batch, absent = parts[rank], None
        if model.loss != "softmax":
            start = sum(len(part.items) for part in parts[:rank])
            drawn = absent_items(join(parts), n_items, generator)
            absent = drawn[start : start + len(batch.items)][batch.mask]
        targets = batch.targets[batch.mask]
        return cls(batch.items, _pairs(batch), targets, targets, absent)

    @classmethod
    def over_sample(
        cls, model: FactorizedScorer, parts: Sequence[Batch], rank: int, sample: Tensor, probabilities: Tensor
    ) -> FinetuneStep:
        """Some items are candidates, for a loss and a cost that are independent of the size of the catalogue.

        The items of the batch are encoded for its histories and next items anyway, and count as in the full softmax.
        The rest of the catalogue is estimated from the draws of `sample` that fall on it: a stratified sample, by which
        the denominator is unbiased, and exact for the items of the batch, which tend to be popular.

        All processes have the same candidates, and each encodes those whose ID embeddings it has.

        Args:
            model: one with `loss` "softmax".
            parts: histories and next items, of each process.
            rank: the number of this process's part.
            sample: int64 [S], independent draws from the catalogue, by any distribution.
            probabilities: [N], that of each item in a draw; they sum to 1.

        Reference: the log-q correction of Yi et al. 2019 (RecSys), for the part that is drawn.
        """
        batch, shard = parts[rank], shard_of(model)
        targets = batch.targets[batch.mask]
        others = [part for part in parts if part is not batch]
        read = [targets, batch.items.flatten()]
        read += [items for part in others for items in (part.targets[part.mask], part.items.flatten())]
        needed, counts, place = shard.group(torch.cat([*read, sample]))
        target_rows, histories = place[: len(targets)], place[len(targets) :][: batch.items.numel()]
        own, drawn = place[: -len(sample)], place[-len(sample) :]
        return cls(
            histories=histories.view_as(batch.items),
            pairs=_pairs(batch),
            targets=targets,
            target_rows=target_rows,
            candidates=model.locate(torch.split(needed, counts)[shard.rank]),
            counts=counts,
            log_weights=stratified_log_weights(own, drawn, probabilities[needed]),
        )

    def pad(self, limits: Limits) -> FinetuneStep:
        """The same step with one of a few shapes; candidates that are padding represent no item."""
        shape, pairs = limits.pad_pairs(self.histories, self.pairs)
        size, candidates = len(pairs), None if self.candidates is None else self.candidates.pad()
        log_weights = self.log_weights
        if candidates is not None and log_weights is not None:
            log_weights = pad_end(log_weights, len(candidates.numbers), -torch.inf)
        return FinetuneStep(
            histories=pad_slots(self.histories, shape),
            pairs=pairs,
            targets=pad_end(self.targets, size),
            target_rows=pad_end(self.target_rows, size),
            absent=None if self.absent is None else pad_end(self.absent, size),
            candidates=candidates,
            counts=self.counts,
            log_weights=log_weights,
            weights=pad_end(torch.ones(len(self.pairs)), size),
        )


def finetune_loss(model: FactorizedScorer, step: FinetuneStep, gather: Gather = gather_own) -> Tensor:
    """The loss of the batch's next items, and the model's auxiliary loss; each candidate is encoded once.

    By default the mean negative log-likelihood of equation 13. A model with `loss` "bce" or "bpr" compares each next
    item with one absent item. `gather` collects the embeddings of the candidates.
    """
    if step.candidates is None:
        embeddings = model.encode_items()
    else:
        embeddings = gather(model.encode_some_items(step.candidates), step.counts)  # [C, M, D]
    prefixes = take(model.encode_histories(step.histories, embeddings).flatten(0, 1), step.pairs)  # [P, Q]
    item_vectors = model.scoring_vectors(embeddings)  # [C, Q]
    if step.absent is None:
        seen = _seen_items(model, step)
        loss = next_item_cross_entropy(prefixes, item_vectors, step.target_rows, step.log_weights, seen, step.weights)
    else:
        positive, negative = (
            (prefixes * take(item_vectors, items)).sum(dim=1) for items in (step.targets, step.absent)
        )
        loss = PAIRWISE[model.loss](positive, negative, step.weights)
    auxiliary = model.auxiliary_loss(prefixes, step.targets, take(embeddings, step.target_rows))
    return loss if auxiliary is None else loss + auxiliary


def _pairs(batch: Batch) -> Tensor:
    """int64 [P], positions of the pairs in the flattened batch."""
    return batch.mask.flatten().nonzero().squeeze(1)


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


def _seen_items(model: FactorizedScorer, step: FinetuneStep) -> SeenItems | None:
    """The items of each pair's prefix, for a model with a seen-item bias."""
    if model.seen_bias is None:
        return None
    items, width = step.histories, step.histories.shape[1]
    row, last = step.pairs // width, step.pairs % width  # [P] each
    slot = torch.arange(width, device=row.device)
    return SeenItems(items[row], (slot <= last.unsqueeze(1)) & first_occurrence(items)[row], model.seen_bias)


@TASKS.register("next_item")
class NextItemTask(Task):
    """Minimises `finetune_loss` over all items or, in a large catalogue, over a sample.

    Raises:
        InputError: a seen-item bias without a softmax.
    """

    model: FactorizedModel
    sampler: ItemSampler

    def __init__(self, model: FactorizedModel, settings: FinetuneSettings) -> None:
        super().__init__(model)
        self.can_pad = model.can_pad
        self.samples = settings.samples_of(model.n_items) if model.loss == "softmax" else None
        if self.samples is not None:
            self.sparse_tables = list(item_tables(model).values())
        if model.seen_bias is not None and model.loss != "softmax":
            raise InputError(f"model.seen_item_bias needs a softmax, but model.loss is {model.loss}; change either")

    def prepare(self, parts: Sequence[Any], rank: int, generator: torch.Generator) -> Any:
        if self.samples is None:
            step = FinetuneStep.over_all(self.model, parts, rank, self.model.n_items, generator)
        else:
            sample = self.sampler.draw(self.samples, generator)
            step = FinetuneStep.over_sample(self.model, parts, rank, sample, self.sampler.probabilities)
        return step if self.limits is None else step.pad(self.limits)

    def forward(self, step: Any) -> Tensor:
        return finetune_loss(self.model, step, self.gather)

    def batches(self, histories: Ragged, settings: StageSettings, rng: np.random.Generator) -> Iterator[TrainingBatch]:
        self.prepare_sampler(histories)
        return super().batches(histories, settings, rng)

    def prepare_sampler(self, histories: Ragged) -> None:
        """Decide by the training interactions how candidates are drawn, if they are."""
        if self.samples is None:
            return
        counts = np.bincount(histories.values, minlength=self.model.n_items)
        self.sampler = ItemSampler(torch.from_numpy(np.sqrt(counts + 1)).float())
