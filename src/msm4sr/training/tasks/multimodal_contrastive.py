"""Multimodal contrastive pre-training of MSM4SR: content only, with drop, mixup, NIP and CMCL (equation 11)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from msm4sr.data.batches import Batch
from msm4sr.errors import InputError
from msm4sr.models.base import Scorer
from msm4sr.models.layers import take
from msm4sr.models.located_items import Limits, LocatedItems, pad_end, pad_slots, padded_size
from msm4sr.models.msm4sr import MSM4SR
from msm4sr.objectives import cross_modality_contrast, next_item_prediction
from msm4sr.training.device import Gather, gather_own
from msm4sr.training.settings import PretrainSettings
from msm4sr.training.task import TASKS, Task

logger = logging.getLogger(__name__)


@dataclass  # not frozen: Lightning Fabric cannot convert frozen dataclasses in mixed precision
class Mixup:
    """The draws of complementary mixup."""

    rho: Tensor
    """[1], the probability that the modalities of a position exchange their vectors."""
    draws: Tensor
    """[B, L], uniform in [0, 1)."""
    turn: Tensor | None
    """int64 [B, L], by how many places more than two modalities rotate; None: two swap."""

    @classmethod
    def draw(cls, modalities: int, shape: Sequence[int], limit: float, generator: torch.Generator) -> Mixup:
        """With rho from U(0, `limit`), for positions of a `shape` [B, L]."""
        rho, draws = limit * torch.rand(1, generator=generator), torch.rand(*shape, generator=generator)
        return cls(rho, draws, torch.randint(1, modalities, shape, generator=generator) if modalities > 2 else None)

    def rows(self, start: int, count: int) -> Mixup:
        """Those of `count` of the B rows."""
        part = slice(start, start + count)
        return Mixup(self.rho, self.draws[part], None if self.turn is None else self.turn[part])


def mix_up(inputs: Tensor, mixup: Mixup) -> Tensor:
    """Complementary mixup: at each position, with probability rho, the modalities exchange their vectors.

    Two modalities swap; more than two rotate by a random number of places, so that no vector is lost or repeated.
    Inputs and result [M, B, L, D].
    """
    modalities = len(inputs)
    if modalities == 1:
        return inputs
    swapped = mixup.draws < mixup.rho
    if mixup.turn is None:
        return torch.where(swapped[..., None], inputs.flip(0), inputs)
    turn = mixup.turn * swapped
    source = (torch.arange(modalities, device=inputs.device)[:, None, None] + turn) % modalities  # [M, B, L]
    return inputs.gather(0, source.unsqueeze(-1).expand_as(inputs))


@dataclass  # not frozen, as `Mixup`
class PretrainStep:
    """What a step of pre-training reads. P pairs, C distinct next items: of all processes; p, c: of this one."""

    items: LocatedItems
    """The n items of this process's rows, histories and next items."""
    histories: Tensor
    """int64 [B, L], as places among `items`."""
    mixup: Mixup
    pairs: Tensor
    """int64 [p], positions of the pairs in the flattened histories."""
    own_next: Tensor
    """int64 [c], the distinct next items of this process, as places among `items`."""
    next_items: Tensor
    """int64 [P]."""
    columns: Tensor | None
    """int64 [C], where the distinct next items are among `own_next` of all processes; None: there is one process."""
    target: Tensor
    """int64 [p], each pair's next item, as a column."""
    counts: Tensor
    """int64 [C], how many pairs have this next item."""
    n_pairs: list[int]
    """p of each process."""
    n_next: list[int]
    """c of each process."""
    mine: slice
    """The pairs of this process among those of all."""
    weights: Tensor | None = None
    """[P], see `msm4sr.objectives`."""

    @classmethod
    def of(
        cls, model: MSM4SR, parts: Sequence[Batch], rank: int, mixup: float, generator: torch.Generator
    ) -> PretrainStep:
        """The step of a process whose rows are `parts[rank]` of a batch; `mixup` limits rho."""
        mine, next_items = parts[rank], [part.targets[part.mask] for part in parts]
        rows = [len(part.items) for part in parts]
        draws = Mixup.draw(len(model.modalities), (sum(rows), mine.items.shape[1]), mixup, generator)
        draws = draws.rows(sum(rows[:rank]), len(mine.items))
        numbers, place = torch.unique(torch.cat([mine.items.flatten(), next_items[rank]]), return_inverse=True)
        every, n_pairs = torch.cat(next_items), [len(items) for items in next_items]
        columns, target, counts = torch.unique(every, return_inverse=True, return_counts=True)
        distinct = [columns] if len(parts) == 1 else [torch.unique(items) for items in next_items]
        start = sum(n_pairs[:rank])
        own = slice(None) if len(parts) == 1 else slice(start, start + n_pairs[rank])
        return cls(
            items=model.locate(numbers),
            histories=place[: mine.items.numel()].view_as(mine.items),
            mixup=draws,
            pairs=mine.mask.flatten().nonzero().squeeze(1),
            own_next=torch.searchsorted(numbers, distinct[rank]),
            next_items=every,
            columns=None if len(parts) == 1 else _first(torch.cat(distinct), columns),
            target=target[own],
            counts=counts,
            n_pairs=n_pairs,
            n_next=[len(items) for items in distinct],
            mine=own,
        )

    def pad(self, limits: Limits) -> PretrainStep:
        """The same step of a single process, with one of a few shapes."""
        (n_pairs,), (n_next,) = self.n_pairs, self.n_next
        shape, pairs = limits.pad_pairs(self.histories, self.pairs)
        size, columns = len(pairs), padded_size(n_next)
        turn = None if self.mixup.turn is None else pad_slots(self.mixup.turn, shape)
        return replace(
            self,
            items=self.items.pad(),
            histories=pad_slots(self.histories, shape),
            mixup=Mixup(self.mixup.rho, pad_slots(self.mixup.draws, shape), turn),
            pairs=pairs,
            own_next=pad_end(self.own_next, columns),
            next_items=pad_end(self.next_items, size),
            target=pad_end(self.target, size),
            counts=pad_end(self.counts, columns),
            n_pairs=[size],
            n_next=[columns],
            weights=pad_end(torch.ones(n_pairs), size),
        )


def pretrain_loss(model: MSM4SR, step: PretrainStep, settings: PretrainSettings, gather: Gather = gather_own) -> Tensor:
    """L = sum over modalities of NIP + lambda CMCL (equation 11), a mean over the pairs of this process.

    Each distinct item of the batch is encoded once. With a single modality only NIP remains.

    Args:
        model: to train.
        step: histories after sequence random drop, and next items.
        settings: weights of the losses, negatives, mixup.
        gather: collects the pairs of all processes, which are negatives of each other.
    """
    content = torch.stack([model.encode_content(a, step.items) for a in model.modalities], dim=1)  # [n, M, D]
    inputs = take(content, step.histories).permute(2, 0, 1, 3)  # [M, B, L, D]
    encoded = model.encode_sequences(mix_up(inputs, step.mixup))
    modalities = torch.arange(len(encoded), device=encoded.device).unsqueeze(1)
    own = take(encoded.flatten(0, 2), modalities * step.histories.numel() + step.pairs)  # [M, p, D]
    hidden = gather(own.transpose(0, 1), step.n_pairs).transpose(0, 1)  # [M, P, D]
    next_content = gather(take(content, step.own_next), step.n_next)
    if step.columns is not None:
        next_content = take(next_content, step.columns)  # [C, M, D]

    loss, mine, temperature = hidden.new_zeros(()), step.mine, model.config.temperature
    for i, modality in enumerate(model.modalities):
        views = list(model.views(hidden, modality))  # [P, D] each: the history through every modality, or this one
        first = views.pop(min(i, len(views) - 1))
        if settings.nip_weight:
            of_mine = [view[mine] for view in (first, *views)]
            weights = None if step.weights is None else step.weights[mine]
            nip = next_item_prediction(of_mine, next_content[:, i], step.target, step.counts, temperature, weights)
            loss = loss + settings.nip_weight * nip
        # without projections two modalities have one contrast, not one in the space of each
        others = views if model.projections else list(hidden[i + 1 :])
        if settings.cmcl_weight and others:
            contrasts = [
                cross_modality_contrast(
                    first, other, step.next_items, temperature, settings.negatives, mine, step.weights
                )
                for other in others
            ]
            loss = loss + settings.cmcl_weight * torch.stack(contrasts).sum() / (len(model.modalities) - 1)
    return loss


def _first(known: Tensor, wanted: Tensor) -> Tensor:
    """The first position in `known` of each of `wanted` [C] (distinct, ascending; all are in `known`)."""
    place = torch.arange(len(known))
    column = torch.searchsorted(wanted, known)
    return place.new_empty(len(wanted)).scatter_reduce(0, column, place, "amin", include_self=False)


def check_losses(model: MSM4SR, settings: PretrainSettings) -> None:
    """Raise InputError if no loss is left: NIP is off, and CMCL is off or has only one modality."""
    if not settings.nip_weight and (not settings.cmcl_weight or len(model.modalities) == 1):
        raise InputError(
            "pretrain.nip_weight is 0 and there is no other loss: CMCL needs pretrain.cmcl_weight > 0 and two "
            f"modalities (there is {' and '.join(model.modalities)}); skip the stage with pretrain.epochs=0"
        )
    if len(model.modalities) == 1:
        logger.info("pre-training on %s only: no mixup, no contrast between modalities", model.modalities[0])


@TASKS.register("multimodal_contrastive")
class MultimodalContrastiveTask(Task):
    """Minimises `pretrain_loss`. Raises InputError as `check_losses`."""

    model: MSM4SR
    can_pad = True

    def __init__(self, model: MSM4SR, settings: PretrainSettings) -> None:
        super().__init__(model)
        check_losses(model, settings)
        self.settings, self.drop = settings, settings.drop
        self.sparse_tables = [model.item_embedding]  # pre-training reads none of its rows

    def prepare(self, parts: Sequence[Batch], rank: int, generator: torch.Generator) -> PretrainStep:
        step = PretrainStep.of(self.model, parts, rank, self.settings.mixup, generator)
        return step if self.limits is None else step.pad(self.limits)

    def forward(self, step: PretrainStep) -> Tensor:
        return pretrain_loss(self.model, step, self.settings, self.gather)

    @property
    def scorer(self) -> Scorer:
        return self.model.pretrained_scorer()
