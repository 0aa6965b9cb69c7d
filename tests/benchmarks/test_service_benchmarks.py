"""What the benchmarks of the service generate and count; the slow tests run the complete scripts, shortened."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from cold_items import choose, interval, pairs_of
from load import summary
from postgresql import BIN
from proxy import NGINX
from serving import generate_run, histories_of
from soak import Sample, growth

from msm4sr.data.toyshop import generate_toyshop
from msm4sr.errors import InputError
from msm4sr.experiments.loading import load_recommender

ROOT = Path(__file__).resolve().parents[2]


def write_shop(folder: Path) -> Path:
    """Items "a" and "b" have 30 interactions, "b" has no image, "c" is rare."""
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


def test_held_out_items_have_text_image_and_enough_interactions(tmp_path: Path) -> None:
    shop = write_shop(tmp_path / "shop")
    assert choose(shop, 1, least=20, seed=0) == ["a"]
    with pytest.raises(InputError, match="1 items have text, image and 20 interactions, not 2"):
        choose(shop, 2, least=20, seed=0)


def test_a_history_excludes_later_and_held_out_items(tmp_path: Path) -> None:
    shop = write_shop(tmp_path / "shop")
    assert pairs_of(shop, ["a", "b"], before=1) == [(["x"], "a")] * 30  # nothing comes before "b"
    assert pairs_of(shop, ["a", "b"], before=2) == []


def test_an_interval_is_wide_if_few_items_decide() -> None:
    items = np.repeat(["a", "b", "c", "d"], 100)
    alike, one = np.tile([True, False], 200), items == "a"
    assert interval(alike, items) == (0.5, 0.5)
    low, high = interval(one, items)
    assert low == 0 < 0.25 < 0.5 <= high


def test_memory_that_increases_is_reported() -> None:
    printed = growth([Sample(10 * n, 500 + 2 * n, 0, 0, 0) for n in range(12)])
    assert printed == "memory: 512 MiB at half time, 522 at the end, +12.0 MiB a minute"


def test_the_times_of_a_load_are_its_quantiles() -> None:
    load = summary([n / 1000 for n in range(1, 101)], failed=2, seconds=10, cpu=0.001)
    assert (load.requests, load.failed, load.per_second, load.longest) == (100, 2, 10, 100)
    assert load.p50 == pytest.approx(50.5)
    assert load.p99 == pytest.approx(99, abs=0.1)


def test_a_generated_catalogue_is_a_run_that_recommends(tmp_path: Path) -> None:
    run = generate_run(tmp_path, 300)
    recommender = load_recommender(run)
    histories = histories_of(run)
    assert len(recommender.recommend(histories[0], 10).items) == 10
    assert {item for history in histories for item in history} <= set(recommender.catalogue.items.item_ids)


def run(script: str, *options: str) -> str:
    """What it printed."""
    if find_spec("locust") is None:  # not importorskip: importing it changes sockets, locks and threads everywhere
        pytest.skip("locust is not installed")
    done = subprocess.run(
        [sys.executable, f"benchmarks/{script}", *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_generated_catalogue_is_served_and_measured() -> None:
    printed = run("serving.py", "--items", "300", "--seconds", "2", "--rate", "20")
    rows = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith("| 300 ")]
    assert [row[1].strip() for row in rows] == ["exact", "exact", "approximate", "approximate"]
    assert [row[9].strip() for row in rows] == ["0"] * 4  # failed


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of an experiment with held-out items, and what was printed."""
    folder = tmp_path_factory.mktemp("cold")
    generate_toyshop(folder / "shop", users=60, items=60)
    options = ["--data", f"{folder}/shop", "--out", f"{folder}/out", "--items", "3", "--least", "3"]
    quick = ["pretrain.max_steps=2", "finetune.max_steps=2", "features.visual.kind=pooled", "model.dim=16"]
    return folder / "out", run("cold_items.py", *options, *(f"--set={change}" for change in quick))


@pytest.mark.slow
def test_items_that_were_held_out_are_added_and_counted(cold: tuple[Path, str]) -> None:
    counts = re.findall(r"^\| (trained|untrained) \| (\d+) of (\d+) \| (\d\.\d+) ", cold[1], re.MULTILINE)
    assert [name for name, *_ in counts] == ["trained", "untrained"]
    assert all(float(share) == pytest.approx(int(hits) / int(all_), abs=1e-3) for _, hits, all_, share in counts)


@pytest.mark.slow
def test_the_soak_finds_after_the_kill_what_was_added(cold: tuple[Path, str], tmp_path: Path) -> None:
    options = ["--run", f"{cold[0]}/run", "--minutes", "0.2", "--rate", "10"]
    printed = run("soak.py", *options)
    assert ", 0 failed; p50" in printed
    assert re.search(r"after the kill (\d+) of \1 added items are there, \1 are recommended", printed)


@pytest.mark.slow
@pytest.mark.skipif(not BIN or NGINX is None, reason="no PostgreSQL or no nginx")
def test_two_replicas_lose_no_request_and_no_change(cold: tuple[Path, str], tmp_path: Path) -> None:
    options = ["--run", f"{cold[0]}/run", "--minutes", "0.5", "--rate", "20", "--out", f"{tmp_path}/replicas.md"]
    assert run("replicas.py", *options).strip() == (tmp_path / "replicas.md").read_text().strip()
    cells = [line.split("|")[1:-1] for line in (tmp_path / "replicas.md").read_text().splitlines() if "|" in line]
    measured = {row[0].strip(): row[1].strip() for row in cells if len(row) == 2}
    assert measured["requests sent"] == "600"
    assert measured["changes sent"] == measured["acknowledged"] == "150"
    assert int(measured["answers 503 to a change, which the client repeated"]) > 0


def test_the_indexes_are_compared(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "vector_index.py", "--items", "2000", "--dim=8", "--queries=20"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "|" in line][2:]
    assert [row[0] for row in rows] == ["exact", "approximate", "qdrant"]
    for name, _, recall, *_, in_category, _, _ in rows:
        assert float(recall) > 0.9
        assert float(in_category) == 1
        assert name != "exact" or float(recall) == 1
