"""What exports of other programs hold: nothing is lost or reordered silently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_times import history, recbole, tables

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
