"""The real pipeline on a small part of MovieLens-100K: real posters and texts through the real encoders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from msm4sr.cli import app
from msm4sr.data.dataset import load_dataset, training_histories
from msm4sr.evaluation.evaluate import evaluate
from msm4sr.models.registry import from_pretrained

FILMS = 150  # the most watched ones: seconds of encoding in place of minutes
FAST = ("--set", "pretrain.epochs=2", "--set", "finetune.epochs=4", "--set", "finetune.batch_pairs=512")

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def films(real_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder with the most watched films of MovieLens-100K and what was watched of them."""
    source, folder = real_data("ml-100k"), tmp_path_factory.mktemp("real") / "films"
    log = pl.read_parquet(source / "interactions.parquet")
    chosen = log["item_id"].value_counts(sort=True).head(FILMS)["item_id"]
    items = pl.read_parquet(source / "items.parquet").filter(pl.col("item_id").is_in(chosen.implode()))
    (folder / "images").mkdir(parents=True)
    for image in items["image"].drop_nulls():
        shutil.copy(source / image, folder / image)
    items.write_parquet(folder / "items.parquet")
    log.filter(pl.col("item_id").is_in(chosen.implode())).write_parquet(folder / "interactions.parquet")
    return folder


@pytest.fixture(scope="module")
def finished(films: Path) -> Path:
    """A finished run on `films`."""
    out = films.parent / "run"
    result = CliRunner().invoke(app, ["run", str(films), "--preset", "best", "--out", str(out), *FAST])
    assert result.exit_code == 0, result.output
    return out


def test_a_run_on_real_films_beats_chance(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    chance = 10 / FILMS
    assert metrics["test"]["recall@10"] > 1.5 * chance
    assert 0 < metrics["test"]["ndcg@10"] < 1


def test_the_stored_model_alone_gives_the_metrics_of_the_run(finished: Path, films: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    assert evaluate(from_pretrained(finished / "model"), load_dataset(films), "test") == metrics["test"]


def test_every_poster_and_title_of_real_films_is_read(finished: Path, films: Path) -> None:
    items = pl.read_parquet(films / "items.parquet")
    posters = json.loads((finished / "features" / "visual-pooled-efficientnet-lite0" / "manifest.json").read_text())
    assert posters["items_with_rows"] == items["image"].is_not_null().sum()
    texts = json.loads((finished / "features" / "text-minilm" / "manifest.json").read_text())
    assert texts["items_with_rows"] == len(items)


def test_recommendations_for_a_real_user_are_films_not_yet_watched(finished: Path, films: Path) -> None:
    dataset = load_dataset(films)
    page = finished / "next.html"
    result = CliRunner().invoke(app, ["recommend", str(finished), "--user", dataset.user_ids[0], "--html", str(page)])
    assert result.exit_code == 0, result.output
    watched = {dataset.items["title"][int(item)] for item in dataset.histories[0]}
    rows = [line for line in result.output.splitlines() if line.startswith("│")]
    assert len(rows) == 10
    assert not any(title in row for title in watched for row in rows)
    assert "data:image/jpeg;base64" in page.read_text()


def test_no_item_of_validation_or_test_is_trained_on(films: Path) -> None:
    dataset = load_dataset(films)
    training = training_histories(dataset)
    for user in range(dataset.n_users):
        assert training[user].tolist() == dataset.histories[user][:-2].tolist()
