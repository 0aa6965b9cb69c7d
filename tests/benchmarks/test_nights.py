"""The nights of the benchmark: what a model may know, and what it is asked the day after."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from nights import DAY, cut, next_day

from msm4sr.data.schema import read_interactions, read_items


def test_a_night_knows_nothing_of_the_next_day_which_asks_for_every_interaction_after_the_first(tmp_path: Path) -> None:
    times = [0, 10, DAY, DAY + 5, DAY + 9, DAY + 20, 2 * DAY]
    columns = {"user_id": list("aababba"), "item_id": list("wxyzwyx"), "timestamp": times}
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    (data / "images" / "w.png").write_bytes(b"image")
    pl.DataFrame(columns).write_parquet(data / "interactions.parquet")
    pl.DataFrame({"item_id": list("zyxw"), "image": [None, None, None, "images/w.png"]}).write_parquet(
        data / "items.parquet"
    )
    night = cut(data, tmp_path / "night", DAY)
    assert read_interactions(night)["order"].to_list() == [0, 10]
    assert read_items(night)["item_id"].to_list() == ["x", "w"]
    assert (night / "images" / "w.png").read_bytes() == b"image"
    histories, targets = next_day(data, DAY)
    assert sorted(zip(histories, targets, strict=True)) == [(["w", "x"], "z"), (["y"], "w"), (["y", "w"], "y")]
