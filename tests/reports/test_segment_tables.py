"""Results by segment in the reports of a grid and of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from grids import write_cell, write_grid
from test_pages import EVIL, Page
from typer.testing import CliRunner

from msm4sr.cli import app
from msm4sr.data.toyshop import generate_toyshop
from msm4sr.digests import file_digest
from msm4sr.evaluation.metrics import mean_metrics
from msm4sr.experiments.run import read_metrics, write_metrics
from msm4sr.reports.comparison import METRICS, Comparison, measure
from msm4sr.reports.results import read_grid
from msm4sr.reports.segments import segment_metrics, segment_tables
from msm4sr.reports.table_writer import Table


def with_column(folder: Path, name: str, values: list[str]) -> None:
    """Add a column of the data's users.parquet to a cell."""
    table = pl.read_parquet(folder / "users.parquet")
    own = values * (len(table) // len(values))
    table.with_columns(pl.Series(name, own)).write_parquet(folder / "users.parquet")
    metrics = read_metrics(folder)
    assert metrics is not None
    metrics["identity"]["users.parquet"] = file_digest(folder / "users.parquet")
    write_metrics(folder, metrics)


def test_each_kind_of_segment_has_a_table_of_means_over_seeds(tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "grid", ("sasrec", "msm4sr"), seeds=(0, 1))
    ranks = {("sasrec", 0): [3, 12, 40, 9], ("sasrec", 1): [4, 2, 1, 9], ("msm4sr", 0): [1] * 4, ("msm4sr", 1): [1] * 4}
    for (row, seed), own in ranks.items():
        with_column(write_cell(grid, row, own, seed=seed), "user.plan / level", ["a", "b", "b", "a"])
    (comparison,) = measure(read_grid(grid), METRICS, resamples=20)
    tables = tables_of(comparison)
    kinds = ("history-length", "popularity-of-the-target", "category", "plan-level")
    assert list(tables) == [f"trial-by-{kind}-shop" for kind in kinds]
    table = tables["trial-by-plan-level-shop"]
    assert table.title == "By plan / level, shop"
    assert [(c.group, c.name) for c in table.columns] == [
        (metric, name) for metric in ("Recall@10", "NDCG@10") for name in ("a (n=2)", "b (n=2)")
    ]
    by_plan = {"a": [0, 3], "b": [1, 2]}
    sasrec = next(row for row in table.rows if row.label == "SASREC")
    expected = [
        np.mean([mean_metrics(np.array(ranks["sasrec", seed], float)[users])[metric] for seed in (0, 1)])
        for metric in ("recall@10", "ndcg@10")
        for users in by_plan.values()
    ]
    assert [cell.value for cell in sasrec.cells] == expected


def test_the_popularity_of_the_target_is_in_buckets(tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "grid", ("sasrec", "msm4sr"), seeds=(0, 1))
    for seed in (0, 1):
        write_cell(grid, "sasrec", [1, 11 + seed, 20, 1 + 10 * seed], seed=seed, item_counts=[0, 0, 7, 99])
    (comparison,) = measure(read_grid(grid), METRICS, resamples=20)
    table = tables_of(comparison)["trial-by-popularity-of-the-target-shop"]
    assert [c.name for c in table.columns[:3]] == ["0 (n=2)", "6-10 (n=1)", ">50 (n=1)"]
    (row,) = table.rows
    assert [cell.value for cell in row.cells[:3]] == [0.5, 0.0, 0.5]  # of sasrec alone, means over both seeds


def test_segments_of_different_users_have_no_best_value(tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "grid", ("sasrec", "msm4sr"))
    write_cell(grid, "sasrec", [1, 2, 30, 4], item_counts=[0, 0, 7, 7])
    write_cell(grid, "msm4sr", [9, 1, 1, 1], item_counts=[0, 7, 7, 7])
    (comparison,) = measure(read_grid(grid), METRICS, resamples=20)
    table = tables_of(comparison)["trial-by-popularity-of-the-target-shop"]
    assert [c.name for c in table.columns[:2]] == ["0", "6-10"]
    assert "different users" in table.notes[0]
    assert not any(cell.place for row in table.rows for cell in row.cells)


def test_columns_of_similar_names_have_tables_of_their_own(tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "grid", ("sasrec",))
    cell = write_cell(grid, "sasrec", [3, 12, 40, 9])
    for name in ("user.age group", "user.age-group", "user.年齢", "user.性別"):
        with_column(cell, name, ["a", "b", "b", "a"])
    (comparison,) = measure(read_grid(grid), METRICS, resamples=20)
    assert len(tables_of(comparison)) == 7
    assert {"trial-by-年齢-shop", "trial-by-性別-shop"} <= tables_of(comparison).keys()


def tables_of(comparison: Comparison) -> dict[str, Table]:
    return {table.name: table for table in segment_tables(comparison, "shop", segment_metrics(comparison, "shop"))}


def test_a_run_reports_segments_of_the_columns_of_its_users(tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    generate_toyshop(shop, users=60, items=60)
    ids = pl.read_parquet(shop / "interactions.parquet")["user_id"].unique(maintain_order=True)
    plans = [EVIL if place % 3 else "free" for place in range(len(ids))]
    pl.DataFrame({"user_id": ids, "plan": plans}).write_parquet(shop / "users.parquet")
    called = CliRunner().invoke(app, ["run", str(shop), "--out", str(tmp_path / "run"), "--model", "popularity"])
    assert called.exit_code == 0, called.output
    page = Page((tmp_path / "run" / "report.html").read_text())
    for part in (
        "Segments",
        "history length",
        "popularity of the target",
        "category",
        "plan",
        "free",
        "Beyond accuracy",
    ):
        assert part in page.text, part
    assert not page.all("script")
