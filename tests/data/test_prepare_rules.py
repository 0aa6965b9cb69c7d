"""The pipeline that all sources share: rules against a simple reference, provenance, the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from amazon_files import dumps, events, item_2018, review_2018, write_lines
from hypothesis import given
from hypothesis import strategies as st
from tiny_images import tiny_image

from msm4sr.data.preparation import pipeline
from msm4sr.data.preparation.pipeline import prepare
from msm4sr.data.preparation.source import Rules
from msm4sr.data.remaining import k_core
from msm4sr.data.sources.amazon import Amazon
from msm4sr.data.sources.tables import Tables
from msm4sr.errors import InputError

Event = tuple[str, str, int]


def slow_core(log: list[Event], user_core: int, item_core: int) -> list[Event]:
    while True:
        users, items = Counter(user for user, _, _ in log), Counter(item for _, item, _ in log)
        kept = [event for event in log if users[event[0]] >= user_core and items[event[1]] >= item_core]
        if kept == log:
            return log
        log = kept


def slow_rules(log: list[Event], repeats: str, user_core: int, item_core: int) -> list[Event]:
    """The module's docstring, literally. Rows are in file order."""
    users = {user: place for place, user in enumerate(dict.fromkeys(user for user, _, _ in log))}
    log = list(dict.fromkeys(log))
    if repeats == "last":
        latest: dict[tuple[str, str], Event] = {}
        for event in log:
            if event[:2] not in latest or event[2] >= latest[event[:2]][2]:
                latest[event[:2]] = event
        log = [event for event in log if latest[event[:2]] == event]
    return sorted(slow_core(log, user_core, item_core), key=lambda event: (users[event[0]], event[2]))


def write_log(path: Path, log: list[Event]) -> Path:
    path.write_text("user_id,item_id,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in log))
    return path


LOGS = st.lists(st.tuples(st.sampled_from("uvwx"), st.sampled_from("abcd"), st.integers(0, 3)), min_size=1, max_size=40)


@given(LOGS, st.sampled_from(["keep", "last"]), st.integers(0, 4), st.integers(0, 4))
def test_the_rules_do_what_a_slow_reference_does(
    tmp_path_factory: pytest.TempPathFactory, log: list[Event], repeats: Any, user_core: int, item_core: int
) -> None:
    folder = tmp_path_factory.mktemp("log")
    expected = slow_rules(log, repeats, user_core, item_core)
    rules = Rules(repeats=repeats, user_core=user_core, item_core=item_core)
    path = write_log(folder / "log.csv", log)
    if not expected:
        with pytest.raises(InputError, match="no interaction is left"):
            prepare(Tables(interactions=path, items=None), folder / "out", rules)
        assert not (folder / "out").exists()
        return
    report = prepare(Tables(interactions=path, items=None), folder / "out", rules)
    assert pl.read_parquet(folder / "out" / "interactions.parquet").rows() == expected
    last = report.steps[-1]
    assert (last["interactions"], last["users"], last["items"]) == (
        len(expected),
        len({user for user, _, _ in expected}),
        len({item for _, item, _ in expected}),
    )
    assert report.interactions_read - sum(drop.count for drop in report.dropped) == len(expected)


@given(LOGS, st.integers(0, 4), st.integers(0, 4))
def test_the_core_is_what_remains_when_nothing_more_falls_out(log: list[Event], user_core: int, item_core: int) -> None:
    user = np.array(["uvwx".index(u) for u, _, _ in log])
    item = np.array(["abcd".index(i) for _, i, _ in log])
    chunks = [(user[rows], item[rows]) for rows in (slice(3), slice(3, None))]
    keep_user, keep_item = k_core(lambda: chunks, 4, 4, user_core, item_core)
    kept = keep_user[user] & keep_item[item]
    numbered = [(u, i, row) for row, (u, i, _) in enumerate(log)]
    assert [row for *_, row in slow_core(numbered, user_core, item_core)] == np.flatnonzero(kept).tolist()


def test_items_under_the_core_leave_the_catalogue(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.csv", [(u, i, 1) for u in "uvw" for i in "ab"] + [("u", "c", 2)])
    (tmp_path / "items.csv").write_text("item_id,title\nc,C\nb,B\na,A\nd,D\n")
    rules = Rules(item_core=2, unknown_items="drop")
    prepare(Tables(interactions=log, items=tmp_path / "items.csv"), tmp_path / "out", rules)
    assert pl.read_parquet(tmp_path / "out" / "items.parquet")["item_id"].to_list() == ["b", "a"]


# Provenance


def amazon(tmp_path: Path) -> Amazon:
    log = events(users=300, items=80, count=4000)
    reviews = write_lines(tmp_path / "reviews.json.gz", [*(dumps(review_2018(*event)) for event in log), "broken"])
    return Amazon(
        reviews=reviews, meta=write_lines(tmp_path / "meta.json.gz", [dumps(item_2018(i)) for i in range(100)])
    )


def test_provenance_has_sources_settings_counts_and_the_result(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "p3.jpg").write_bytes(tiny_image(kind="JPEG"))
    source = amazon(tmp_path).model_copy(update={"images": tmp_path / "photos"})
    prepare(source, tmp_path / "out", source.rules.model_copy(update={"user_core": 5}))
    text = (tmp_path / "out" / "provenance.json").read_text()
    written = json.loads(text)
    assert written["sources"] == [
        {"file": path.name, "bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in source.files
    ]
    assert written["settings"]["user_core"] == 5
    assert [step["step"] for step in written["steps"]] == [
        "read", "usable rows", "exact duplicates", "at least 5 of each user",
    ]  # fmt: skip
    assert written["steps"][0]["interactions"] == 4001
    log = pl.read_parquet(tmp_path / "out" / "interactions.parquet")
    assert written["steps"][-1]["interactions"] == written["interactions_kept"] == len(log)
    assert written["steps"][-1]["users"] == log["user_id"].n_unique()
    for table in written["result"]["tables"]:
        data = (tmp_path / "out" / table["file"]).read_bytes()
        assert (table["bytes"], table["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert written["result"]["images"]["files"] == 1
    assert str(tmp_path) not in text, "nothing that differs between machines"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "images", "interactions.parquet", "items.parquet", "provenance.json",
    ]  # fmt: skip


def test_another_image_is_another_result(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    source = amazon(tmp_path).model_copy(update={"images": tmp_path / "photos"})
    results = []
    for color in ("red", "blue"):
        (tmp_path / "photos" / "p3.jpg").write_bytes(tiny_image(color))
        prepare(source, tmp_path / color)
        results.append(json.loads((tmp_path / color / "provenance.json").read_text())["result"])
    assert results[0]["tables"] == results[1]["tables"]
    assert results[0]["sha256"] != results[1]["sha256"]


PREPARE = """
import sys
from pathlib import Path
from msm4sr.data.preparation import catalogue, interactions, pipeline, reading, source
from msm4sr.data.sources import amazon
interactions.ROW_GROUP, catalogue.ITEM_GROUP, reading.BLOCK = 2048, 16, 300
data = amazon.Amazon(reviews=sys.argv[1], meta=sys.argv[2])
pipeline.prepare(data, Path(sys.argv[3]), source.Rules(**source.LIKE_PAPER))
"""


def test_any_number_of_threads_gives_the_same_bytes(tmp_path: Path) -> None:
    """With several row groups and blocks, so that threads could change their order."""
    files = amazon(tmp_path).files
    results = []
    for threads in ("1", "2", "5"):
        out = tmp_path / threads
        environment = {**os.environ, "POLARS_MAX_THREADS": threads, "PYTHONHASHSEED": threads}
        subprocess.run([sys.executable, "-c", PREPARE, *files, out], env=environment, check=True)
        results.append({path.name: path.read_bytes() for path in out.iterdir() if path.is_file()})
    assert len(results[0]) == 3
    assert results[0] == results[1] == results[2]


def test_the_order_of_a_log_with_many_blocks_is_kept(tmp_path: Path) -> None:
    """DuckDB reads and writes 122,880 rows at a time, in parallel and in any order unless it is asked for one."""
    rng, rows = np.random.default_rng(0), 400_000
    users, items, times = rng.integers(0, 150_000, rows), rng.integers(0, 300_000, rows), rng.integers(0, 9, rows)
    log = [(f"u{u}", f"i{i}", 10**9 + int(t)) for u, i, t in zip(users, items, times, strict=True)]
    (tmp_path / "log").mkdir()
    for number, start in enumerate(range(0, rows, 150_000)):
        table = pl.DataFrame(log[start : start + 150_000], ["user_id", "item_id", "timestamp"], orient="row")
        table.write_parquet(tmp_path / "log" / f"{number}.parquet")
    listed = [f"i{n}" for n in range(1000, 0, -1)]
    pl.DataFrame({"item_id": listed}).write_parquet(tmp_path / "items.parquet")
    source = Tables(interactions=tmp_path / "log", items=tmp_path / "items.parquet")
    prepare(source, tmp_path / "out", Rules(user_core=2, unknown_items="keep"))
    expected = slow_rules(log, "keep", 2, 0)
    assert len(expected) > 300_000
    assert pl.read_parquet(tmp_path / "out" / "interactions.parquet").rows() == expected
    catalogue = pl.read_parquet(tmp_path / "out" / "items.parquet")["item_id"].to_list()
    assert catalogue == list(dict.fromkeys([*listed, *(item for _, item, _ in expected)]))


def test_a_failure_at_the_end_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        assert list(tmp_path.glob(".out.*.unfinished/interactions.parquet"))
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "_provenance", fail)
    source = amazon(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meta.json.gz", "reviews.json.gz"]


def test_blocks_of_any_size_give_the_same_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from msm4sr.data.preparation import reading

    source = amazon(tmp_path)
    prepare(source, tmp_path / "large")
    monkeypatch.setattr(reading, "BLOCK", 7)
    monkeypatch.setattr(reading, "CHUNK", 1000)
    prepare(source, tmp_path / "small")
    for name in ("interactions", "items"):
        large, small = (pl.read_parquet(tmp_path / size / f"{name}.parquet") for size in ("large", "small"))
        assert large.equals(small)
