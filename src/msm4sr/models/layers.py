"""Blocks that several models share: item features, dropout, initialisation.

Shape letters: N items, R feature rows (sentences or images) of those items, D_in encoder dimension, A categories.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msm4sr.models.item_table import ItemTable
from msm4sr.models.located_items import FeatureRows, Segments
from msm4sr.ragged import Ragged


class ItemFeatures(nn.Module):
    """The frozen embeddings of N items in one modality: `rows` [R, D_in]; an item without rows lacks the modality.

    They stay where the caller has them: of features that are mapped from a store, a step loads only the rows it reads.
    """

    values: Tensor
    offsets: Tensor
    _present: Tensor | None
    _item: Tensor | None
    _slot: Tensor | None
    _starts: Tensor | None

    def __init__(self, rows: Ragged) -> None:
        super().__init__()
        self.register_buffer("values", rows.values)
        self.register_buffer("offsets", rows.offsets)
        self._host_offsets: Tensor | None = None
        lengths = rows.offsets.diff()
        self._may_lack, self._may_have_several = bool((lengths == 0).any()), bool((lengths > 1).any())
        segments = Segments.of(lengths, self._may_lack, self._may_have_several)
        self._longest = segments.longest
        for name in ("present", "item", "slot", "starts"):  # buffers, so that they follow the features to a device
            self.register_buffer(f"_{name}", getattr(segments, name), persistent=False)

    @property
    def rows(self) -> Ragged:
        """Of all items, as the model reads them."""
        return Ragged(self.values, self.offsets)

    @property
    def source(self) -> Ragged:
        """The frozen encoder's embeddings that `rows` are computed from, as long as the caller has them."""
        return self.rows

    @property
    def source_dim(self) -> int:
        """D_in."""
        return self.values.shape[1]

    def prepare(self, rows: Tensor) -> Tensor:
        """The frozen encoder's embeddings of other items [R, D_in], as the model reads them."""
        return rows

    def update(self) -> None:
        """Compute `rows` again after parameters of this module have changed."""

    def forward(self, items: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The rows [R, D_in] of `items` [N] (None: of all), and the number of rows of each item [N]."""
        if items is None:
            return self.values, self.offsets.diff()
        rows, lengths = rows_of(self.offsets, items)
        return self.values[rows], lengths

    def locate(self, items: Tensor) -> FeatureRows:
        """Where the rows of `items` [N] are, for `read`; on the host, whatever the device of the features."""
        if self._host_offsets is None:
            self._host_offsets = self.offsets.cpu()
        rows, lengths = rows_of(self._host_offsets, items)
        return FeatureRows(rows, Segments.of(lengths, self._may_lack, self._may_have_several))

    def read(self, where: FeatureRows | None = None) -> tuple[Tensor, Segments]:
        """The rows [R, D_in] of some items (None: of all), and which row belongs to which item."""
        if where is None:
            buffers = self._present, self._item, self._slot, self._starts
            return self.values, Segments(len(self.offsets) - 1, *buffers, self._longest)
        return self.values[where.rows], where.segments


def rows_of(offsets: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of the rows of `items` [N] in a ragged table: [R], and how many each item has: [N]."""
    first, lengths = offsets[items], offsets[items + 1] - offsets[items]
    shift = first - (lengths.cumsum(0) - lengths)  # from a row of the result to a row of the table
    return torch.repeat_interleave(shift, lengths) + torch.arange(int(lengths.sum()), device=first.device), lengths


class Dropout(nn.Module):
    """As `nn.Dropout`, but several times faster on CPUs, where drawing the mask costs more than the products around it.

    Four draws share a 64-bit random number, so p is rounded to a multiple of 2^-16.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():  # compilers know `dropout`, and not these draws
            return F.dropout(x, self.p)
        dropped = round(self.p * 2**16)
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = draws.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 2**15
        return x * kept.to(x.dtype).mul_(2**16 / (2**16 - dropped))


@dataclass(frozen=True, eq=False)
class Means(Ragged):
    """The means of the rows of items, centred and scaled: one vector for each item that has rows."""

    centre: Tensor
    """[D_in], subtracted from all means."""
    length: Tensor
    """A number, by which they are divided then."""


def centred_means(rows: Ragged) -> Means:
    """Of the frozen embeddings of items: centred over the items that have rows, of mean length 1; `Means` as they are.

    Encoders differ in length and offset (pooled layers of an image network have no negative values). Of mean length 1,
    a weight of N(0, 0.02) gives every modality the scale of an ID embedding.
    """
    if isinstance(rows, Means):
        return rows
    values, offsets = rows.values, rows.offsets
    present = offsets.diff() > 0
    order = torch.arange(len(values), device=values.device)
    means = F.embedding_bag(order, values, offsets[:-1][present], mode="mean")
    centre = means.mean(dim=0)
    means = means - centre
    length = means.norm(dim=1).mean().clamp(min=1e-12)  # if all items have the same vector, all means are 0
    return Means(means / length, F.pad(present.long().cumsum(0), (1, 0)), centre, length)


class ItemMeans(ItemFeatures):
    """One frozen vector per item in one modality, its `centred_means`; an item without rows has none."""

    _applied: Tensor

    def __init__(self, rows: Ragged) -> None:
        means = centred_means(rows)
        super().__init__(means)
        self._embeddings = rows
        # parameters without a gradient: checkpoints and models that continue from this one keep them with the weights
        self.centre = nn.Parameter(means.centre, requires_grad=False)  # [D_in]
        self.length = nn.Parameter(means.length, requires_grad=False)
        self.register_buffer("_applied", self._measures(), persistent=False)

    @property
    def source(self) -> Ragged:
        return self._embeddings

    def update(self) -> None:
        """Centre and scale again if `centre` and `length` were replaced by those of other items."""
        if not torch.equal(self._applied, self._measures()):
            with torch.no_grad():
                self.values = (self.values * self._applied[-1] + self._applied[:-1] - self.centre) / self.length
            self._applied = self._measures()

    def _measures(self) -> Tensor:
        """A copy of centre and length: [D_in + 1]."""
        return torch.cat([self.centre, self.length.reshape(1)]).detach()


class ItemCategories(ItemFeatures):
    """The category numbers of N items, `rows` int64 [R]; an item may have none, one or several of the A categories."""

    def __init__(self, rows: Ragged, n_categories: int) -> None:
        super().__init__(rows)
        self.n_categories = n_categories

    def labels(self, items: Tensor) -> Tensor:
        """1 where the item has the category, else 0: items [P] to float [P, A]."""
        numbers, lengths = self(items)
        row = torch.repeat_interleave(torch.arange(len(items), device=items.device), lengths)
        labels = torch.zeros(len(items), self.n_categories, device=items.device)
        return labels.index_put((row, numbers), labels.new_ones(()))

    def sums(self, embedding: Tensor, items: Tensor | None = None) -> Tensor:
        """The sum of the category embeddings [A, D] of each of `items` [N] (None: of all): [N, D], of none zeros."""
        numbers, lengths = self(items)
        return F.embedding_bag(numbers, embedding, lengths.cumsum(0) - lengths, mode="sum")


def update_features(model: nn.Module) -> None:
    """Compute item features again whose parameters have changed."""
    for module in model.modules():
        if isinstance(module, ItemFeatures):
            module.update()


def fill_missing(present: Tensor, lengths: Tensor, missing: Tensor) -> Tensor:
    """`present` [n, D] for the items with rows (`lengths` [N] > 0) and `missing` [D] for the others: [N, D]."""
    return scatter(present, lengths.nonzero().squeeze(1), len(lengths), missing)


def scatter(vectors: Tensor, places: Tensor, size: int, other: Tensor) -> Tensor:
    """`vectors` [n, D] at `places` [n], and `other` [D] elsewhere: [size, D]."""
    return other.to(vectors.dtype).expand(size, -1).index_copy(0, places, vectors)


def take(table: Tensor, rows: Tensor) -> Tensor:
    """`table[rows]` for a trained table [N, ...] and int64 rows [...], by an embedding look-up.

    Its gradient adds up repeated rows in a fixed order, that of indexing in the order in which threads reach them. So
    results are bit-identical on several threads; it is also faster.
    """
    return F.embedding(rows, table.flatten(1)).view(*rows.shape, *table.shape[1:])


def at_last(hidden: Tensor, lengths: Tensor) -> Tensor:
    """The vector at the last position of each history: [B, L, D], lengths [B] to [B, D]."""
    return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]


def first_occurrence(histories: Tensor) -> Tensor:
    """Whether an item occurs for the first time in its history: int64 [B, L] to bool [B, L]."""
    same = histories.unsqueeze(2) == histories.unsqueeze(1)  # [B, L, L]
    return ~same.tril(-1).any(dim=2)


def initialise(module: nn.Module) -> None:
    """Weights from N(0, 0.02) and biases of 0, as in the code of MSM4SR and SASRec: `model.apply(initialise)`."""
    if isinstance(module, ItemTable):
        module.draw(0.02)
    elif isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
