"""Metrics beyond accuracy of a run: recorded, reported, and by the same content for every model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from services import train

from msm4sr.evaluation.metrics import CUTOFFS
from msm4sr.experiments.content import content_vectors
from msm4sr.experiments.metrics import evaluate_stage
from msm4sr.experiments.run import open_run, plan_run, read_metrics
from msm4sr.experiments.settings import resolve_settings
from msm4sr.experiments.stages import build_model, extract_stage, load_run_data

BY_IDS = {"coverage", "gini", "novelty", "popularity", "cold", "diversity_categories"}


def measures(run: Path) -> dict[str, set[str]]:
    """Protocol to the measures of a run, each at all cut-offs."""
    found = {}
    for protocol, metrics in (read_metrics(run) or {})["beyond_accuracy"].items():
        names = {name.partition("@")[0] for name in metrics}
        assert metrics.keys() == {f"{name}@{k}" for name in names for k in CUTOFFS}
        found[protocol] = names
    return found


def test_a_run_with_features_records_every_measure_by_both_protocols(run_folder: Path) -> None:
    every = BY_IDS | {"diversity_content"}
    assert measures(run_folder) == {"seen_included": every, "seen_excluded": every}


def test_popularity_is_measured_as_the_definitions_say(toyshop: Path, tmp_path: Path) -> None:
    folder = train(toyshop, tmp_path / "popularity", "popularity")
    protocols = (read_metrics(folder) or {})["beyond_accuracy"]
    included, excluded = protocols["seen_included"], protocols["seen_excluded"]
    assert included["coverage@10"] == 10 / 60, "everybody gets the same list"
    assert included["gini@10"] == pytest.approx(1 - 10 / 60)
    assert excluded["coverage@10"] > included["coverage@10"]
    for metrics in (included, excluded):
        assert metrics["popularity@5"] > metrics["popularity@50"]
        assert metrics["novelty@5"] < metrics["novelty@50"]
    assert excluded["popularity@10"] < included["popularity@10"]


def test_content_is_not_extracted_for_a_model_that_uses_none_but_read_where_it_is(
    run_folder: Path, toyshop: Path, tmp_path: Path
) -> None:
    folder = train(toyshop, tmp_path / "popularity", "popularity")
    assert measures(folder)["seen_excluded"] == BY_IDS
    alone = open_run(folder)
    dataset = load_run_data(alone)
    beside = replace(alone, features=open_run(run_folder).features)
    evaluate_stage(beside, dataset, build_model(alone.settings, dataset, {}))
    assert measures(folder)["seen_excluded"] == BY_IDS | {"diversity_content"}
    there = read_metrics(folder)
    evaluate_stage(alone, dataset, build_model(alone.settings, dataset, {}), extract_content=True)
    assert (read_metrics(folder) or {})["beyond_accuracy"] == (there or {})["beyond_accuracy"]


def test_features_of_other_items_are_neither_used_nor_replaced(toyshop: Path, run_folder: Path, tmp_path: Path) -> None:
    features = Path(shutil.copytree(open_run(run_folder).features, tmp_path / "features"))
    before = {file: file.stat().st_mtime_ns for file in features.rglob("*")}
    other = Path(shutil.copytree(toyshop, tmp_path / "other"))
    items = pl.read_parquet(other / "items.parquet").with_columns(title=pl.lit("Kite"))
    items.write_parquet(other / "items.parquet")
    run = plan_run(other, tmp_path / "run", resolve_settings("seed", "popularity"), "seed", features)
    assert content_vectors(run, load_run_data(run)) is None
    assert {file: file.stat().st_mtime_ns for file in features.rglob("*")} == before


def test_the_content_of_an_item_is_the_mean_of_its_sentences(run_folder: Path) -> None:
    run = open_run(run_folder)
    dataset = load_run_data(run)
    means = content_vectors(run, dataset)
    assert means is not None
    rows = extract_stage(run, dataset)["text"]
    assert [mean.tolist() for mean in means] == [
        pytest.approx(own.mean(axis=0).tolist(), abs=1e-6) if len(own) else [0.0] * rows.dim for own in rows
    ]
