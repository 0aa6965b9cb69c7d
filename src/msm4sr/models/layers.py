"""Blocks that several models share: item features, dropout, initialisation.

Shape letters: N items, R feature rows (sentences or images) of those items, D_in encoder width, A categories."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ItemFeatures(nn.Module):
    """What a frozen encoder said of every item in one modality: a ragged table, never trained.

    The tables stay where they are: mapped from a store, only what a step looks at is read into memory.

    Args:
        vectors: float [R_all, D_in], the sentences (or images) of all items, item after item.
        offsets: int64 [N_all + 1]; item i has rows `offsets[i]:offsets[i + 1]`. No row: the item lacks the modality.
    """

    vectors: Tensor
    offsets: Tensor

    def __init__(self, vectors: Tensor, offsets: Tensor) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors)
        self.register_buffer("offsets", offsets)

    @property
    def dim(self) -> int:
        return self.vectors.shape[1]

    def forward(self, items: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The rows of `items` [N] (all when None): vectors [R, D_in] and how many belong to each item [N]."""
        if items is None:
            return self.vectors, self.offsets.diff()
        first, lengths = self.offsets[items], self.offsets[items + 1] - self.offsets[items]
        shift = first - (lengths.cumsum(0) - lengths)  # from the place in the result to the place in the table
        rows = torch.repeat_interleave(shift, lengths) + torch.arange(int(lengths.sum()), device=first.device)
        return self.vectors[rows], lengths


class Dropout(nn.Module):
    """Each number is 0 with probability `p`, and else divided by 1 - p; nothing in evaluation.

    As `nn.Dropout`, of which it is a several times faster form for CPUs, where drawing the mask costs more than the
    matrix products around it. Four draws share a 64-bit random number, so that p is rounded to a multiple of 2^-16.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        dropped = round(self.p * 2**16)
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = draws.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 2**15
        return x * kept.to(x.dtype).mul_(2**16 / (2**16 - dropped))


class ItemMeans(ItemFeatures):
    """One frozen vector an item in one modality: the mean of its rows. No row: the item lacks the modality.

    Encoders differ in length and offset (pooled layers of an image network have no negative number), so the means
    are centred over the items that have one, and divided by their mean length: a weight of N(0, 0.02) then makes of
    any modality what it makes of an ID.
    """

    def __init__(self, vectors: Tensor, offsets: Tensor) -> None:
        lengths = offsets.diff()
        present = lengths > 0
        rows = torch.arange(len(vectors), device=vectors.device)
        means = F.embedding_bag(rows, vectors, offsets[:-1][present], mode="mean")
        centre = means.mean(dim=0)
        means = means - centre
        length = means.norm(dim=1).mean().clamp(min=1e-12)  # one vector for all: nothing is told, all is 0
        super().__init__(means / length, F.pad(present.long().cumsum(0), (1, 0)))
        self.centre: Tensor = centre
        self.length: Tensor = length

    def measure_as(self, other: ItemMeans) -> None:
        """Centre and divide by what `other`, which was made of other items, was centred and divided by."""
        self.vectors = (self.vectors * self.length + self.centre - other.centre) / other.length
        self.centre, self.length = other.centre, other.length


class ItemCategories(ItemFeatures):
    """Which categories every item has: their numbers, ragged, never trained. An item may have none, one or several.

    Args:
        numbers: int64 [R_all], the categories of all items, item after item.
        offsets: int64 [N_all + 1].
        n_categories: A, how many there are.
    """

    def __init__(self, numbers: Tensor, offsets: Tensor, n_categories: int) -> None:
        super().__init__(numbers, offsets)
        self.n_categories = n_categories

    def labels(self, items: Tensor) -> Tensor:
        """1 where the item has the category, else 0: items [P] to float [P, A]."""
        numbers, lengths = self(items)
        row = torch.repeat_interleave(torch.arange(len(items), device=items.device), lengths)
        labels = torch.zeros(len(items), self.n_categories, device=items.device)
        return labels.index_put((row, numbers), labels.new_ones(()))

    def sums(self, embedding: Tensor) -> Tensor:
        """The sum of each item's category vectors: embedding [A, D] to [N, D], zeros for an item without any."""
        return F.embedding_bag(self.vectors, embedding, self.offsets[:-1], mode="sum")


def take(table: Tensor, rows: Tensor) -> Tensor:
    """`table[rows]` for a trained table [N, ...] and int64 rows [...], by an embedding look-up.

    The gradient of plain indexing adds rows that occur twice in whatever order its threads come to them; that of an
    embedding adds them in order, so that a seed gives the same digits on several threads too. It is faster as well.
    """
    return F.embedding(rows, table.flatten(1)).view(*rows.shape, *table.shape[1:])


def initialise(module: nn.Module) -> None:
    """Weights from N(0, 0.02), biases 0, as the method's code and SASRec's do. Apply with `model.apply(initialise)`."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
