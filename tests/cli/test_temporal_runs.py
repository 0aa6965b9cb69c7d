"""A temporal split in every command that trains, evaluates or reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from calling import Cli, metrics_of, small_items, write_folder

from msm4sr.evaluation.metrics import METRICS, mean_metrics
from msm4sr.evaluation.users import users_of

TEMPORAL = ("--set=dataset.split=temporal", "--set=dataset.targets=all")
QUICK = ("--set=finetune.epochs=2", "--seed=0")
SPLIT = "temporal split (validation from 2026-01-09, test from 2026-01-10), all targets"
DATES = ("--set=dataset.validation_from=2026-01-09", "--set=dataset.test_from=2026-01-10T00:00Z")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty users over ten days; a third of them, and two items, begin with the last two days."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(30):
        first = 8 if user % 3 == 0 else 0
        for _ in range(15):
            day = int(rng.integers(first, 10))
            item = int(rng.integers(0, 12 if day >= 8 else 10))
            rows.append((f"u{user}", f"i{item}", 1_767_225_600 + day * 86_400 + int(rng.integers(0, 86_400))))
    users, items, times = (list(column) for column in zip(*sorted(rows), strict=True))
    log = {"user_id": users, "item_id": items, "timestamp": times}
    return write_folder(tmp_path_factory.mktemp("data") / "shop", log, small_items(12))


@pytest.fixture(scope="module")
def run(cli: Cli, shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    called = cli("run", shop, "--out", folder, "--model", "sasrec", *TEMPORAL, *DATES, *QUICK)
    assert called.code == 0, called
    assert SPLIT in called.out
    assert "10 users and 2 items have no training interactions" in called.out
    return folder


def test_metrics_are_of_known_users_and_others_are_reported_apart(run: Path) -> None:
    found, table = metrics_of(run), pl.read_parquet(run / "users.parquet")
    assert found["run"]["protocol"] == f"{SPLIT}, full ranking, seen items included"
    assert table["user_count"].min() == 0
    for part in ("validation", "test"):
        rows = table.filter(pl.col("part") == part)
        known = rows.filter(pl.col("user_count") > 0)
        assert found[part] == mean_metrics(known["rank"].to_numpy(), users_of(known))
        assert tuple(found[part]) == METRICS
        assert len(known) > known["user_id"].n_unique(), "users have several targets"
        cold = found["cold"][part]
        assert cold["users"]["users"] == rows["user_id"].n_unique() - known["user_id"].n_unique() == 10
        assert cold["items"]["items"] == 2
        assert cold["items"]["targets"] == len(known.filter(pl.col("item_count") == 0))
        assert tuple(cold["users"]["metrics"]) == tuple(cold["items"]["metrics"]) == METRICS
    validated = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(row.get("ndcg@10", 0) for row in validated) == found["validation"]["ndcg@10"]


def test_evaluation_alone_finds_the_same_and_reports_it(cli: Cli, run: Path) -> None:
    before = metrics_of(run)
    assert cli("evaluate", run).code == 0
    assert metrics_of(run) == before
    page = (run / "report.html").read_text()
    assert SPLIT in page
    assert "users without training interactions (10)" in page
    assert "MAP@10" in page


def test_compare_trains_and_reports_rows_of_both_splits_apart(cli: Cli, shop: Path, tmp_path: Path) -> None:
    config = tmp_path / "grid.yaml"
    config.write_text(
        """
title: Both splits
base: {preset: best, changes: {finetune.epochs: 1}}
rows:
  - {name: pop, label: Popularity, model: popularity}
  - {name: knn, label: ItemKNN, model: itemknn}
  - {name: pop-later, label: Popularity later, model: popularity, changes: &later {dataset.split: temporal,
     dataset.validation_from: 2026-01-09, dataset.test_from: 2026-01-10, dataset.targets: all}}
  - {name: sasrec-later, label: SASRec later, model: sasrec, changes: *later}
best_against: [knn, sasrec-later]
"""
    )
    called = cli("compare", config, "--data", shop, "--out", tmp_path / "grid")
    assert called.code == 0, called
    assert "leave-one-out, full ranking" in called.out
    assert "all targets" in called.out
    assert "Without training interactions, shop" in called.out
    assert cli("report", tmp_path / "grid", "--metric", "map@10", "--metric", "recall@10").code == 0
    page = (tmp_path / "grid" / "report" / "index.html").read_text()
    assert "Without training interactions, shop" in page
    assert "users (10)" in page
    assert cli("compare", config, "--data", shop, "--out", tmp_path / "grid").code == 0, "nothing has changed"


def test_tune_validates_on_the_validation_part(cli: Cli, shop: Path, tmp_path: Path) -> None:
    called = cli("tune", shop, "--model", "itemknn", "--out", tmp_path / "study", "--trials", "2", *TEMPORAL, *DATES)
    assert called.code == 0, called


def test_items_that_are_held_out_are_ranked_for_users_with_such_a_target(cli: Cli, shop: Path, tmp_path: Path) -> None:
    arguments = ("run", shop, "--model", "popularity", *TEMPORAL, *DATES, "--set=dataset.hold_out_items=0.25")
    assert cli(*arguments, "--out", tmp_path / "run").code == 0
    held = metrics_of(tmp_path / "run")["held_out"]
    assert held["items"] == 3
    assert held["targets"] > held["users"] > 5
    assert held["among_held_out"]["recall@5"] == 1.0, "all three tie at the places 1 to 3"
    assert held["chance_among_held_out"]["recall@5"] == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["dataset.test_from=soon"], "--set: dataset.test_from: 'soon' is not a date; write a date (2026-03-01"),
        (["dataset.test_from=2030-01-01"], "interactions.parquet: no interactions from dataset.test_from=2030-01-01"),
        (["dataset.targets=some"], "dataset.targets"),
    ],
)
def test_wrong_cutoffs_are_refused_in_one_line(
    refused: Callable[..., str], shop: Path, tmp_path: Path, changes: list[str], message: str
) -> None:
    sets = [f"--set={change}" for change in ["dataset.split=temporal", *changes]]
    assert message in refused("run", shop, "--out", tmp_path / "run", "--model", "popularity", *sets)
    assert not (tmp_path / "run").exists()


def test_data_without_times_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    log: dict[str, list[Any]] = {"user_id": ["u"] * 4, "item_id": list("abca"), "position": [0, 1, 2, 3]}
    folder = write_folder(tmp_path / "data", log)
    found = refused("run", folder, "--out", tmp_path / "run", "--model", "popularity", "--set=dataset.split=temporal")
    assert "a temporal split needs the column 'timestamp'" in found
