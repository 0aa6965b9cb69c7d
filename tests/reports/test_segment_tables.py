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
from msm4sr.reports.comparison import METRICS, measure
from msm4sr.reports.results import read_grid
from msm4sr.reports.segments import segment_tables


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
    tables = {table.name: table for table in segment_tables(comparison, "shop")}
    assert list(tables) == [f"trial-by-{kind}-shop" for kind in ("history-length", "category", "plan-level")]
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


def test_a_run_reports_segments_of_the_columns_of_its_users(tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    generate_toyshop(shop, users=60, items=60)
    ids = pl.read_parquet(shop / "interactions.parquet")["user_id"].unique(maintain_order=True)
    plans = [EVIL if place % 3 else "free" for place in range(len(ids))]
    pl.DataFrame({"user_id": ids, "plan": plans}).write_parquet(shop / "users.parquet")
    called = CliRunner().invoke(app, ["run", str(shop), "--out", str(tmp_path / "run"), "--model", "popularity"])
    assert called.exit_code == 0, called.output
    page = Page((tmp_path / "run" / "report.html").read_text())
    for part in ("Segments", "history length", "target's popularity", "category", "plan", "free", "Beyond accuracy"):
        assert part in page.text, part
    assert not page.all("script")
