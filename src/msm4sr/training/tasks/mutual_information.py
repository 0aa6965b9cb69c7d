"""Mutual information maximisation, the pre-training of S3-Rec: masked items and segments are predicted from the rest.

Shape letters: B histories of the batch, L positions, P positions in all, A attributes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from msm4sr.data.batches import Batch, epoch_batches
from msm4sr.errors import InputError
from msm4sr.models.base import Scorer
from msm4sr.models.baselines.s3rec import S3Rec
from msm4sr.models.layers import at_last
from msm4sr.objectives import attribute_mutual_information, contrastive_mutual_information
from msm4sr.ragged import Ragged
from msm4sr.training.device import join, shares
from msm4sr.training.negatives import draw_absent
from msm4sr.training.settings import StageSettings
from msm4sr.training.task import TASKS, Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompleteWindows:
    """History windows, the last target included.

    Attributes:
        items: int64 [B, L], padded on the right.
        real: bool [B, L], True where there is an item, False for padding.
    """

    items: Tensor
    real: Tensor


def complete_windows(batch: Batch) -> CompleteWindows:
    """A batch of all pairs of a window as the window itself, one item longer than its inputs."""
    n_inputs = batch.mask.sum(dim=1, keepdim=True)  # [B, 1]
    last = batch.targets.gather(1, n_inputs - 1)
    items = F.pad(batch.items, (0, 1)).scatter(1, n_inputs, last)
    return CompleteWindows(items, torch.arange(items.shape[1], device=items.device) <= n_inputs)


def draw_segments(histories: CompleteWindows, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A segment of each history, and a negative one of the same length.

    Returns:
        Bool [B, L], the segment: between 1 item and half of the history, anywhere in it; int64 [B, L], in the same
        places consecutive items of the concatenated histories, which may cross from one history to the next.
    """
    pool, device = histories.items[histories.real], histories.items.device  # [T]
    slot = torch.arange(histories.items.shape[1], device=device)
    n = histories.real.sum(dim=1, keepdim=True)  # [B, 1]; at least 2

    def draw(numbers: Tensor) -> Tensor:
        """A uniform integer in [0, number) for each row."""
        return (torch.rand(numbers.shape, generator=generator, device=device, dtype=torch.float64) * numbers).long()

    length = 1 + draw(n // 2)
    start = draw(n - length + 1)
    inside = (slot >= start) & (slot < start + length)
    elsewhere = draw(len(pool) - length + 1)
    place = torch.where(inside, elsewhere + slot - start, 0)
    return inside, pool[place]


@dataclass  # not frozen: Lightning Fabric cannot convert frozen dataclasses in mixed precision
class MaskedWindows:
    """`CompleteWindows` with all that is drawn: [B, L] each."""

    items: Tensor
    real: Tensor
    masked: Tensor  # bool, the masked items
    inside: Tensor  # bool, the segments
    negative: Tensor  # int64, the negative segments
    absent: Tensor  # int64, the negatives of masked items

    @classmethod
    def draw(cls, model: S3Rec, batch: Batch, generator: torch.Generator) -> MaskedWindows:
        histories = complete_windows(batch)
        items, real = histories.items, histories.real
        draw = torch.rand(items.shape, generator=generator)
        masked = real & (draw < model.config.mask_probability)
        inside, negative = draw_segments(histories, generator)
        return cls(items, real, masked, inside, negative, draw_absent(items, real, model.n_items, generator))


def s3rec_loss(model: S3Rec, step: MaskedWindows) -> Tensor:
    """w1 L_AAP + w2 L_MIP + w3 L_MAP + w4 L_SP, each summed as in the authors' code, divided by the positions."""
    config, items, real, masked = model.config, step.items, step.real, step.masked
    inside, outside = step.inside, real & ~step.inside

    rows = torch.cat([items, items, items, step.negative])  # four inputs per history, encoded in one call
    lengths = real.sum(dim=1)
    hidden = model.encode_bidirectional(rows, torch.cat([masked, inside, outside, outside]), real.repeat(4, 1))
    sequence, context, segment, other = hidden.chunk(4)  # [B, L, D] each

    loss = config.mip_weight * masked_items(model, sequence[masked], items[masked], step.absent[masked])
    loss = loss + config.sp_weight * segment_of(model, *(at_last(x, lengths) for x in (context, segment, other)))
    if model.categories.n_categories:
        loss = loss + config.aap_weight * attributes(model, "aap", sequence[real & ~masked], items[real & ~masked])
        loss = loss + config.map_weight * attributes(model, "map", sequence[masked], items[masked])
    return loss / real.sum()


def attributes(model: S3Rec, task: str, hidden: Tensor, items: Tensor) -> Tensor:
    """AAP or MAP, summed over positions: hidden [P, D], items [P]."""
    context, labels = model.maps[task](hidden), model.categories.labels(items)
    return attribute_mutual_information(context, model.category_embedding.weight, labels).sum()


def masked_items(model: S3Rec, hidden: Tensor, items: Tensor, absent: Tensor) -> Tensor:
    """MIP, summed over masked positions: hidden [P, D], the masked items and absent ones [P]."""
    embed = model.item_embedding
    return contrastive_mutual_information(model.maps["mip"](hidden), embed(items), embed(absent)).sum()


def segment_of(model: S3Rec, context: Tensor, segment: Tensor, other: Tensor) -> Tensor:
    """SP, summed over histories; all [B, D]."""
    return contrastive_mutual_information(model.maps["sp"](context), segment, other).sum()


@TASKS.register("mutual_information")
class MutualInformationTask(Task):
    """Minimises `s3rec_loss`.

    Raises:
        InputError: all weights of the loss are 0; the setting `pairs` is "last".
    """

    model: S3Rec

    def __init__(self, model: S3Rec, settings: StageSettings) -> None:
        super().__init__(model)
        names = [f"{part}_weight" for part in model.maps]
        if not any(getattr(model.config, name) for name in names):
            weights = " and ".join(f"model.{name}" for name in names)
            raise InputError(f"{weights} are 0: there is no loss; skip the stage with pretrain.epochs=0")
        if settings.pairs != "all":
            raise InputError(
                f"{settings.stage}.pairs={settings.pairs}: {model.label} is pre-trained on windows of histories, not "
                "on prefixes; leave it out"
            )
        if not model.categories.n_categories:
            logger.info("no item has a category: pre-training without associated and masked attributes")

    def prepare(self, parts: Sequence[Batch], rank: int, generator: torch.Generator) -> MaskedWindows:
        return shares(MaskedWindows.draw(self.model, join(parts), generator), len(parts))[rank]

    def count_terms(self, batch: Batch) -> int:
        """The positions of the windows: the pairs, and one for the last target of each row."""
        return int(batch.mask.sum()) + len(batch.mask)

    def forward(self, step: MaskedWindows) -> Tensor:
        return s3rec_loss(self.model, step)

    def batches(self, histories: Ragged, settings: StageSettings, rng: np.random.Generator) -> Iterator[Batch]:
        """All histories once; the last target is read too, so inputs are one shorter than the model's histories."""
        return epoch_batches(
            histories, max_history=self.model.max_history - 1, batch_pairs=settings.batch_pairs, rng=rng
        )

    @property
    def scorer(self) -> Scorer:
        return self.model.pretrained_scorer()
