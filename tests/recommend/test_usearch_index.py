from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from builders import wrong_modes
from indexes import SETTINGS, some_items

from msm4sr.digests import file_digest
from msm4sr.recommend.index import IndexSettings
from msm4sr.recommend.index.usearch_index import UsearchIndex


def test_an_index_records_its_recall(tmp_path: Path, umask: None) -> None:
    index = UsearchIndex.open(some_items(tmp_path), SETTINGS)
    assert not wrong_modes(tmp_path)
    about = json.loads((tmp_path / "index.json").read_text())
    assert (about["recall@20"], about["items"], about["queries"]) == (index.recall, 3000, 50)


def test_an_index_is_opened_again_and_finds_the_same(tmp_path: Path) -> None:
    items = some_items(tmp_path)
    first = UsearchIndex.open(items, SETTINGS)
    written = (tmp_path / "index.usearch").stat().st_mtime_ns
    again = UsearchIndex.open(items, SETTINGS)
    assert (tmp_path / "index.usearch").stat().st_mtime_ns == written
    assert again.about == first.about
    for query in items.queries():
        assert again.search(query, 20).rows.tolist() == first.search(query, 20).rows.tolist()


def test_of_several_that_open_an_index_one_builds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the workers of a service when a newer run is loaded."""
    items, built, build = some_items(tmp_path), [], UsearchIndex._build
    monkeypatch.setattr(UsearchIndex, "_build", lambda *arguments: built.append(build(*arguments)) or built[-1])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: UsearchIndex.open(items, SETTINGS), range(4)))
    assert len(built) == 1
    assert all(index.about == built[0].about for index in found)


@pytest.mark.parametrize("what", ["other vectors", "other settings", "cut short", "a byte", "no json"])
def test_an_index_that_does_not_fit_is_built_again(tmp_path: Path, what: str) -> None:
    items, settings = some_items(tmp_path, 500), SETTINGS
    UsearchIndex.open(items, SETTINGS)
    if what == "other vectors":
        items = replace(items, vectors=some_items(tmp_path, 500, seed=1).vectors)
    elif what == "other settings":
        settings = IndexSettings(kind="approximate", connectivity=8)
    elif what in ("cut short", "a byte"):
        data = (tmp_path / "index.usearch").read_bytes()
        changed = data[: len(data) // 2] if what == "cut short" else data[:-99] + bytes([data[-99] ^ 1]) + data[-98:]
        (tmp_path / "index.usearch").write_bytes(changed)
    else:
        (tmp_path / "index.json").write_text("{")
    index = UsearchIndex.open(items, settings)
    assert index.recall > 0.9
    assert json.loads((tmp_path / "index.json").read_text()) == index.about
    assert index.about["checksum"] == file_digest(tmp_path / "index.usearch")
