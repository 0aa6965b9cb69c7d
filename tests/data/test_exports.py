"""What exports of other programs hold: nothing is lost or reordered silently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from amazon_files import dumps, item_2023, review_2023
from test_times import NOON, history, recbole, tables

from msm4sr.data.preparation.catalogue import write_parquet
from msm4sr.data.preparation.pipeline import prepare
from msm4sr.data.preparation.source import PrepareReport
from msm4sr.data.preparation.table_files import read_table
from msm4sr.data.sources.amazon import Amazon
from msm4sr.data.sources.tables import Tables
from msm4sr.errors import InputError

BIG = 1_600_000_000_000_000_000


@pytest.mark.parametrize(
    "times",
    [
        [f"2020-01-01T00:00:00.{digits}" for digits in ("000000991", "000000450", "000000007")],
        [BIG + 9, f"{BIG + 8}.0", BIG + 7],
        [BIG + 2, BIG + 1, "1.6e18"],
    ],
)
def test_nanoseconds_keep_their_order(tmp_path: Path, times: list[Any]) -> None:
    assert not [note for note in tables(tmp_path, times).notes if "equal" in note]
    assert history(tmp_path) == "cba"


def test_nanoseconds_of_recbole_keep_their_order(tmp_path: Path) -> None:
    recbole(tmp_path, [BIG + 300, f"{BIG + 200}.0", BIG + 100])
    assert history(tmp_path) == "cba"


@pytest.mark.parametrize(
    ("source", "times", "unit"),
    [
        (tables, ["1600000000.00000001", "1600000000.00000002", "1600000009"], "auto"),
        (recbole, ["1600000000.00000001", "1600000000.00000002", "1600000009"], "auto"),
        (recbole, ["2020-01-01T00:00:00.000000991", "2020-01-01T00:00:00.000000450", "2020-01-02"], "iso"),
        (tables, ["2400-01-01T00:00:00.000000991", "2400-01-01T00:00:00.000000450", "2020-01-02"], "iso"),
    ],
)
def test_times_that_become_equal_are_counted(tmp_path: Path, source: Any, times: list[str], unit: str) -> None:
    assert "1 different times become equal" in " ".join(source(tmp_path, times, time_unit=unit).notes)


def test_times_with_and_without_an_offset_are_refused_with_a_row_of_each(tmp_path: Path) -> None:
    times = ["2020-01-01T03:00:00", "2020-01-01T04:00:00Z", "2020-01-01T05:00:00+05:00"]
    with pytest.raises(InputError, match=r"data row 1: '2020-01-01T03:00:00'.*data row 3: '2020-01-01T05:00:00\+05:00"):
        tables(tmp_path, times)
    assert "the former are read as UTC" in " ".join(tables(tmp_path, times, time_unit="iso").notes)
    assert history(tmp_path) == "cab"


def test_naive_times_and_utc_may_be_mixed(tmp_path: Path) -> None:
    tables(tmp_path, ["2020-01-01T03:00:00", "2020-01-01T02:00:00Z", "2020-01-01T01:00:00+00:00"])
    assert history(tmp_path) == "cba"


def shop(folder: Path, ids: list[str], items: str, users: list[str] | None = None, **settings: Any) -> PrepareReport:
    """Prepare interactions with `ids`, and a table of items whose content is `items`."""
    rows = zip(users or ["u"] * len(ids), ids, range(len(ids)), strict=True)
    log = "".join(f'"{user}","{item}",{NOON + time}\n' for user, item, time in rows)
    (folder / "log.csv").write_text("user_id,item_id,timestamp\n" + log)
    (folder / "items.csv").write_text(items)
    source = Tables(interactions=folder / "log.csv", items=folder / "items.csv", **settings)
    return prepare(source, folder / "out", Tables.rules)


@pytest.mark.parametrize("bad", ["a\x1b[31m", "a\x07", "a\nb", "x" * 201])
def test_ids_that_the_service_refuses_are_errors_with_their_row(tmp_path: Path, bad: str) -> None:
    with pytest.raises(InputError, match=r"log.csv: 1 interactions whose user ID.*data row 2: '"):
        shop(tmp_path, ["a", "b"], "item_id\na\nb\n", users=["u", bad])
    with pytest.raises(InputError, match=r"items.csv: 1 items whose item ID.*data row 2: '"):
        shop(tmp_path, ["a", "b"], f'item_id\na\n"{bad}"\n')


def test_texts_lose_control_characters_and_words_for_missing_values(tmp_path: Path) -> None:
    items = "item_id,title,text,categories\na,Red\x1bcar,nan,x|NULL\nb,None,\x07,null\nc,Nancy,null and void,n\x00o\n"
    notes = " ".join(shop(tmp_path, ["a", "b", "c"], items).notes)
    table = pl.read_parquet(tmp_path / "out" / "items.parquet").drop("image", strict=False)
    assert table.rows() == [
        ("a", "Red car", None, ["x"]),
        ("b", None, None, None),
        ("c", "Nancy", "null and void", ["n o"]),
    ]
    assert "1 values of title have control characters, which become blanks (first: items.csv, data row 1" in notes
    assert "1 values of title are 'nan', 'NULL' or alike, and count as empty (first: items.csv, data row 2" in notes
    assert "2 values of categories are 'nan'" in notes


def test_users_named_nan_are_reported(tmp_path: Path) -> None:
    notes = shop(tmp_path, ["a", "b", "a"], "item_id\na\nb\n", users=["u", "nan", "nan"]).notes
    assert "2 interactions have user IDs like 'nan' or 'NULL' (first: log.csv, data row 2: 'nan')" in notes


@pytest.mark.parametrize(
    ("item", "unknown", "difference"),
    [
        ("007", "7", "leading zeros"),
        ("A7", "a7", "upper and lower case"),
        ("a7", "a\u200b7", "invisible characters"),
        ("caf\u00e9", "cafe\u0301", "their Unicode form"),
    ],
)
def test_a_few_ids_that_are_written_otherwise_are_explained(
    tmp_path: Path, item: str, unknown: str, difference: str
) -> None:
    notes = shop(tmp_path, ["x", "y", unknown, "lost"], f"item_id\nx\ny\n{item}\n").notes
    assert f"{unknown!a} and {item!a} of the catalogue differ by {difference}; write them alike" in notes[-1]


def test_ids_that_are_only_unknown_need_no_explanation(tmp_path: Path) -> None:
    notes = shop(tmp_path, ["x", "y", "lost"], "item_id\nx\ny\n").notes
    assert not [note for note in notes if "catalogue" in note]


@pytest.mark.parametrize("other", ["Title", " title", "TITLE "])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_columns_whose_names_differ_by_case_or_blanks_are_refused(tmp_path: Path, other: str, suffix: str) -> None:
    table, path = pl.DataFrame({"item_id": ["a"], "title": [None], other: ["A"]}), tmp_path / f"items.{suffix}"
    table.write_csv(path) if suffix == "csv" else table.write_parquet(path)
    with pytest.raises(InputError, match="columns 2 and 3 are both named 'title'"):
        read_table(path)


def test_names_of_parquet_columns_are_stripped(tmp_path: Path) -> None:
    pl.DataFrame({" item_id ": ["a"]}).write_parquet(tmp_path / "x.parquet")
    assert read_table(tmp_path / "x.parquet").columns == ["item_id"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user_id,item_id\nu,a\nu,b\ru,c\nu,d\n", "line 3: ends in CR alone"),
        ("# export of 2020\nuser_id,item_id\nu,a\n", "line 1, '# export of 2020', is no header"),
        ("# users, items\nuser_id,item_id\nu,a\n", "line 1, '# users, items', is no header"),
        ("sep=,\nuser_id,item_id\nu,a\n", "line 1, 'sep=,', is no header"),
    ],
)
def test_broken_text_tables_are_refused_with_the_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "log.csv").write_bytes(content.encode())
    with pytest.raises(InputError, match=message):
        read_table(tmp_path / "log.csv")


def test_refused_times_name_their_value_and_the_unit_that_fits(tmp_path: Path) -> None:
    (tmp_path / "reviews").write_text(dumps({**review_2023(1, 1, 1, 5.0), "timestamp": NOON}))
    (tmp_path / "meta").write_text(dumps(item_2023(1)))
    source = Amazon(reviews=tmp_path / "reviews", meta=tmp_path / "meta")
    with pytest.raises(InputError, match=rf"first: line 1: {NOON}, which fits --time-unit s\)"):
        prepare(source, tmp_path / "out")
    with pytest.raises(InputError, match=r"first: line 2: '2020-01-01', which fits --time-unit iso\)"):
        recbole(tmp_path, ["2020-01-01"])


@pytest.mark.parametrize(
    ("time", "date"),
    [
        (637_134_336_000_000_000, "1990-03-11"),  # ticks of .NET
        (132_223_104_000_000_000, "1974-03-11"),  # FILETIME of Windows
        (160_000_000_000, "1975-01-26"),  # hundredths of seconds
    ],
)
def test_times_of_another_origin_are_reported_with_their_date(tmp_path: Path, time: int, date: str) -> None:
    [note] = [note for note in tables(tmp_path, [time, time + 10**10]).notes if "before 1995" in note]
    assert f"data row 1: {time}, which is {date})" in note


@pytest.mark.parametrize(("written", "remedy"), [(20200913, "iso"), (44000, "days")])
def test_dates_in_a_few_rows_are_refused(tmp_path: Path, written: int, remedy: str) -> None:
    with pytest.raises(InputError, match=rf"data row 8: '{written}' seems to be .* pass --time-unit {remedy}"):
        tables(tmp_path, [*range(NOON, NOON + 7), written])
    tables(tmp_path, [written, *range(7)], time_unit="s")


def test_rounded_times_are_reported(tmp_path: Path) -> None:
    [note] = [note for note in tables(tmp_path, ["1.6e12"] * 4).notes if "order of the file" in note]
    assert note.startswith("1 of 1 users with several interactions have one time for all of them")
    (tmp_path / "distinct").mkdir()
    assert not tables(tmp_path / "distinct", [NOON, NOON, NOON + 1]).notes


def test_a_full_disk_is_an_error_that_names_the_file() -> None:
    with pytest.raises(OSError, match=r"cannot be written .*No space left on device.*/dev/full"):
        write_parquet(pl.LazyFrame({"a": [1]}), Path("/dev/full"), 1)


@pytest.mark.parametrize(
    "cell",
    [
        "['a red toy', 'nice']",
        '["a red toy", "nice"]',
        "array(['a red toy', 'nice'], dtype=object)",
        "['a red toy' 'nice']",
    ],
)
def test_lists_that_are_written_as_texts_are_read(tmp_path: Path, cell: str) -> None:
    table = pl.DataFrame({"item_id": ["a"], "title": [cell], "text": [cell], "categories": [cell]})
    expected = [("a", "a red toy nice", "a red toy\nnice", ["a red toy", "nice"])]
    shop(tmp_path, ["a"], table.write_csv())
    assert pl.read_parquet(tmp_path / "out" / "items.parquet").drop("image", strict=False).rows() == expected
    table.with_columns(categories=pl.concat_list("categories")).write_parquet(tmp_path / "items.parquet")
    source = Tables(interactions=tmp_path / "log.csv", items=tmp_path / "items.parquet")
    prepare(source, tmp_path / "other")
    assert pl.read_parquet(tmp_path / "other" / "items.parquet").drop("image", strict=False).rows() == expected


def test_texts_in_brackets_are_texts(tmp_path: Path) -> None:
    table = pl.DataFrame(
        {"item_id": ["a", "b"], "title": ["[Live] at home", "['broken"], "text": ["['a'] and b", "[]"]}
    )
    shop(tmp_path, ["a", "b"], table.write_csv())
    rows = pl.read_parquet(tmp_path / "out" / "items.parquet").select("item_id", "title", "text").rows()
    assert rows == [("a", "[Live] at home", "['a'] and b"), ("b", "['broken", None)]


def test_lists_in_texts_of_recbole_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.item").write_text("item_id:token\ttitle:token_seq\na\t['red', 'toy']\n")
    recbole(tmp_path, [NOON])
    assert pl.read_parquet(tmp_path / "out" / "items.parquet")["title"].to_list() == ["red toy"]
