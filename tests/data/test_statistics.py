"""Statistics of a data set, counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from msm4sr.data.statistics import statistics
from msm4sr.errors import InputError

LOG: dict[str, list[Any]] = {
    "user_id": ["u", "u", "u", "v", "v"],
    "item_id": ["a", "b", "a", "a", "c"],
    "timestamp": [1_577_836_800, 1_577_836_800, 1_583_020_800, 1_583_020_801, 1_583_020_802],  # January, March 2020
}
ITEMS: dict[str, list[Any]] = {
    "item_id": ["a", "b", "c", "d"],
    "title": ["A", "Bb", None, None],
    "text": ["text", None, None, "d"],
    "image": [["images/a.jpg"], ["https://example.com/b.jpg"], None, ["https://example.com/d.jpg", "images/d.jpg"]],
}


def write(folder: Path, log: dict[str, list[Any]] = LOG, items: dict[str, list[Any]] | None = ITEMS) -> Path:
    folder.mkdir(exist_ok=True)
    pl.DataFrame(log).write_parquet(folder / "interactions.parquet")
    if items is not None:
        pl.DataFrame(items).write_parquet(folder / "items.parquet")
    return folder


def test_statistics_as_papers_print_them(tmp_path: Path) -> None:
    counted = statistics(write(tmp_path / "shop"))
    assert (counted.n_users, counted.n_items, counted.n_interactions) == (2, 4, 5)
    assert counted.history_lengths.tolist() == [2, 3]
    assert counted.item_counts.tolist() == [0, 1, 1, 3]
    assert counted.text_lengths.tolist() == [5, 2, 0, 1]
    assert counted.sparsity == 1 - 5 / 8
    assert counted.repeats == 1
    assert counted.months == [("2020-01", 2), ("2020-02", 0), ("2020-03", 3)]
    lines = dict(counted.lines())
    assert lines["Interactions per user"] == "mean 2.50, median 2.5, 2 to 3"
    assert lines["Sparsity"] == "37.500%"
    assert lines["Items with title or text"] == "3 (75.0%)"
    assert lines["Items with image"] == "2 (50.0%)"
    assert lines["Items with unfetched images"].startswith("1 (25.0%)")
    assert lines["Period"] == "2020-01-01 to 2020-03-01"


def test_ids_and_positions_alone(tmp_path: Path) -> None:
    log = {"user_id": ["u", "u"], "item_id": ["a", "b"], "position": [0, 1]}
    counted = statistics(write(tmp_path / "shop", log, items=None))
    assert (counted.n_items, counted.period, counted.months) == (2, None, [])
    assert counted.text_lengths.tolist() == [0, 0]


@pytest.mark.parametrize("time", [1_600_000_000_000, 1 << 62, None])
def test_times_that_are_no_seconds_are_an_error(tmp_path: Path, time: int | None) -> None:
    log = {**LOG, "timestamp": pl.Series([time] * 5, dtype=pl.Int64)}
    with pytest.raises(InputError, match=rf"column 'timestamp': {time} is not between 1970 and 9999; write seconds"):
        statistics(write(tmp_path / "shop", log))


def test_an_item_that_the_catalogue_lacks_is_an_error(tmp_path: Path) -> None:
    folder = write(tmp_path / "shop", {**LOG, "item_id": ["a", "ghost", "a", "a", "c"]})
    with pytest.raises(InputError, match=r"1 items are not in items.parquet \(for example 'ghost'\)"):
        statistics(folder)
    with pytest.raises(InputError, match="no such folder"):
        statistics(tmp_path / "nowhere")
    empty = write(tmp_path / "empty", {name: values[:0] for name, values in LOG.items()})
    with pytest.raises(InputError, match="no rows"):
        statistics(empty)
