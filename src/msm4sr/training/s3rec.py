"""S3-Rec's pre-training: items and segments of a history are masked and told from what remains.

Shape letters: B histories of the batch, L positions, P positions in all, A attributes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from msm4sr.data.batches import Batch, epoch_batches
from msm4sr.data.dataset import Dataset
from msm4sr.errors import InputError
from msm4sr.models.base import Scorer
from msm4sr.models.baselines.s3rec import S3Rec
from msm4sr.objectives import attribute_mutual_information, contrastive_mutual_information
from msm4sr.ragged import Ragged
from msm4sr.training.negatives import draw_absent
from msm4sr.training.stage import StageOptions, Task, train_stage
from msm4sr.training.trainer import EpochRecord, StageSettings


@dataclass(frozen=True)
class Whole:
    """Whole histories (or windows of them), the last target included.

    Attributes:
        items: int64 [B, L], padded on the right.
        real: bool [B, L], what is no padding.
    """

    items: Tensor
    real: Tensor


def whole_histories(batch: Batch) -> Whole:
    """A batch of all pairs of a window as the window itself, one item longer than its inputs."""
    n_inputs = batch.mask.sum(dim=1, keepdim=True)  # [B, 1]
    last = batch.targets.gather(1, n_inputs - 1)
    items = F.pad(batch.items, (0, 1)).scatter(1, n_inputs, last)
    return Whole(items, torch.arange(items.shape[1], device=items.device) <= n_inputs)


@dataclass(frozen=True)
class Segments:
    """A segment of each history, and one from elsewhere.

    Attributes:
        inside: bool [B, L], the segment: between 1 and half of the history's items, anywhere in it.
        other: int64 [B, L], at these places items that follow one another somewhere in the batch.
    """

    inside: Tensor
    other: Tensor


def draw_segments(histories: Whole, generator: torch.Generator) -> Segments:
    """Draw both, the other one from all histories of the batch in a row: it may cross from one into the next."""
    pool, device = histories.items[histories.real], histories.items.device  # [T]
    slot = torch.arange(histories.items.shape[1], device=device)
    n = histories.real.sum(dim=1, keepdim=True)  # [B, 1]; at least 2

    def draw(numbers: Tensor) -> Tensor:
        """One of 0 ... number - 1 for each row."""
        return (torch.rand(numbers.shape, generator=generator, device=device, dtype=torch.float64) * numbers).long()

    length = 1 + draw(n // 2)
    start = draw(n - length + 1)
    inside = (slot >= start) & (slot < start + length)
    elsewhere = draw(len(pool) - length + 1)
    place = torch.where(inside, elsewhere + slot - start, 0)
    return Segments(inside, pool[place])


def s3rec_loss(model: S3Rec, batch: Batch, generator: torch.Generator) -> Tensor:
    """w1 L_AAP + w2 L_MIP + w3 L_MAP + w4 L_SP, each summed as its authors do, over the number of positions."""
    histories, config = whole_histories(batch), model.config
    items, real = histories.items, histories.real
    draw = torch.rand(items.shape, generator=generator, device=items.device)
    masked = real & (draw < config.mask_probability)
    segments = draw_segments(histories, generator)
    inside, outside = segments.inside, real & ~segments.inside

    rows = torch.cat([items, items, items, segments.other])  # four readings of each history, in one call
    hidden = model.encode_bidirectional(rows, torch.cat([masked, inside, outside, outside]), real.repeat(4, 1))
    sequence, context, segment, other = hidden.chunk(4)  # [B, L, D] each

    absent = draw_absent(items, real, model.n_items, generator)
    loss = config.mip_weight * masked_items(model, sequence[masked], items[masked], absent[masked])
    loss = loss + config.sp_weight * segment_of(model, *(last(x, real) for x in (context, segment, other)))
    if model.categories.n_categories:
        loss = loss + config.aap_weight * attributes(model, "aap", sequence[real & ~masked], items[real & ~masked])
        loss = loss + config.map_weight * attributes(model, "map", sequence[masked], items[masked])
    return loss / real.sum()


def last(hidden: Tensor, real: Tensor) -> Tensor:
    """The vectors at each history's last position: [B, L, D] to [B, D]."""
    return hidden[torch.arange(len(hidden), device=hidden.device), real.sum(dim=1) - 1]


def attributes(model: S3Rec, task: str, hidden: Tensor, items: Tensor) -> Tensor:
    """AAP or MAP, summed over positions: hidden [P, D], items [P]."""
    context, labels = model.maps[task](hidden), model.categories.labels(items)
    return attribute_mutual_information(context, model.category_embedding.weight, labels).sum()


def masked_items(model: S3Rec, hidden: Tensor, items: Tensor, absent: Tensor) -> Tensor:
    """MIP, summed over masked positions: hidden [P, D], the items there and others [P]."""
    embed = model.item_embedding
    return contrastive_mutual_information(model.maps["mip"](hidden), embed(items), embed(absent)).sum()


def segment_of(model: S3Rec, context: Tensor, segment: Tensor, other: Tensor) -> Tensor:
    """SP, summed over histories; all [B, D]."""
    return contrastive_mutual_information(model.maps["sp"](context), segment, other).sum()


class S3RecTask(Task):
    """`s3rec_loss` as a task; validated by `pretrained_scorer`.

    Raises:
        InputError: all parts of the loss are switched off.
    """

    def __init__(self, model: S3Rec, settings: StageSettings) -> None:
        super().__init__(model)
        names = [f"{task}_weight" for task in model.maps]
        if not any(getattr(model.config, name) for name in names):
            weights = " and ".join(f"model.{name}" for name in names)
            raise InputError(f"{weights} are 0: nothing is to be learnt; leave the stage out with pretrain.epochs=0")
        self.model: S3Rec = model

    def forward(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return s3rec_loss(self.model, batch, generator)

    def batches(self, histories: Ragged, settings: StageSettings, rng: np.random.Generator) -> Iterator[Batch]:
        """All histories once; their inputs are one shorter than the model reads, since the last target comes too."""
        return epoch_batches(
            histories, max_history=self.model.max_history - 1, batch_pairs=settings.batch_pairs, rng=rng
        )

    @property
    def scorer(self) -> Scorer:
        return self.model.pretrained_scorer()


def pretrain_s3rec(
    model: S3Rec, dataset: Dataset, settings: StageSettings = StageSettings(), **options: Unpack[StageOptions]
) -> list[EpochRecord]:
    """Train embeddings and Transformer on the training parts of the histories; the best epoch's weights remain.

    Of `settings` the part that all stages have is read, `pairs` apart. See `train_stage` for the options.
    """
    return train_stage("pretrain", S3RecTask(model, settings), dataset, settings, **options)
