"""Which items a step encodes and where their feature rows are: made on the host, so that no GPU has to be waited for.

How many items and rows a step reads depends on the data. On a GPU, `nonzero`, `unique` or `repeat_interleave` would
stop the host until the device has counted. Here they are computed from item numbers before the step; the step itself
only gathers and multiplies, and with padding its shapes are among a few, for which it can be compiled.

Shape letters: N items, R feature rows of those items, N' <= N items that have rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Value = TypeVar("Value")


def padded_size(size: int) -> int:
    """The next power of two: padded tensors have one of a few sizes."""
    return 1 << max(0, size - 1).bit_length()


def pad_end(values: Tensor, size: int, value: float = 0) -> Tensor:
    """`values` [n] with `value` behind them: [size]."""
    return F.pad(values, (0, size - len(values)), value=value)


@dataclass(frozen=True)
class Limits:
    """The largest sizes of a batch, which padding need not exceed."""

    pairs: int
    history: int

    def pad_pairs(self, histories: Tensor, pairs: Tensor) -> tuple[tuple[int, int], Tensor]:
        """The padded shape of `histories` [B, L], and the positions of `pairs` [P] in it, padded with position 0.

        The number of pairs changes little, so it is always the largest.
        """
        rows, width = histories.shape
        shape = padded_size(rows), min(padded_size(width), self.history)
        return shape, pad_end(pairs // width * shape[1] + pairs % width, self.pairs)


def pad_slots(values: Tensor, shape: tuple[int, int]) -> Tensor:
    """[B, L] to `shape`, with zeros behind and below."""
    return F.pad(values, (0, shape[1] - values.shape[1], 0, shape[0] - len(values)))


# The classes are not frozen: Lightning Fabric cannot convert frozen dataclasses in mixed precision.


@dataclass
class Segments:
    """Which of R consecutive rows belong to which of N items."""

    items: int
    """N."""
    present: Tensor | None = None
    """int64 [N'], the items that have rows; None: all of them."""
    item: Tensor | None = None
    """int64 [R], the place of each row's item among those that have rows; None: each has one row."""
    slot: Tensor | None = None
    """int64 [R], the place of each row within its item."""
    starts: Tensor | None = None
    """int64 [N'], the first row of each item that has rows."""
    longest: int = 1
    """The largest number of rows of an item."""

    @classmethod
    def of(cls, lengths: Tensor, missing: bool = True, several: bool = True) -> Segments:
        """Items with `lengths` [N] rows. An item may have none unless not `missing`, or two unless not `several`."""
        result = cls(len(lengths))
        if missing:
            result.present = lengths.nonzero().squeeze(1)
            lengths = lengths[result.present]
        if several:
            places = torch.arange(len(lengths), device=lengths.device)
            result.starts = lengths.cumsum(0) - lengths
            result.item = torch.repeat_interleave(places, lengths)
            result.slot = torch.arange(len(result.item), device=lengths.device) - result.starts[result.item]
            result.longest = int(lengths.max()) if len(lengths) else 1
        return result

    def pad(self, items: int, rows: int) -> tuple[Segments, int]:
        """For `items` items, more than N unless all have rows, with R = `rows`; and how many rows that makes.

        Every row of the padding belongs to an item of the padding; where several have the same place, their values are
        the same or are not used.
        """
        if self.present is None and self.item is None:
            return Segments(items), items
        n_present = self.items if self.present is None else len(self.present)
        padded_present = items if self.present is None else padded_size(n_present + 1)
        present = None if self.present is None else pad_end(self.present, padded_present, items - 1)
        if self.item is None or self.slot is None or self.starts is None:
            return Segments(items, present), padded_present
        size = padded_size(rows + padded_present - n_present)
        last = torch.arange(n_present, n_present + size - rows).clamp(max=padded_present - 1)
        starts = torch.cat([self.starts, rows + torch.arange(padded_present - n_present)])
        item, slot = torch.cat([self.item, last]), pad_end(self.slot, size)
        return Segments(items, present, item, slot, starts, padded_size(self.longest)), size


@dataclass
class FeatureRows:
    """The feature rows of some items in one modality."""

    rows: Tensor
    """int64 [R], as numbers of the rows of all items."""
    segments: Segments

    def pad(self, items: int) -> FeatureRows:
        """For so many items; rows of the padding are row 0."""
        segments, size = self.segments.pad(items, len(self.rows))
        return FeatureRows(pad_end(self.rows, size), segments)


@dataclass
class LocatedItems:
    """Some items of the catalogue, and where a model finds their features."""

    numbers: Tensor
    """int64 [n], distinct and ascending; padding is item 0."""
    features: Mapping[str, FeatureRows] = field(default_factory=dict)
    """By modality; empty for models that need none."""

    def pad(self) -> LocatedItems:
        """The same items, and at least one more."""
        size = padded_size(len(self.numbers) + 1)
        return LocatedItems(pad_end(self.numbers, size), {a: rows.pad(size) for a, rows in self.features.items()})


def map_tensors(value: Value, function: Callable[[Tensor], Tensor]) -> Value:
    """A value with each tensor in it replaced, in dataclasses and mappings at any depth."""
    result: Any = value
    if isinstance(value, Tensor):
        result = function(value)
    elif isinstance(value, Mapping):
        result = {key: map_tensors(part, function) for key, part in value.items()}
    elif is_dataclass(value) and not isinstance(value, type):
        parts = {part.name: getattr(value, part.name) for part in fields(value)}
        result = type(value)(**{name: map_tensors(part, function) for name, part in parts.items()})
    return result  # type: ignore[no-any-return]


def to_device(value: Value, device: torch.device) -> Value:
    """All tensors of a value on a device; a copy to a GPU is from pinned memory and is not waited for."""
    if device.type == "cuda":
        return map_tensors(value, lambda t: t if t.is_cuda else t.pin_memory().to(device, non_blocking=True))
    return map_tensors(value, lambda tensor: tensor.to(device))
