"""The systems of two grids side by side, such as one of leave-one-out and one of a temporal split.

    msm4sr compare comparison --data ml-100k --data shop --out grids/leave-one-out
    msm4sr compare comparison --data ml-100k --data shop --out grids/temporal --set dataset.split=temporal
    python benchmarks/splits.py grids/leave-one-out grids/temporal

Prints for each data set test NDCG@10 and recall@10 of every row with its rank, and the correlation of the two rankings
(Spearman's rho, Kendall's tau). The metrics of all rows exclude seen items, since sequential and graph models differ in
the default.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import typer
from scipy.stats import kendalltau, rankdata, spearmanr

from msm4sr.cli.console import handle_errors
from msm4sr.errors import InputError
from msm4sr.reports.results import GridResults, read_grid

METRICS = ("ndcg@10", "recall@10")


def means(results: GridResults, data: str, row: str) -> list[float]:
    """The metrics of a row, means over its seeds; empty: no cell is finished."""
    found = [cell.metrics["seen_excluded"]["test"] for cell in results.finished(data, row)]
    return [float(np.mean([metrics[name] for metrics in found])) for name in METRICS] if found else []


def table(data: str, grids: tuple[GridResults, GridResults]) -> str:
    """Markdown: a line per row that both grids have finished, in the order of the first grid, and the correlations."""
    rows = [row.name for row in grids[0].rows if all(row.name in grid.labels for grid in grids)]
    values = {row: [means(grid, data, row) for grid in grids] for row in rows}
    values = {row: found for row, found in values.items() if all(found)}
    if len(values) < 2:
        raise InputError(f"{grids[0].folder} and {grids[1].folder}: fewer than two rows are finished on {data} in both")
    array = np.array(list(values.values()))  # [rows, grids, metrics]
    ranks = rankdata(-array, axis=0, method="min").astype(int)
    names = [f"{grid.folder.name}: {metric}" for grid in grids for metric in ("N@10", "R@10")]
    lines = ["| " + " | ".join([data, *(f"{name} | rank" for name in names)]) + " |", "|---" + "|--:" * 8 + "|"]
    for row, of_row, rank in zip(values, array, ranks, strict=True):
        cells = [f"{value:.4f} | {place}" for value, place in zip(of_row.flat, rank.flat, strict=True)]
        lines.append("| " + " | ".join([grids[0].labels[row], *cells]) + " |")
    correlations = []
    for metric, name in enumerate(("N@10", "R@10")):
        first, second = array[:, 0, metric], array[:, 1, metric]
        rho, tau = spearmanr(first, second).statistic, kendalltau(first, second).statistic
        correlations.append(f"{name}: Spearman's rho {rho:.2f}, Kendall's tau {tau:.2f}")
    return "\n".join([*lines, "", f"Rank correlation of the {len(values)} systems, {'; '.join(correlations)}."])


def main(first: Path, second: Path) -> None:
    with handle_errors():
        grids = read_grid(first), read_grid(second)
        for data in grids[0].data:
            print(table(data, grids), end="\n\n")


if __name__ == "__main__":
    typer.run(main)
