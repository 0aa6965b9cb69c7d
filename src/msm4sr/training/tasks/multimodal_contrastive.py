"""Multimodal contrastive pre-training of MSM4SR: content only, with drop, mixup, NIP and CMCL (equation 11)."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from msm4sr.data.batches import Batch
from msm4sr.errors import InputError
from msm4sr.models.base import Scorer
from msm4sr.models.layers import take
from msm4sr.models.msm4sr import MSM4SR
from msm4sr.objectives import cross_modality_contrast, next_item_prediction
from msm4sr.training.device import Gather, gather_own
from msm4sr.training.settings import PretrainSettings
from msm4sr.training.task import TASKS, Task

logger = logging.getLogger(__name__)


def mix_up(inputs: Tensor, rho: float, generator: torch.Generator) -> Tensor:
    """Complementary mixup: at each position, with probability `rho`, the modalities exchange their vectors.

    Two modalities swap; more than two rotate by a random number of places, so that no vector is lost or repeated.
    Inputs and result [M, B, L, D].
    """
    modalities, rows, length = inputs.shape[:3]
    swapped = torch.rand(rows, length, generator=generator, device=inputs.device) < rho
    if modalities == 1:
        return inputs
    if modalities == 2:
        return torch.where(swapped[..., None], inputs.flip(0), inputs)
    turn = torch.randint(1, modalities, (rows, length), generator=generator, device=inputs.device) * swapped
    source = (torch.arange(modalities, device=inputs.device)[:, None, None] + turn) % modalities  # [M, B, L]
    return inputs.gather(0, source.unsqueeze(-1).expand_as(inputs))


def pretrain_loss(
    model: MSM4SR, batch: Batch, settings: PretrainSettings, generator: torch.Generator, gather: Gather = gather_own
) -> Tensor:
    """L = sum over modalities of NIP + lambda CMCL (equation 11), a mean over the pairs of this process.

    Each distinct item of the batch is encoded once. With a single modality only NIP remains.

    Args:
        model: to train.
        batch: histories after sequence random drop, and next items.
        settings: weights of the losses, negatives, mixup.
        generator: draws rho and the positions that are mixed.
        gather: collects the pairs of all processes, which are negatives of each other.
    """
    own_next = batch.targets[batch.mask]
    items, place = torch.unique(torch.cat([batch.items.flatten(), own_next]), return_inverse=True)
    content = torch.stack([model.encode_content(a, items) for a in model.modalities], dim=1)  # [n, M, D]
    inputs = take(content, place[: batch.items.numel()].view_as(batch.items)).permute(2, 0, 1, 3)  # [M, B, L, D]
    rho = settings.mixup * float(gather(torch.rand(1, generator=generator, device=inputs.device))[0][0])
    hidden = model.encode_sequences(mix_up(inputs, rho, generator))[:, batch.mask]  # [M, P of its own, D]

    # From here on: the pairs of all processes; `mine` are those of this process.
    every_hidden, mine = gather(hidden.transpose(0, 1))
    hidden = every_hidden.transpose(0, 1)  # [M, P, D]
    next_item, _ = gather(own_next)  # [P]
    columns, target, counts = torch.unique(next_item, return_inverse=True, return_counts=True)  # [C], [P], [C]
    distinct = place[batch.items.numel() :].unique()
    known, _ = gather(items[distinct])  # each process's distinct next items; several may have the same
    next_content = take(gather(take(content, distinct))[0], _first(known, columns))  # [C, M, D]

    loss = hidden.new_zeros(())
    for i, modality in enumerate(model.modalities):
        views = list(model.views(hidden, modality))  # [P, D] each: the history through every modality, or this one
        own = views.pop(min(i, len(views) - 1))
        if settings.nip_weight:
            loss = loss + settings.nip_weight * next_item_prediction(
                [view[mine] for view in (own, *views)],
                next_content[:, i],
                target[mine],
                counts,
                model.config.temperature,
            )
        # without projections two modalities have one contrast, not one in the space of each
        others = views if model.projections else list(hidden[i + 1 :])
        if settings.cmcl_weight and others:
            contrasts = [
                cross_modality_contrast(own, other, next_item, model.config.temperature, settings.negatives, mine)
                for other in others
            ]
            loss = loss + settings.cmcl_weight * torch.stack(contrasts).sum() / (len(model.modalities) - 1)
    return loss


def _first(known: Tensor, wanted: Tensor) -> Tensor:
    """The first position in `known` of each of `wanted` [C] (distinct, ascending; all are in `known`)."""
    place = torch.arange(len(known), device=known.device)
    column = torch.searchsorted(wanted, known)
    return place.new_empty(len(wanted)).scatter_reduce(0, column, place, "amin", include_self=False)


@TASKS.register("multimodal_contrastive")
class MultimodalContrastiveTask(Task):
    """Minimises `pretrain_loss`.

    Raises:
        InputError: no loss is left: NIP is off, and CMCL is off or has only one modality.
    """

    model: MSM4SR

    def __init__(self, model: MSM4SR, settings: PretrainSettings) -> None:
        super().__init__(model)
        if not settings.nip_weight and (not settings.cmcl_weight or len(model.modalities) == 1):
            raise InputError(
                "pretrain.nip_weight is 0 and there is no other loss: CMCL needs pretrain.cmcl_weight > 0 and two "
                f"modalities (there is {' and '.join(model.modalities)}); skip the stage with pretrain.epochs=0"
            )
        if len(model.modalities) == 1:
            logger.info("pre-training on %s only: no mixup, no contrast between modalities", model.modalities[0])
        self.settings, self.drop = settings, settings.drop

    def forward(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return pretrain_loss(self.model, batch, self.settings, generator, self.gather)

    @property
    def scorer(self) -> Scorer:
        return self.model.pretrained_scorer()
