"""Values of tables that are parsed or refused with their place: names of columns, lists, nested columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from msm4sr.data.preparation.lists import split_list
from msm4sr.data.preparation.pipeline import prepare
from msm4sr.data.sources.recbole import RecBole
from msm4sr.data.sources.tables import Tables
from msm4sr.errors import InputError

LOG = "user_id,item_id,timestamp\nu,a,1600000000\n"


def categories(folder: Path, items: str | pl.DataFrame, **settings: Any) -> list[list[str] | None]:
    """The categories of a catalogue in CSV or Parquet once it is prepared."""
    (folder / "log.csv").write_text(LOG)
    path = folder / ("items.csv" if isinstance(items, str) else "items.parquet")
    path.write_text(items) if isinstance(items, str) else items.write_parquet(path)
    report = prepare(Tables(interactions=folder / "log.csv", items=path, **settings), folder / "out")
    (folder / "notes").write_text("\n".join(report.notes))
    result: list[list[str] | None] = pl.read_parquet(folder / "out" / "items.parquet")["categories"].to_list()
    return result


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("item_id,title,title", "columns 2 and 3 are both named 'title'"),
        ("item_id,title,text, title ", "columns 2 and 4 are both named 'title'"),
        ('item_id,"title",x,title', "columns 2 and 4 are both named 'title'"),
    ],
)
def test_two_columns_of_one_name_are_refused(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"items\.csv: {message}; rename one"):
        categories(tmp_path, header + "\na" + "," * header.count(",") + "\n")


def test_names_of_columns_are_stripped_and_empty_ones_ignored(tmp_path: Path) -> None:
    assert categories(tmp_path, ", item_id , categories,\n0,a,x|y,\n") == [["x", "y"]]


def test_two_columns_of_one_name_in_an_atomic_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.inter").write_text("user_id:token\titem_id:token\tuser_id:float\nu\ti\t3\n")
    with pytest.raises(InputError, match=r"x\.inter: columns 1 and 3 are both named 'user_id'"):
        prepare(RecBole(inter=tmp_path), tmp_path / "out")


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("['toys', 'kind, 0']", ["toys", "kind, 0"]),
        ('["toys", "a|b"]', ["toys", "a|b"]),
        ("['toys' 'kind 0'\n \"it's\"]", ["toys", "kind 0", "it's"]),  # numpy
        ("('toys', 'kind0')", ["toys", "kind0"]),
        ("[1, 2]", ["1", "2"]),
        ("['a', None]", ["a"]),
        ("[]", None),
        ("(no genres listed)", ["(no genres listed)"]),
        ("(a)|(b)", ["(a)", "(b)"]),
        ("[a] | [b]", ["[a]", "[b]"]),
        ("a [b]| c ", ["a [b]", "c"]),
        (" ", None),
    ],
)
def test_a_list_written_as_text_is_read(cell: str, expected: list[str] | None) -> None:
    assert split_list(cell, "|") == expected


@pytest.mark.parametrize(
    "cell", ["[[1], [2]]", "[{'id': 1, 'name': 'x'}]", "{'a': 1}", "{a,b}", "[a, b]", "['a', 'b", "[1.5]", "[true]"]
)
def test_what_seems_to_be_a_list_and_is_none_is_refused_with_its_row(tmp_path: Path, cell: str) -> None:
    with pytest.raises(InputError, match=r"items\.csv: column 'categories', data row 2: .*separate the values by '\|'"):
        categories(tmp_path, f'item_id,categories\na,x\nb,"{cell}"\n')


def test_a_list_in_an_atomic_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.inter").write_text("user_id:token\titem_id:token\nu\ti\n")
    (tmp_path / "x.item").write_text("item_id:token\tgenre:token_seq\ni\t['Film Noir', 'War']\n")
    prepare(RecBole(inter=tmp_path), tmp_path / "out")
    assert pl.read_parquet(tmp_path / "out" / "items.parquet")["categories"].to_list() == [["Film Noir", "War"]]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ([["x"], ["y"]], "List"),
        ({"name": "x"}, "Struct"),
        ([{"key": "x", "value": 1}], "List"),
        ([1.5], "List"),
        (1.5, "Float64"),
        (True, "Boolean"),
        (b"x", "Binary"),
    ],
)
def test_nested_categories_and_those_that_are_no_text_are_refused(tmp_path: Path, value: Any, kind: str) -> None:
    items = pl.DataFrame({"item_id": ["a"], "categories": [value]})
    with pytest.raises(InputError, match=rf"items\.parquet: column 'categories' is {kind}.*Write the names only"):
        categories(tmp_path, items)


def test_numbers_and_fixed_lists_are_categories(tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": ["a", "b"], "categories": [[1, 2], [3, 4]]})
    fixed = items.with_columns(pl.col("categories").cast(pl.Array(pl.Int64, 2)))
    assert categories(tmp_path, fixed) == [["1", "2"], ["3", "4"]]


@pytest.mark.parametrize("column", ["user_id", "timestamp", "rating"])
def test_nested_columns_of_the_interactions_are_refused(tmp_path: Path, column: str) -> None:
    values = {"user_id": "u", "item_id": "a", "timestamp": 1_600_000_000, "rating": 3, column: [3]}
    pl.DataFrame({name: [value] for name, value in values.items()}).write_parquet(tmp_path / "log.parquet")
    source = Tables(interactions=tmp_path / "log.parquet", items=None)
    with pytest.raises(InputError, match=rf"column '{column}' is List"):
        prepare(source, tmp_path / "out", source.rules.model_copy(update={"min_rating": 1}))


def test_another_separator_of_categories_is_reported(tmp_path: Path) -> None:
    assert categories(tmp_path, "item_id,categories\na,x;y\nb,z\nc,x;z\n") == [["x;y"], ["z"], ["x;z"]]
    assert (
        "contains no '|', but ';' in most rows; if that separates categories, pass --separator ';'"
        in (tmp_path / "notes").read_text()
    )
