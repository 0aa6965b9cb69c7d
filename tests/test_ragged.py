"""Rows of different lengths, in two arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from msm4sr.ragged import Ragged

ROWS = st.lists(st.lists(st.integers(-5, 5), max_size=4), max_size=6)


@given(ROWS)
def test_rows_come_back_as_they_were(rows: list[list[int]]) -> None:
    ragged = Ragged.from_rows(rows, np.int32)
    assert len(ragged) == len(rows)
    assert [row.tolist() for row in ragged] == rows
    assert ragged.lengths.tolist() == [len(row) for row in rows]
    assert ragged.row_numbers.tolist() == [number for number, row in enumerate(rows) for _ in row]
    assert (ragged.values.dtype, ragged.offsets.dtype) == (np.int32, np.int64)


@given(ROWS)
def test_keep_filters_values_and_keeps_rows(rows: list[list[int]]) -> None:
    ragged = Ragged.from_rows(rows, np.int32)
    kept = ragged.keep(ragged.values > 0)
    assert [row.tolist() for row in kept] == [[value for value in row if value > 0] for row in rows]


def test_rows_of_vectors() -> None:
    vectors = np.arange(6.0).reshape(3, 2)
    ragged = Ragged.from_lengths(vectors, np.array([2, 0, 1]))
    assert [row.shape for row in ragged] == [(2, 2), (0, 2), (1, 2)]
    assert ragged[2].tolist() == [[4.0, 5.0]]


def test_tensors() -> None:
    ragged = Ragged(torch.tensor([1, 2, 3]), torch.tensor([0, 1, 1, 3]))
    assert [row.tolist() for row in ragged] == [[1], [], [2, 3]]
    assert ragged.lengths.tolist() == [1, 0, 2]


def test_a_row_that_does_not_exist_is_an_index_error() -> None:
    ragged = Ragged.from_rows([[1, 2]], np.int32)
    for wrong in (1, -1):
        with pytest.raises(IndexError, match=f"row {wrong} of 1"):
            ragged[wrong]
