"""Rows of different lengths, stored in two arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np
import numpy.typing as npt
from typing_extensions import TypeVar

Array = TypeVar("Array", default=Any)  # numpy.ndarray or torch.Tensor
NumpyArray = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Ragged(Generic[Array]):
    """Rows of any lengths, one after another: row i is `values[offsets[i]:offsets[i + 1]]`.

    Used for histories (item numbers), categories and features (vectors), as numpy arrays or as tensors.

    Attributes:
        values: the rows, concatenated: [total, ...].
        offsets: int64 [rows + 1], ascending from 0 to total.
    """

    values: Array
    offsets: Array

    @classmethod
    def from_lengths(cls, values: NumpyArray, lengths: NumpyArray) -> Ragged[NumpyArray]:
        """Concatenated rows [total, ...] and the length of each [rows]."""
        return Ragged(values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[float]], dtype: npt.DTypeLike) -> Ragged[NumpyArray]:
        """Rows of numbers, as an array of `dtype`."""
        rows = list(rows)
        values = np.array([value for row in rows for value in row], dtype=dtype)
        return Ragged.from_lengths(values, np.array([len(row) for row in rows], dtype=np.int64))

    def __len__(self) -> int:
        offsets: Any = self.offsets
        return int(offsets.shape[0]) - 1

    def __getitem__(self, row: int) -> Array:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        values: Any = self.values
        offsets: Any = self.offsets
        return values[offsets[row] : offsets[row + 1]]  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[Array]:
        return (self[row] for row in range(len(self)))

    @property
    def lengths(self) -> Array:
        """int64 [rows]."""
        offsets: Any = self.offsets
        return offsets[1:] - offsets[:-1]  # type: ignore[no-any-return]

    @property
    def row_numbers(self) -> NumpyArray:
        """The row that each value belongs to: int64 [total] (numpy only)."""
        lengths: Any = self.lengths
        return np.asarray(np.repeat(np.arange(len(self)), lengths))

    def take(self, rows: NumpyArray) -> Ragged[NumpyArray]:
        """The rows of these numbers, in this order: int [any] (numpy only)."""
        values: Any = self.values
        offsets: Any = self.offsets
        lengths = np.diff(offsets)[rows]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return Ragged.from_lengths(values[np.repeat(offsets[rows], lengths) + within], lengths)

    def keep(self, kept: npt.NDArray[np.bool_]) -> Ragged[NumpyArray]:
        """The same rows with only the flagged values: bool [total] (numpy only)."""
        values: Any = self.values
        return Ragged.from_lengths(values[kept], np.bincount(self.row_numbers[kept], minlength=len(self)))
