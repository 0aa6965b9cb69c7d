"""Precomputed embeddings: what is read, what is an error and what the message says."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from msm4sr.data.dataset import Dataset
from msm4sr.errors import InputError
from msm4sr.features.extract import extract_features
from msm4sr.features.extractors.precomputed import read_embeddings
from msm4sr.features.store import Features, read_manifest, read_missing
from msm4sr.ragged import Ragged

IDS = ["a", "b", "c", "d"]
STORE = "audio-precomputed"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "msm4sr")
    return caplog


def extract(file: Path, out: Path, ids: list[str] = IDS) -> Features:
    """The features of the modality "audio", for items without texts and images."""
    columns = ("title", "text", "image")
    items = pl.DataFrame({"item_id": ids}).with_columns(pl.lit(None, pl.String).alias(name) for name in columns)
    histories = Ragged(np.array([0, 1, 2], np.int32), np.array([0, 3]))
    dataset = Dataset(out, ["u"], ids, histories, items, {})
    return extract_features(dataset, out, precomputed={"text": file, "visual": file, "audio": file})["audio"]


def write(folder: Path, vectors: Any, ids: list[Any] | None = None, dtype: Any = None) -> Path:
    file = folder / "vectors.parquet"
    names = ids if ids is not None else IDS[: len(vectors)]
    pl.DataFrame({"item_id": names, "vector": pl.Series(vectors, dtype=dtype)}).write_parquet(file)
    return file


@pytest.mark.parametrize(
    ("vectors", "dtype"),
    [
        ([[1.0, 2.0], [3.0, 4.0]], None),
        ([[1.0, 2.0], [3.0, 4.0]], pl.List(pl.Float32)),
        ([[1, 2], [3, 4]], pl.List(pl.Int16)),
        ([[1.0, 2.0], [3.0, 4.0]], pl.Array(pl.Float32, 2)),
        ([[[1.0, 2.0]], [[3.0, 4.0]]], None),
        ([[[1.0, 2.0]], [[3.0, 4.0]]], pl.List(pl.Array(pl.Float64, 2))),
        ([[[1.0, 2.0]], [[3.0, 4.0]]], pl.Array(pl.Float32, (1, 2))),
    ],
)
def test_lists_and_arrays_of_numbers_are_read(tmp_path: Path, vectors: Any, dtype: Any) -> None:
    ids, rows = read_embeddings(write(tmp_path, vectors, dtype=dtype))
    assert (ids, rows.lengths.tolist()) == (["a", "b"], [1, 1])
    assert rows.values.dtype == np.float32
    assert rows.values.tolist() == [[1, 2], [3, 4]]


def test_an_item_may_have_several_rows_or_none(tmp_path: Path) -> None:
    file = write(tmp_path, [[[1.0, 2.0], [3.0, 4.0]], [], None, [[5.0, 6.0]]])
    features = extract(file, tmp_path)
    assert features.offsets.tolist() == [0, 2, 2, 2, 3]
    assert np.array_equal(features.values, [[1, 2], [3, 4], [5, 6]])
    missing = read_missing(tmp_path / STORE)
    assert missing.select("item", "item_id", "reason").rows() == [
        (1, "b", "no embedding in the file"),
        (2, "c", "no embedding in the file"),
    ]


def test_rows_follow_the_items_of_the_data_whatever_the_order_of_the_file(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path, [[[1.0], [2.0]], [[3.0]], [[4.0], [5.0]], [[6.0]]], ["d", "x", "a", "y"])
    features = extract(file, tmp_path)
    assert features.offsets.tolist() == [0, 2, 2, 2, 4]
    assert features.values.ravel().tolist() == [4, 5, 1, 2]
    assert f"audio: 2 of 4 lines of {file} name no item of the data and are ignored" in log.text


def test_a_file_is_read_once_and_again_when_it_or_the_items_change(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    file, folder = write(tmp_path, [[1.0], [2.0]]), tmp_path / STORE
    extract(file, tmp_path)
    log.clear()
    extract(file, tmp_path)
    assert log.text == ""
    extract(file, tmp_path, IDS[::-1])
    assert f"{folder.name}: 0 of 4 items are new or changed" in log.text
    write(tmp_path, [[1.0], [5.0]])
    assert extract(file, tmp_path).values.ravel().tolist() == [1, 5]
    assert f"{folder}: encoder changed since this was extracted; extracting again" in log.text
    manifest = read_manifest(folder)
    assert manifest is not None
    assert (manifest["modality"], manifest["kind"], manifest["encoder"]["name"]) == ("audio", "precomputed", file.name)


@pytest.mark.parametrize(
    ("vectors", "ids", "said"),
    [
        ([[1.0, 2.0], [3.0]], None, "column 'vector', row 2 (item 'b'): its length is 1, but that of row 1 is 2"),
        ([[1.0], [2.0, 3.0, 4.0]], None, "row 2 (item 'b'): its length is 3, but that of row 1 is 1"),
        ([[], [1.0]], None, "row 1 (item 'a'): its length is 0, but a vector has at least one number"),
        ([None, [1.0, float("nan")]], None, "row 2 (item 'b'): a number is null, NaN, infinite"),
        ([[1.0], [2.0], [float("inf")]], None, "row 3 (item 'c'): a number is null, NaN"),
        ([[1.0], [1e300]], None, "row 2 (item 'b'): a number is null, NaN, infinite, or too large"),
        ([[1.0], [None]], None, "row 2 (item 'b'): a number is null"),
        ([[[1.0]], [[1.0], None]], None, "row 2 (item 'b'): one of its vectors is null"),
        ([[[1.0, 2.0]], [[1.0, 2.0], [1.0]]], None, "row 2 (item 'b'): its length is 1, but that of row 1 is 2"),
        ([[1.0], [2.0], [3.0]], ["a", "b", "a"], "column 'item_id', row 3 (item 'a'): row 1 has the same id"),
        ([[1.0], [2.0]], ["a", None], "column 'item_id', row 2: null"),
        ([["x"], ["y"]], None, "column 'vector' holds List(String); it should hold a list of numbers"),
        ([1.0, 2.0], None, "column 'vector' holds Float64; it should hold a list of numbers"),
        ([[[[1.0]]]], None, "it should hold a list of numbers, or a list of such lists"),
        ([[1.0]], [1.5], "column 'item_id' holds Float64; it should hold text"),
        ([], [], "no rows"),
        ([[1.0]], ["A-1"], "none of its 1 item_ids is in the data: they look like 'A-1', those of the data like 'a'"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_row(
    tmp_path: Path, vectors: Any, ids: list[Any] | None, said: str
) -> None:
    file = write(tmp_path, vectors, ids, None if vectors else pl.List(pl.Float64))
    if ids == []:
        pl.DataFrame(schema={"item_id": pl.String, "vector": pl.List(pl.Float64)}).write_parquet(file)
    with pytest.raises(InputError) as caught:
        extract(file, tmp_path)
    assert str(caught.value).startswith(f"{file}: ")
    assert said in str(caught.value)
    assert not (tmp_path / STORE).exists()


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    for name, content, said in (
        ("none.parquet", None, "cannot be read"),
        ("text.parquet", b"item_id,vector\n", "not a Parquet file"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=said) as caught:
            extract(tmp_path / name, tmp_path)
        assert str(tmp_path / name) in str(caught.value)
    pl.DataFrame({"id": ["a"], "vector": [[1.0]]}).write_parquet(tmp_path / "columns.parquet")
    with pytest.raises(InputError, match="no column 'item_id'; the file has: id, vector"):
        read_embeddings(tmp_path / "columns.parquet")
