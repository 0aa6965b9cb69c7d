"""`msm4sr report`: the page and the tables of a grid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msm4sr.cli.console import console, handle_errors


def report(
    grid: Annotated[Path, typer.Argument(help="A grid folder.", metavar="GRID", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", help="The output folder.", show_default="GRID/report", metavar="DIR")
    ] = None,
    metrics: Annotated[
        list[str],
        typer.Option("--metric", help="A metric to show. Can be given several times.", show_default="as in the paper"),
    ] = [],
) -> None:
    """Write an HTML page with a grid's results, tests and intervals, and its tables as Markdown, LaTeX and CSV.

    Also works for a grid that is still running.
    """
    with handle_errors():
        from msm4sr.reports.comparison import check_metrics
        from msm4sr.reports.grid_report import write_grid_report

        console.print(f"report: {write_grid_report(grid, out, check_metrics(metrics))}", markup=False)
