"""Lists, segments and other data where a temporal split gives a user several targets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from calling import Cli, metrics_of
from temporal import CUTS, ITEMS, LOG, write

from msm4sr.evaluation.metrics import mean_metrics
from msm4sr.evaluation.segments import segments
from msm4sr.evaluation.users import users_of

SPLIT = ("dataset.split=temporal", "dataset.targets=all", *(f"dataset.{name}={value}" for name, value in CUTS.items()))
QUICK = ("finetune.epochs=1", "model.dim=8", "model.inner_dim=8")


def test_a_run_with_several_targets_has_lists_segments_and_an_evaluation_on_other_users(
    cli: Cli, tmp_path: Path
) -> None:
    run, other, shop = tmp_path / "run", tmp_path / "other", write(tmp_path / "shop", LOG, None)
    pl.DataFrame({"item_id": ITEMS}).write_parquet(shop / "items.parquet")
    changes = [word for change in (*SPLIT, *QUICK) for word in ("--set", change)]
    called = cli("run", shop, "--out", run, "--model", "sasrec", *changes)
    assert called.code == 0, called
    metrics = metrics_of(run)
    assert 0 < metrics["beyond_accuracy"]["seen_excluded"]["coverage@10"] <= 1
    users = pl.read_parquet(run / "users.parquet").filter(pl.col("part") == "test")
    assert users["user_id"].n_unique() < len(users)
    for name, found in segments(users).items():
        assert all(0 < one.users <= users["user_id"].n_unique() for one in found), name
    warm = users.filter(pl.col("user_count") > 0)
    assert mean_metrics(warm["rank"].to_numpy(), users_of(warm)) == metrics["test"]
    assert "Segments" in (run / "report.html").read_text()

    other.mkdir()
    log = pl.read_parquet(shop / "interactions.parquet")
    names = log["user_id"].unique(maintain_order=True)
    log.filter(pl.col("user_id").is_in(names.tail(15).implode())).write_parquet(other / "interactions.parquet")
    pl.read_parquet(shop / "items.parquet").write_parquet(other / "items.parquet")
    called = cli("evaluate", run, "--data", other)
    assert called.code == 0, called
    there = pl.read_parquet(run / "evaluations" / "other" / "users.parquet")
    assert there["user_id"].n_unique() <= 15
    assert np.isfinite(there["rank"].to_numpy()).all()
    assert metrics_of(run / "evaluations" / "other")["run"]["protocol"].startswith("temporal")
