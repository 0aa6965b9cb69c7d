"""Models by name through the command line, on the toy shop."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from calling import Cli, small_items, small_log, write_folder

from msm4sr import from_pretrained

SMALL = ("--set", "model.dim=8", "--set", "pretrain.epochs=1", "--set", "finetune.epochs=2", "--preset", "seed")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sasrecm", "SASRecM"), ("s3rec", "S3Rec"), ("sine", "SINE"), ("difsr", "DIFSR"), ("mvrnn", "MVRNN")],
)
def test_a_model_is_trained_evaluated_and_recommends_by_name(
    name: str, kind: str, cli: Cli, shop: Path, features: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    called = cli("run", shop, "--model", name, "--out", out, "--features", features, *SMALL)
    assert called.code == 0, called
    epochs = [json.loads(line)["stage"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert epochs == ["pretrain"] * (name == "s3rec") + ["finetune"] * 2
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["run"]["model"] == name
    assert 0 < metrics["test"]["ndcg@50"] <= 1
    assert type(from_pretrained(out / "model")).__name__ == kind  # as in the model card
    assert cli("recommend", out, "--user", "user-00007").code == 0


def test_s3rec_without_categories_reports_the_losses_that_it_drops(cli: Cli, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", small_log(), small_items(title=[f"item {i}" for i in range(6)]))
    called = cli("run", data, "--model", "s3rec", "--out", tmp_path / "run", *SMALL)
    assert called.code == 0, called
    assert "no item has a category: pre-training without associated and masked attributes" in called.out


def test_options_that_the_model_does_not_use_are_named(cli: Cli, shop: Path, tmp_path: Path) -> None:
    vectors = tmp_path / "audio.parquet"
    pl.DataFrame({"item_id": ["item-0001"], "embedding": [[1.0, 2.0]]}).write_parquet(vectors)
    options = ("--features", f"audio={vectors}", "--set", "pretrain.epochs=1", "--set", "finetune.epochs=1")
    called = cli("run", shop, "--model", "lightgcn", "--out", tmp_path / "run", *options)
    assert called.code == 0, called
    assert "--set pretrain.epochs=1: has no effect on lightgcn" in called.out
    assert f"--features audio={vectors}: has no effect on lightgcn" in called.out
    assert called.out.count("no effect") == 2
