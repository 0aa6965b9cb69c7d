"""One unit for all times, or an error that names rows; what is finer than a second orders a history."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from amazon_files import dumps, item_2023, review_2023

from msm4sr.data.dataset import load_dataset
from msm4sr.data.preparation.pipeline import prepare
from msm4sr.data.preparation.source import PrepareReport, Rules
from msm4sr.data.sources.amazon import Amazon
from msm4sr.data.sources.movielens import MovieLens
from msm4sr.data.sources.recbole import RecBole
from msm4sr.data.sources.tables import Tables
from msm4sr.errors import InputError

NOON = int(datetime(2020, 2, 29, 12, tzinfo=UTC).timestamp())
FACTORS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def tables(
    folder: Path, times: list[Any], items: str = "abcdefgh", fraction: float = 0, **settings: Any
) -> PrepareReport:
    rows = [f"u,{item},{time}\n" for item, time in zip(items, times, strict=False)]
    (folder / "log.csv").write_text("user_id,item_id,timestamp\n" + "".join(rows))
    source = Tables(interactions=folder / "log.csv", items=None, **settings)
    return prepare(source, folder / "out", Rules(max_invalid_fraction=fraction))


def recbole(folder: Path, times: list[Any], items: str = "abcdefgh", **settings: Any) -> PrepareReport:
    rows = [f"u\t{item}\t{time}\n" for item, time in zip(items, times, strict=False)]
    (folder / "x.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + "".join(rows))
    return prepare(RecBole(inter=folder, **settings), folder / "out")


def dates(folder: Path, dtype: pl.DataType, times: list[Any]) -> PrepareReport:
    """A history of the items a, b, c ... at these times, prepared from a Parquet file in the folder `logs`."""
    (folder / "logs").mkdir()
    moments = pl.Series(times, dtype=dtype if dtype.is_decimal() else pl.Int64).cast(dtype)
    log = pl.DataFrame({"user_id": "u", "item_id": list("abc"[: len(times)]), "timestamp": moments})
    log.write_parquet(folder / "logs" / "a.parquet")
    return prepare(Tables(interactions=folder / "logs", items=None), folder / "out")


def prepared(folder: Path) -> list[tuple[str, int]]:
    return pl.read_parquet(folder / "out" / "interactions.parquet").select("item_id", "timestamp").rows()


def history(folder: Path) -> str:
    dataset = load_dataset(folder / "out")
    return "".join(dataset.item_ids[item] for item in dataset.histories[0])


@pytest.mark.parametrize("source", [tables, recbole])
@pytest.mark.parametrize("unit", FACTORS)
def test_the_unit_that_fits_all_rows_is_used(tmp_path: Path, source: Any, unit: str) -> None:
    report = source(tmp_path, [(NOON + 5) * FACTORS[unit], NOON * FACTORS[unit], 0])
    assert prepared(tmp_path) == [("c", 0), ("b", NOON), ("a", NOON + 5)]
    assert f"column 'timestamp' ({unit})" in report.order


@pytest.mark.parametrize("source", [tables, recbole])
def test_two_units_in_one_column_are_refused_with_a_row_of_each(tmp_path: Path, source: Any) -> None:
    times = [NOON * 1000, NOON + 100, (NOON + 200) * 1000]
    first, second = ("data row 2", "data row 1") if source is tables else ("line 3", "line 2")
    message = (
        rf"{first}: '{NOON + 100}' seems to be in seconds.*'{NOON}000' in {second} in milliseconds.*\(1 and 2 rows\)"
    )
    with pytest.raises(InputError, match=message):
        source(tmp_path, times)
    assert not (tmp_path / "out").exists()


def test_a_few_times_in_another_unit_can_be_dropped(tmp_path: Path) -> None:
    report = tables(tmp_path, [NOON * 1000] * 4 + [NOON], fraction=0.25)
    assert [item for item, _ in prepared(tmp_path)] == list("abcd")
    assert [(drop.reason, drop.example) for drop in report.dropped] == [
        ("interactions whose time is in another unit", f"log.csv, data row 5: {NOON}")
    ]


@pytest.mark.parametrize(
    ("times", "unit", "remedy"),
    [
        ([20230103, 20230102], "iso", "seems to be the digits of a date; pass --time-unit iso"),
        ([20230103123059, 20230102000000], "iso", "seems to be the digits of a date"),
        ([202301031230, 202301020000], "iso", "seems to be the digits of a date"),
        ([44929.5, 44928], "days", "seems to be the day number of a spreadsheet; pass --time-unit days"),
    ],
)
@pytest.mark.parametrize("source", [tables, recbole])
def test_dates_written_as_numbers_need_their_unit(
    tmp_path: Path, source: Any, times: list[float], unit: str, remedy: str
) -> None:
    with pytest.raises(InputError, match=rf"'{times[0]}' {remedy}"):
        source(tmp_path, times)
    source(tmp_path, times, time_unit=unit)
    days = [datetime.fromtimestamp(time, UTC).date().isoformat() for _, time in prepared(tmp_path)]
    assert days == ["2023-01-02", "2023-01-03"]
    assert [item for item, _ in prepared(tmp_path)] == ["b", "a"]


def test_times_before_1995_and_in_the_future_are_reported(tmp_path: Path) -> None:
    later = int((datetime.now(UTC) + timedelta(days=9)).timestamp())
    report = tables(tmp_path, [NOON, 7, later])
    [early] = [note for note in report.notes if "before 1995" in note]
    assert early.startswith(
        "1 times are before 1995 as seconds since 1970 (first: log.csv, data row 2: 7, which is 1970-01-01)"
    )
    [future] = [note for note in report.notes if "future" in note]
    assert future == f"1 times are in the future as seconds since 1970 (first: log.csv, data row 3: {later})"
    written = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert early in written["notes"]
    assert future not in written["notes"], "it depends on the clock"


@pytest.mark.parametrize(
    ("times", "unit"),
    [
        ([NOON * 1000 + 300, NOON * 1000 + 100, NOON * 1000 + 200, NOON * 1000 + 200], "ms"),
        ([f"{NOON}.3", f"{NOON}.1", f"{NOON}.2", f"{NOON}.2"], "s"),
        ([NOON * 10**9 + 3, NOON * 10**9 + 1, NOON * 10**9 + 2, NOON * 10**9 + 2], "ns"),
        (["2020-02-29T12:00:00.3", "2020-02-29T12:00:00.1", "2020-02-29T12:00:00.2", "2020-02-29T12:00:00.2"], "iso"),
    ],
)
def test_what_is_finer_than_a_second_survives(tmp_path: Path, times: list[Any], unit: str) -> None:
    report = tables(tmp_path, times, items="aabb")
    assert f"({unit})" in report.order
    assert prepared(tmp_path) == [("a", NOON), ("b", NOON), ("a", NOON)]
    assert history(tmp_path) == "aba", "interactions of one second are no duplicates"


def test_a_position_is_written_only_where_seconds_are_not_enough(tmp_path: Path) -> None:
    tables(tmp_path, [f"{NOON}.3", f"{NOON}.1"])
    assert "position" not in pl.read_parquet_schema(tmp_path / "out" / "interactions.parquet")
    assert [item for item, _ in prepared(tmp_path)] == ["b", "a"]


def test_nanoseconds_of_a_parquet_file_order_a_history(tmp_path: Path) -> None:
    times = pl.Series([NOON * 10**9 + 2, NOON * 10**9 + 1, NOON * 10**9], dtype=pl.Int64).cast(pl.Datetime("ns"))
    log = pl.DataFrame({"user_id": "u", "item_id": ["a", "b", "c"], "timestamp": times})
    log.write_parquet(tmp_path / "log.parquet")
    prepare(Tables(interactions=tmp_path / "log.parquet", items=None), tmp_path / "out")
    assert history(tmp_path) == "cba"


def test_files_in_different_units_of_a_second_are_read_exactly(tmp_path: Path) -> None:
    for name, unit, times in (("a", "ns", [NOON * 10**9 + 2, NOON * 10**9 + 1]), ("b", "us", [NOON * 10**6 + 1])):
        moments = pl.Series(times, dtype=pl.Int64).cast(pl.Datetime(unit))  # type: ignore[arg-type]
        log = pl.DataFrame({"user_id": "u", "item_id": [f"{name}{time % 10}" for time in times], "timestamp": moments})
        (tmp_path / "logs").mkdir(exist_ok=True)
        log.write_parquet(tmp_path / "logs" / f"{name}.parquet")
    report = prepare(Tables(interactions=tmp_path / "logs", items=None), tmp_path / "out")
    assert "(ns)" in report.order
    assert [item for item, _ in prepared(tmp_path)] == ["a1", "a2", "b1"]


def test_dates_beyond_what_nanoseconds_hold_are_read_in_microseconds(tmp_path: Path) -> None:
    report = dates(tmp_path, pl.Datetime("ns"), [NOON * 10**9 + 1, NOON * 10**9])
    assert "(ns)" in report.order
    late = pl.DataFrame({"user_id": "v", "item_id": "z", "timestamp": [datetime(2300, 1, 1)]})
    late.write_parquet(tmp_path / "logs" / "b.parquet")
    report = prepare(Tables(interactions=tmp_path / "logs", items=None), tmp_path / "late")
    assert "(iso)" in report.order
    assert any("1 different times become equal" in note for note in report.notes)


def test_decimal_times_keep_every_digit(tmp_path: Path) -> None:
    dates(tmp_path, pl.Decimal(38, 0), [Decimal(NOON * 10**9 + n) for n in (200, 100, 0)])
    assert history(tmp_path) == "cba"


def test_files_of_which_some_have_a_time_zone_are_refused(tmp_path: Path) -> None:
    dates(tmp_path, pl.Datetime("us", "Europe/Berlin"), [NOON * 10**6])
    for zone in (None, "UTC"):
        log = pl.DataFrame({"user_id": "u", "item_id": "b", "timestamp": pl.Series([NOON * 10**6], dtype=pl.Int64)})
        log.cast({"timestamp": pl.Datetime("us", zone)}).write_parquet(tmp_path / "logs" / "b.parquet")
        with pytest.raises(
            InputError, match=r"b\.parquet: column 'timestamp' holds dates, but dates with a time zone in"
        ):
            prepare(Tables(interactions=tmp_path / "logs", items=None), tmp_path / "mixed")


@pytest.mark.parametrize("time", ["1_600_000_001", "１６００００００００"])
def test_numbers_that_only_python_reads_are_invalid(tmp_path: Path, time: str) -> None:
    with pytest.raises(InputError, match=rf"1 times that are no number \(first: line 3: '{time}'\)"):
        recbole(tmp_path, [NOON, time])


def test_the_unit_can_be_named_for_each_source(tmp_path: Path) -> None:
    reviews = [dumps({**review_2023(0, item, 0, 5.0), "timestamp": NOON + item}) for item in range(4)]
    (tmp_path / "reviews").write_text("\n".join(reviews))
    (tmp_path / "meta").write_text("\n".join(dumps(item_2023(item)) for item in range(4)))
    source = {"reviews": tmp_path / "reviews", "meta": tmp_path / "meta"}
    with pytest.raises(InputError, match=r"4 impossible dates.*correct --time-unit"):
        prepare(Amazon(**source), tmp_path / "out")
    prepare(Amazon(**source, time_unit="s"), tmp_path / "out")
    assert [time for _, time in prepared(tmp_path)] == [NOON + item for item in range(4)]
    (tmp_path / "ratings.csv").write_text(f"userId,movieId,rating,timestamp\n1,2,3,{NOON}000\n")
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n2,Two,Drama\n")
    prepare(MovieLens(folder=tmp_path, time_unit="ms"), tmp_path / "movies")
    assert pl.read_parquet(tmp_path / "movies" / "interactions.parquet")["timestamp"].to_list() == [NOON]
