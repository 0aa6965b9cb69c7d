from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from msm4sr.data.schema import ITEM_COLUMNS, read_interactions, read_items
from msm4sr.errors import InputError

LOG: dict[str, Any] = {"user_id": ["u", "u", "v"], "item_id": ["a", "b", "a"], "timestamp": [3, 1, 2]}


def log(folder: Path, **columns: Any) -> Path:
    """Interactions of three rows with some columns replaced; None removes one."""
    replaced = {name: values for name, values in {**LOG, **columns}.items() if values is not None}
    pl.DataFrame(replaced).write_parquet(folder / "interactions.parquet")
    return folder


def catalogue(folder: Path, **columns: Any) -> Path:
    log(folder)
    pl.DataFrame({"item_id": ["a", "b", "c"], **columns}).write_parquet(folder / "items.parquet")
    return folder


# Interactions


def test_interactions_keep_the_order_of_the_file_and_other_columns_are_dropped(tmp_path: Path) -> None:
    frame = read_interactions(log(tmp_path, rating=[1.0, 2.0, 3.0], position=[0, 1, 0]))
    assert frame.schema == {"user_id": pl.String, "item_id": pl.String, "order": pl.Int64}
    assert frame.rows() == [("u", "a", 3), ("u", "b", 1), ("v", "a", 2)]


def test_position_is_the_order_where_there_is_no_timestamp(tmp_path: Path) -> None:
    position = pl.Series([4, 0, 2], dtype=pl.Int32)
    frame = read_interactions(log(tmp_path, timestamp=None, position=position))
    assert frame["order"].to_list() == [4, 0, 2]


def test_integer_ids_become_strings(tmp_path: Path) -> None:
    frame = read_interactions(log(tmp_path, user_id=[7, 7, 8], item_id=pl.Series([1, 2, 1], dtype=pl.UInt16)))
    assert frame["user_id"].to_list() == ["7", "7", "8"]
    assert frame["item_id"].to_list() == ["1", "2", "1"]


def test_categorical_ids_become_strings(tmp_path: Path) -> None:
    frame = read_interactions(log(tmp_path, item_id=pl.Series(["b", "a", "b"], dtype=pl.Categorical)))
    assert frame["item_id"].to_list() == ["b", "a", "b"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": None}, r"no column 'user_id'; the file has: item_id, timestamp"),
        ({"item_id": None, "itemid": ["a"] * 3}, r"no column 'item_id'.*did you mean 'itemid'"),
        ({"item_id": None, "Item_ID": ["a"] * 3}, r"no column 'item_id'.*did you mean 'Item_ID'"),
        ({"timestamp": None}, r"'timestamp' \(seconds\) nor 'position'.*the file has: user_id, item_id"),
        ({"user_id": ["u", None, "v"]}, r"column 'user_id', row 2: null"),
        ({"user_id": [None] * 3}, r"column 'user_id', row 1: null"),
        ({"item_id": ["a", "b", ""]}, r"column 'item_id', row 3: empty"),
        ({"item_id": [1.0, 2.0, 3.0]}, r"column 'item_id' is Float64; an ID is a string"),
        ({"item_id": [["a"], ["b"], ["c"]]}, r"column 'item_id' is List\(String\); an ID is a string"),
        ({"timestamp": [1, None, 2]}, r"column 'timestamp', row 2: null"),
        ({"timestamp": [None] * 3}, r"column 'timestamp', row 1: null"),
        ({"timestamp": [1, 1_600_000_000_000, 2]}, r"column 'timestamp', row 2: 1600000000000 is after the year 9999"),
        ({"timestamp": [1, 2, -5]}, r"column 'timestamp', row 3: -5; it should be 0 or more"),
        ({"timestamp": pl.Series([1, 2**63, 2], dtype=pl.UInt64)}, r"column 'timestamp', row 2: 9223372036854775808"),
        (
            {"timestamp": ["1", "2", "soon"]},
            r"column 'timestamp' is String; it should be int64, seconds.*row 3: 'soon'",
        ),
        ({"timestamp": ["1", "2", "3"]}, r"column 'timestamp' is String;.*every row would convert"),
        ({"timestamp": [1.0, 2.5, 3.0]}, r"column 'timestamp' is Float64;.*does not convert is row 2: 2.5"),
        ({"timestamp": [1.0, 2.0, float("nan")]}, r"column 'timestamp' is Float64;.*row 3: nan"),
        ({"timestamp": [True, False, True]}, r"column 'timestamp' is Boolean; it should be int64"),
        ({"Timestamp": [3, 2, 1]}, r"columns 3 and 4 are both named 'timestamp' and 'Timestamp'; rename one"),
        ({"file_row_number": [0, 1, 2]}, r"column 'file_row_number' has a reserved name; rename or drop it"),
        ({"timestamp": None, "position": ["x"] * 3}, r"column 'position' is String; it should be int32.*row 1"),
    ],
)
def test_wrong_interactions_are_named(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"{tmp_path.name}/interactions\.parquet: .*{message}"):
        read_interactions(log(tmp_path, **columns))


def test_interactions_without_rows_are_an_error(tmp_path: Path) -> None:
    pl.DataFrame(LOG).clear().write_parquet(tmp_path / "interactions.parquet")
    with pytest.raises(InputError, match=r"interactions\.parquet: no rows"):
        read_interactions(tmp_path)


def test_a_missing_folder_a_file_in_its_place_and_missing_interactions_are_errors(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, message in [
        (tmp_path / "nowhere", "nowhere: no such folder"),
        (tmp_path / "file", "file: is a file, not a folder"),
        (tmp_path, r"interactions\.parquet: no such file"),
    ]:
        with pytest.raises(InputError, match=message):
            read_interactions(path)
        with pytest.raises(InputError, match=message):
            read_items(path)


@pytest.mark.parametrize("content", [b"", b"user_id,item_id\nu,a\n", b"PAR1" + b"\0" * 40 + b"PAR1"])
def test_a_file_that_is_no_parquet_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "interactions.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"interactions\.parquet: cannot be read as a parquet file"):
        read_interactions(tmp_path)


def test_a_truncated_parquet_is_an_error(tmp_path: Path) -> None:
    path = log(tmp_path) / "interactions.parquet"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match="cannot be read as a parquet file"):
        read_interactions(tmp_path)


def test_wildcards_in_a_folder_name_are_literal(tmp_path: Path) -> None:
    folder = tmp_path / "a[bc]*=1"
    folder.mkdir()
    assert len(read_interactions(log(folder))) == 3


# Items


def test_every_column_exists_and_is_null_where_the_file_lacks_it(tmp_path: Path) -> None:
    frame = read_items(catalogue(tmp_path, title=["A", None, "C"], brand=["x", "y", "z"]))
    assert frame.schema == ITEM_COLUMNS
    assert frame["title"].to_list() == ["A", None, "C"]
    assert frame["text"].null_count() == frame["categories"].null_count() == frame["image"].null_count() == 3


def test_a_single_image_becomes_a_list_of_one(tmp_path: Path) -> None:
    frame = read_items(catalogue(tmp_path, image=["images/a.jpg", None, ""]))
    assert frame["image"].to_list() == [["images/a.jpg"], None, None]


def test_lists_stay_and_what_is_empty_becomes_null(tmp_path: Path) -> None:
    several = [["1.jpg", "2.jpg"], [], ["", None]]
    frame = read_items(catalogue(tmp_path, image=several, categories=[["x", ""], None, []], text=["", "t", " "]))
    assert frame["image"].to_list() == [["1.jpg", "2.jpg"], None, None]
    assert frame["categories"].to_list() == [["x"], None, None]
    assert frame["text"].to_list() == [None, "t", " "]


def test_a_column_of_nulls_has_the_right_type(tmp_path: Path) -> None:
    frame = read_items(catalogue(tmp_path, title=[None] * 3, image=[None] * 3, categories=[[], [], []]))
    assert frame.schema == ITEM_COLUMNS


def test_without_a_catalogue_the_items_are_those_of_the_interactions(tmp_path: Path) -> None:
    frame = read_items(log(tmp_path, item_id=["z", "b", "z"]))
    assert frame.schema == ITEM_COLUMNS
    assert frame["item_id"].to_list() == ["z", "b"]
    assert frame["text"].null_count() == 2


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item_id": ["a", "b", "a"]}, r"column 'item_id', rows 1 and 3: both are 'a'"),
        ({"item_id": ["a", None, "c"]}, r"column 'item_id', row 2: null"),
        ({"item_id": ["a", "b", ""]}, r"column 'item_id', row 3: empty"),
        ({"title": [1, 2, 3]}, r"column 'title' is Int64; it should be a string"),
        ({"text": [["a"], ["b"], ["c"]]}, r"column 'text' is List\(String\); it should be a string"),
        ({"categories": ["a|b", "c", "d"]}, r"column 'categories' is String; it should be a list of strings"),
        ({"image": [1.0, 2.0, 3.0]}, r"column 'image' is Float64; it should be a string or a list"),
        ({"image": [[1], [2], [3]]}, r"column 'image' is List\(Int64\); it should be a string or a list"),
    ],
)
def test_a_wrong_catalogue_is_named(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"items\.parquet: {message}"):
        read_items(catalogue(tmp_path, **columns))


def test_a_catalogue_without_ids_or_rows_is_an_error(tmp_path: Path) -> None:
    log(tmp_path)
    pl.DataFrame({"id": ["a"]}).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(InputError, match=r"items\.parquet: no column 'item_id'; the file has: id"):
        read_items(tmp_path)
    pl.DataFrame({"item_id": ["a"]}).clear().write_parquet(tmp_path / "items.parquet")
    with pytest.raises(InputError, match=r"items\.parquet: no rows"):
        read_items(tmp_path)
