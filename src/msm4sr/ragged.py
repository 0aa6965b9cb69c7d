"""Rows of different lengths, stored in two arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = Any  # numpy.ndarray or torch.Tensor


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of any lengths, one after another: row i is `values[offsets[i]:offsets[i + 1]]`.

    Used for histories (item numbers), categories and features (vectors), as numpy arrays or as tensors.

    Attributes:
        values: the rows, concatenated: [total, ...].
        offsets: int64 [rows + 1], ascending from 0 to total.
    """

    values: Array
    offsets: Array

    @staticmethod
    def from_lengths(values: Array, lengths: Array) -> Ragged:
        """Concatenated rows [total, ...] and the length of each [rows] (numpy only)."""
        return Ragged(values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    @staticmethod
    def from_rows(rows: Iterable[Sequence[float]], dtype: npt.DTypeLike) -> Ragged:
        """Rows of numbers, as a numpy array of `dtype`."""
        rows = list(rows)
        values = np.array([value for row in rows for value in row], dtype=dtype)
        return Ragged.from_lengths(values, np.array([len(row) for row in rows], dtype=np.int64))

    def __len__(self) -> int:
        return int(self.offsets.shape[0]) - 1

    def __getitem__(self, row: int) -> Array:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[Array]:
        return (self[row] for row in range(len(self)))

    @property
    def lengths(self) -> Array:
        """int64 [rows]."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def row_numbers(self) -> Array:
        """The row that each value belongs to: int64 [total] (numpy only)."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def take(self, rows: npt.NDArray[Any]) -> Ragged:
        """The rows of these numbers, in this order: int [any] (numpy only)."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]  # not of all rows: `rows` may be few of many
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return Ragged.from_lengths(self.values[np.repeat(self.offsets[rows], lengths) + within], lengths)

    def keep(self, kept: npt.NDArray[np.bool_]) -> Ragged:
        """The same rows with only the flagged values: bool [total] (numpy only)."""
        return Ragged.from_lengths(self.values[kept], np.bincount(self.row_numbers[kept], minlength=len(self)))
