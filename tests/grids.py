"""Grid folders for the tests of reports: of real, tiny runs, and of cells that are written as a test needs them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from msm4sr.digests import file_digest
from msm4sr.dotted import flatten
from msm4sr.evaluation.metrics import mean_metrics
from msm4sr.evaluation.users import SCHEMA
from msm4sr.experiments.metrics import evaluate_stage
from msm4sr.experiments.run import begin_run, plan_run, read_metrics, write_metrics
from msm4sr.experiments.settings import parse_change, resolve_settings
from msm4sr.experiments.stages import build_model, load_run_data, train_stage

TINY = ("model.dim=8", "model.inner_dim=8", "model.layers=1", "finetune.epochs=3")
SEEN_INCLUDED = "leave-one-out, full ranking, seen items included"
SEEN_EXCLUDED = "leave-one-out, full ranking, seen items excluded"


def write_grid(
    folder: Path,
    rows: Sequence[str | Mapping[str, Any]] = ("sasrec", "msm4sr"),
    data: Sequence[str] = ("shop",),
    seeds: Sequence[int] = (0,),
    labels: Mapping[str, str] | None = None,
    **changes: Any,
) -> Path:
    """Write grid.yaml; a row is the name of its model, or a mapping."""
    folder.mkdir(parents=True)
    content = {
        "name": "trial",
        "title": "A trial",
        "kind": "comparison",
        "data": [{"name": name, "folder": f"/data/{name}"} for name in data],
        "seeds": list(seeds),
        "rows": [_row(row, labels or {}) for row in rows],
        "best_against": ["msm4sr"],
    } | changes
    (folder / "grid.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder


def _row(row: str | Mapping[str, Any], labels: Mapping[str, str]) -> Mapping[str, Any]:
    return {"name": row, "label": labels.get(row, row.upper()), "model": row} if isinstance(row, str) else row


def cell_folder(grid: Path, row: str, data: str = "shop", seed: int = 0) -> Path:
    return grid / "cells" / data / row / f"seed-{seed}"


def write_cell(
    grid: Path,
    row: str,
    ranks: Sequence[float],
    data: str = "shop",
    seed: int = 0,
    item_counts: Sequence[int] | None = None,
    settings: Mapping[str, Any] | None = None,
    protocol: str = SEEN_INCLUDED,
    users: Sequence[str] | None = None,
    held_out: Mapping[str, Any] | None = None,
    seen_excluded: Sequence[float] | None = None,
) -> Path:
    """A finished cell: user u's test item has rank `ranks[u]`, with seen items excluded `seen_excluded[u]` (None: the
    same), and rank 1 on validation."""
    folder = cell_folder(grid, row, data, seed)
    folder.mkdir(parents=True)
    n = len(ranks)
    common = {
        "user_id": list(users or (f"u{u}" for u in range(n))),
        "item_id": [f"i{u % 7}" for u in range(n)],
        "item_count": list(item_counts or range(n)),
        "user_count": [3] * n,
        "history_length": [5 + u % 2 for u in range(n)],
        "categories": [[f"c{u % 3}"] for u in range(n)],
    }
    parts = {"validation": [1.0] * n, "test": [float(rank) for rank in ranks]}
    excluded = parts | ({} if seen_excluded is None else {"test": [float(rank) for rank in seen_excluded]})
    tables = [
        pl.DataFrame({"part": [part] * n, "rank": parts[part], "rank_seen_excluded": excluded[part], **common})
        for part in parts
    ]
    pl.concat(tables).select(*SCHEMA).cast(SCHEMA).write_parquet(folder / "users.parquet")
    _register(grid, row, settings or {})
    config = {"data": f"/data/{data}", "features_folder": "features", "preset": "best", "seed": seed}
    (folder / "config.yaml").write_text(yaml.safe_dump(config | (settings or {"model": {"name": row}})))
    epochs = [{"stage": "finetune", "epoch": e, "loss": 2.0 / e, "seconds": 2.0, "ndcg@10": e / 10} for e in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    about = {
        "users": n,
        "items": 7,
        "interactions": 5 * n,
        "parameters": 1234,
        "protocol": protocol,
        "training_seconds": {"pretrain": 0, "finetune": 6.0},
        "peak_memory_mib": 321,
        "hardware": "a CPU, 2 threads",
    }
    metrics: dict[str, Any] = {part: mean_metrics(np.array(rank)) for part, rank in parts.items()}
    metrics["seen_excluded"] = {part: mean_metrics(np.array(rank)) for part, rank in excluded.items()}
    metrics |= {"held_out": held_out} if held_out else {}
    versions = {"python": "3.11.9", "torch": "2.13.0"}
    identity = {"users.parquet": file_digest(folder / "users.parquet")}
    write_metrics(folder, metrics | {"run": about, "versions": versions, "identity": identity})
    return folder


def change_metrics(folder: Path, **changes: Any) -> None:
    """Replace entries of a cell's metrics.json."""
    write_metrics(folder, (read_metrics(folder) or {}) | changes)


def _register(grid: Path, row: str, settings: Mapping[str, Any]) -> None:
    """Change the row of grid.yaml to these settings, as far as they are settings."""
    content = yaml.safe_load((grid / "grid.yaml").read_text())
    (entry,) = (entry for entry in content["rows"] if entry["name"] == row)
    known = {key: value for key, value in settings.items() if key in ("model", "dataset", "evaluation", "finetune")}
    entry["changes"] = entry.get("changes", {}) | {k: v for k, v in flatten(known).items() if k != "model.name"}
    (grid / "grid.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def fail_cell(grid: Path, row: str, reason: str, data: str = "shop", seed: int = 0) -> None:
    folder = cell_folder(grid, row, data, seed)
    folder.mkdir(parents=True)
    (folder / "failed.json").write_text(json.dumps({"reason": reason, "traceback": None}))


def run_grid(
    folder: Path, rows: Sequence[str] = ("popularity", "itemknn", "sasrec"), seeds: Sequence[int] = (0, 1)
) -> Path:
    """A grid of real runs on users who go round a few items; the last row is ours."""
    rng = np.random.default_rng(0)
    log = [(f"u{u}", f"i{(u + 2 * step) % 12}", step) for u in range(40) for step in range(int(rng.integers(4, 9)))]
    data = folder.parent / "ring"
    data.mkdir(parents=True)
    pl.DataFrame(log, schema=["user_id", "item_id", "timestamp"], orient="row").write_parquet(
        data / "interactions.parquet"
    )
    tiny = dict(parse_change(change) for change in TINY)
    entries = [
        {"name": r, "label": r.upper(), "model": r, "preset": "seed", "changes": tiny if r == "sasrec" else {}}
        for r in rows
    ]
    write_grid(folder, entries, ("ring",), seeds, best_against=[rows[-1]])
    for row in rows:
        for seed in seeds:
            settings = resolve_settings("seed", row, TINY if row == "sasrec" else (), seed)
            run = plan_run(data, cell_folder(folder, row, "ring", seed), settings, "seed")
            begin_run(run)
            dataset = load_run_data(run)
            model = build_model(run.settings, dataset, {})
            train_stage(run, "finetune", dataset, model)
            evaluate_stage(run, dataset, model)
    return folder
