"""What a run has held out: items that arrive after training, users that are not trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from calling import Cli, metrics_of, small_log, write_folder

from msm4sr.data.dataset import DataSettings, load_dataset
from msm4sr.evaluation.metrics import chance, mean_metrics

HELD = DataSettings(hold_out_items=0.25)
QUICK = ("--preset=seed", "--set=pretrain.epochs=2", "--set=finetune.epochs=1", "--set=dataset.hold_out_items=0.25")


@pytest.fixture(scope="module")
def run(cli: Cli, shop: Path, features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held") / "run"
    called = cli("run", shop, "--out", folder, "--features", features, *QUICK, "--seed=0")
    assert called.code == 0, called
    assert "dropped 15 items: held out" in called.out
    return folder


def test_the_model_is_of_the_other_items_and_the_features_are_of_all(run: Path, shop: Path, features: Path) -> None:
    known = json.loads((run / "model" / "items.json").read_text())["item_ids"]
    assert known == load_dataset(shop, HELD).item_ids
    assert len(known) == 45
    stored = pl.read_parquet(features / "text-minilm" / "items.parquet")["item_id"].to_list()
    assert stored == load_dataset(shop).item_ids


def test_cold_start_targets_are_measured_beside_chance(run: Path, shop: Path) -> None:
    found = metrics_of(run)
    held = found["held_out"]
    last = {user: item for user, item in last_items(shop).items() if user in load_dataset(shop, HELD).user_ids}
    known = set(load_dataset(shop, HELD).item_ids)
    assert held["users"] == sum(item not in known for item in last.values()) > 3
    assert held["items"] == 15
    assert held["chance_among_held_out"]["recall@5"] == pytest.approx(5 / 15)
    assert held["chance_among_all"]["recall@5"] == pytest.approx(5 / 60)
    assert held["among_all"]["mrr"] < held["among_held_out"]["mrr"]
    assert found["run"]["items"] == 45


def last_items(shop: Path) -> dict[str, str]:
    dataset = load_dataset(shop)
    return {name: dataset.item_ids[dataset.histories[user][-1]] for user, name in enumerate(dataset.user_ids)}


def test_evaluation_alone_finds_the_same(cli: Cli, run: Path) -> None:
    before = metrics_of(run)
    assert cli("evaluate", run).code == 0
    assert metrics_of(run) == before


def test_without_content_all_new_items_have_the_same_score(cli: Cli, tmp_path: Path) -> None:
    """All tie, and rank at their mean; for popularity too."""
    ring = write_folder(tmp_path / "ring", small_log(users=40, length=9, items=40))
    for model in ("sasrec", "popularity", "itemknn"):
        arguments = ("run", ring, "--out", tmp_path / model, "--model", model, *QUICK[:3])
        assert cli(*arguments, "--set=dataset.hold_out_items=0.25").code == 0
        held = metrics_of(tmp_path / model)["held_out"]
        assert held["among_held_out"]["mrr"] == pytest.approx(1 / 5.5)


def test_what_is_not_fine_tuned_ranks_by_content(cli: Cli, shop: Path, features: Path, tmp_path: Path) -> None:
    arguments = ("run", shop, "--out", tmp_path / "run", "--features", features, *QUICK, "--set=finetune.epochs=0")
    assert cli(*arguments).code == 0
    found = metrics_of(tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in rows} == {"pretrain"}
    best = max(rows, key=lambda row: row["recall@20"])
    assert found["validation"]["recall@20"] == best["recall@20"], "as pre-training was validated"
    assert found["run"]["protocol"].endswith("not fine-tuned")


def test_what_is_not_fine_tuned_does_not_recommend(
    cli: Cli, refused: Callable[..., str], shop: Path, features: Path, tmp_path: Path
) -> None:
    """The fine-tuning scores of its model have random ID embeddings."""
    run = tmp_path / "run"
    trained = cli("run", shop, "--out", run, "--features", features, *QUICK, "--set=finetune.epochs=0")
    assert trained.code == 0
    assert "msm4sr recommend" not in trained.out
    assert "Example users" not in (run / "report.html").read_text()
    for command in (("recommend", run, "--history", "toy-0001"), ("export", "onnx", run, tmp_path / "onnx")):
        assert f"{run}: not fine-tuned (finetune.epochs is 0)" in refused(*command)


def test_users_who_are_held_out_are_measured_and_not_trained_on(cli: Cli, tmp_path: Path) -> None:
    ring = write_folder(tmp_path / "ring", small_log(users=20, length=9, items=12))
    counts: list[Any] = []
    for share in (0.0, 0.5):
        out = tmp_path / f"run-{share}"
        arguments = ("run", ring, "--out", out, "--model", "popularity", f"--set=dataset.hold_out_users={share}")
        assert cli(*arguments).code == 0
        assert metrics_of(out)["run"]["users"] == 20
        counts.append((out / "model" / "model.safetensors").read_bytes())
    assert counts[0] != counts[1]


def test_chance_is_the_mean_over_all_ranks() -> None:
    assert chance(40)["recall@10"] == pytest.approx(0.25)
    drawn = np.random.default_rng(0).integers(1, 41, 200_000).astype(np.float64)
    for name, value in mean_metrics(drawn).items():
        assert chance(40)[name] == pytest.approx(value, rel=0.02)


def test_a_share_that_leaves_nothing_to_measure_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    ring = write_folder(tmp_path / "ring", small_log())
    arguments = ("run", ring, "--out", tmp_path / "run", "--model", "popularity")
    assert "hold_out_items" in refused(*arguments, "--set=dataset.hold_out_items=1.5")
    assert "lower hold_out_items" in refused(*arguments, "--set=dataset.hold_out_items=0.9")
