"""Rows of different lengths, stored in two arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic

from typing_extensions import TypeVar

Array = TypeVar("Array", default=Any)  # numpy.ndarray or torch.Tensor


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

    def __len__(self) -> int:
        return int(self.offsets.shape[0]) - 1  # type: ignore[attr-defined]

    def __getitem__(self, row: int) -> Array:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self.values[self.offsets[row] : self.offsets[row + 1]]  # type: ignore[index, no-any-return]

    def __iter__(self) -> Iterator[Array]:
        return (self[row] for row in range(len(self)))

    @property
    def lengths(self) -> Array:
        """int64 [rows]."""
        return self.offsets[1:] - self.offsets[:-1]  # type: ignore[index, no-any-return]
