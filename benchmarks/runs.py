"""The metrics of finished runs as a table: a line for each data set and model, means over its seeds.

    python benchmarks/runs.py runs/ml-100k-0 runs/ml-100k-1 runs/ml-100k-2
    python benchmarks/runs.py 'preset=runs/ml-100k-0' '32 epochs=runs/shorter-0' '32 epochs=runs/shorter-1'

A label before a run takes the place of its model's name: runs of one model with different settings have a line each.
Deviations are those of a sample (n - 1). Runs of a line must have the same settings but for the seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from msm4sr.cli.console import handle_errors
from msm4sr.dotted import flatten
from msm4sr.errors import InputError
from msm4sr.experiments.run import read_metrics
from msm4sr.experiments.settings import read_yaml
from msm4sr.models.registry import MODELS

COLUMNS = {
    "validation N@10": ("validation", "ndcg@10"),
    "test R@10": ("test", "recall@10"),
    "N@10": ("test", "ndcg@10"),
    "excluded: R@10": ("seen_excluded", "test", "recall@10"),
    "N@10 ": ("seen_excluded", "test", "ndcg@10"),
}

# Settings that runs of a group need not share.
OWN = ("msm4sr", "data", "features_folder", "seed", "pretrain.init_from")


def value_of(metrics: dict[str, Any], path: tuple[str, ...]) -> float:
    found: Any = metrics
    for name in path:
        found = found[name]
    return float(found)


def main(runs: Annotated[list[str], typer.Argument(help="Run folders, or LABEL=FOLDER.")]) -> None:
    with handle_errors():
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        settings: dict[tuple[str, str], dict[str, Any]] = {}
        for label, _, run in (one.rpartition("=") for one in runs):
            metrics = read_metrics(Path(run))
            if metrics is None:
                raise InputError(f"{run}: no finished run here (metrics.json is missing)")
            group = metrics["run"]["data"], label or MODELS[metrics["run"]["model"]].label
            groups.setdefault(group, []).append(metrics)
            config = {
                key: value for key, value in flatten(read_yaml(Path(run) / "config.yaml")).items() if key not in OWN
            }
            if settings.setdefault(group, config) != config:
                raise InputError(f"{run}: other settings than the runs of {group[1]} on {group[0]} before it")
        print(f"| data | system | seeds | {' | '.join(COLUMNS)} | training, s |\n|---|---" + "|--:" * 7 + "|")
        for (data, system), found in groups.items():
            values = np.array([[value_of(metrics, path) for path in COLUMNS.values()] for metrics in found])
            seconds = np.mean([sum(metrics["run"]["training_seconds"].values()) for metrics in found])
            cells = [f"{mean:.4f}" for mean in values.mean(axis=0)]
            if len(found) > 1:
                cells = [f"{cell} ± {one:.4f}" for cell, one in zip(cells, values.std(axis=0, ddof=1), strict=True)]
            print(f"| {data} | {system} | {len(found)} | {' | '.join(cells)} | {seconds:.0f} |")


if __name__ == "__main__":
    typer.run(main)
