"""What the benchmarks of the service make and count; `slow` runs them whole, too short to say anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from cold_items import choose, pairs_of
from serving import generate_run, histories_of

from msm4sr.errors import InputError
from msm4sr.serving.recommender import Recommender

ROOT = Path(__file__).resolve().parents[2]


def write_shop(folder: Path) -> Path:
    """Item "a" is taken 30 times, "b" 30 times but has no picture, "c" is rare."""
    folder.mkdir()
    log = [(f"u{user}", item, user + place) for user in range(30) for place, item in enumerate(["b", "x", "a", "y"])]
    log.append(("u0", "c", 50))
    items = {"item_id": ["a", "b", "c", "x", "y"], "text": ["A.", "B.", "C.", None, None]}
    images = ["a.jpg", None, "c.jpg", None, None]
    pl.DataFrame(log, schema=["user_id", "item_id", "timestamp"], orient="row").write_parquet(
        folder / "interactions.parquet"
    )
    pl.DataFrame(items | {"image": images}).write_parquet(folder / "items.parquet")
    return folder


def test_held_out_are_items_with_text_and_picture_that_were_taken_neither_rarely_nor_by_all(tmp_path: Path) -> None:
    shop = write_shop(tmp_path / "shop")
    assert choose(shop, 1, 0) == ["a"]
    with pytest.raises(InputError, match="1 items have text, picture and 20 to 200 interactions, not 2"):
        choose(shop, 2, 0)


def test_a_history_is_what_came_before_without_held_out_items(tmp_path: Path) -> None:
    pairs = pairs_of(write_shop(tmp_path / "shop"), ["a", "b"])
    assert pairs == [(["x"], "a")] * 30  # nothing comes before "b"


def test_a_generated_catalogue_is_a_run_that_recommends(tmp_path: Path) -> None:
    run = generate_run(tmp_path, 300)
    recommender = Recommender.load(run)
    histories = histories_of(run)
    assert len(recommender.recommend(histories[0], 10).items) == 10
    assert {item for history in histories for item in history} <= set(recommender.catalogue.base.item_ids)


@pytest.mark.slow
def test_a_generated_catalogue_is_served_and_measured() -> None:
    pytest.importorskip("locust")
    command = [sys.executable, "benchmarks/serving.py", "--items", "300", "--index", "approximate"]
    done = subprocess.run([*command, "--seconds", "2", "--rate", "20"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "300 items, approximate, recall@20" in done.stdout
    assert done.stdout.count(" 0 failed") == 2
