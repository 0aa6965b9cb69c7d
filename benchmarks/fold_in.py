"""The graph models of a grid without and with a user's validation item folded in before test, by the same weights.

    python benchmarks/fold_in.py grids/comparison

Sequential models read the validation item as the last of the history; a graph model's user has the training items only,
unless `model.fold_in_new_items` is true. Prints test metrics, seen items excluded, as means over the seeds.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import typer

from msm4sr.cli.console import handle_errors
from msm4sr.errors import InputError
from msm4sr.evaluation.evaluate import EvaluationSettings, evaluate
from msm4sr.experiments.run import open_run
from msm4sr.experiments.stages import build_model, extract_stage, load_run_data, restore_last
from msm4sr.models.graph_model import GraphModel
from msm4sr.models.registry import MODELS
from msm4sr.reports.results import Outcome, read_grid

METRICS = ("recall@10", "ndcg@10")


def without_and_with(cell: Outcome) -> list[list[float]]:
    """The metrics of a finished cell without and with folding in: [2, metrics]."""
    run = open_run(cell.folder)
    dataset = load_run_data(run)
    model = build_model(run.settings, dataset, extract_stage(run, dataset))
    restore_last(run, dataset, model)
    assert isinstance(model, GraphModel)
    found = []
    for fold_in in (False, True):
        model.config = model.config.model_copy(update={"fold_in_new_items": fold_in})
        metrics = evaluate(model, dataset, "test", EvaluationSettings(exclude_seen=True))
        found.append([metrics[name] for name in METRICS])
    return found


def main(grid: Path) -> None:
    with handle_errors():
        logging.getLogger("msm4sr").setLevel(logging.ERROR)  # print the table only
        results = read_grid(grid)
        rows = [row for row in results.rows if issubclass(MODELS[row.model], GraphModel)]
        lines = []
        for data, row in ((data, row) for data in results.data for row in rows):
            if cells := results.finished(data, row.name):
                mean = np.mean([without_and_with(cell) for cell in cells], axis=0)  # [2, metrics]
                values = " | ".join(f"{value:.4f}" for value in mean.flat)
                lines.append(f"| {data} | {row.label} | {len(cells)} | {values} |")
        if not lines:
            raise InputError(f"{grid}: no cell of a graph model is finished")
        print("| data | system | seeds | R@10 | N@10 | folded in: R@10 | N@10 |\n|---|---|--:|--:|--:|--:|--:|")
        print("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
