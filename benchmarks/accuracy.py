"""A chart of the accuracy of the systems of a grid against the seconds of their training.

    python benchmarks/accuracy.py GRID --plot docs/images/accuracy-scientific.png

Each point is a system: the mean over seeds of test NDCG@10, seen items excluded, and of the seconds of all stages
without validation. Run the grid on an idle machine, one cell at a time, for seconds that can be compared.
"""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from common import new_figure, save_figure

from msm4sr.cli.console import handle_errors
from msm4sr.errors import InputError
from msm4sr.reports.results import GridResults, read_grid

SHORTEST = 0.1  # seconds, at which systems without training are drawn


def points_of(results: GridResults, data: str) -> dict[str, tuple[float, float]]:
    """Label to seconds and NDCG@10 of each row that is finished on a data set."""
    points = {}
    for row in results.rows:
        metrics = [cell.metrics for cell in results.finished(data, row.name)]
        if metrics:
            seconds = np.mean([sum(one["run"]["training_seconds"].values()) for one in metrics])
            ndcg = np.mean([one["seen_excluded"]["test"]["ndcg@10"] for one in metrics])
            points[row.label] = max(SHORTEST, float(seconds)), float(ndcg)
    return points


def main(grid: Path, plot: Annotated[Path, typer.Option(help="The PNG file to write.")]) -> None:
    with handle_errors():
        results = read_grid(grid)
        points = {data: points_of(results, data) for data in results.data}
        if not any(points.values()):
            raise InputError(f"{grid}: no cell is finished")
        figure = new_figure(8 * len(points), 4.5)
        for number, (data, found) in enumerate(points.items(), start=1):
            axes = figure.add_subplot(1, len(points), number, xscale="log", title=data)
            axes.set(xlabel="training, seconds", ylabel="test NDCG@10, seen items excluded")
            axes.grid(alpha=0.3)
            axes.margins(x=0.1, y=0.1)
            for (label, point), marker in zip(found.items(), cycle("osD^vP*Xhp<>d")):
                axes.scatter(*point, marker=marker, s=60, label=label)
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        save_figure(figure, plot)


if __name__ == "__main__":
    typer.run(main)
