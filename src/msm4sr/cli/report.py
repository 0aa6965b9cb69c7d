"""The tables and the page of a grid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msm4sr.cli.console import console, handle_errors


def report(
    grid: Annotated[Path, typer.Argument(help="A grid folder.", metavar="GRID", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to write it.", show_default="GRID/report", metavar="DIR")
    ] = None,
    metrics: Annotated[
        list[str],
        typer.Option("--metric", help="A column of the tables; several times.", show_default="as in the paper"),
    ] = [],
) -> None:
    """One page of a grid's results, with tests and intervals, and its tables as Markdown, LaTeX and CSV.

    It can be called while cells are still at work, and again.
    """
    with handle_errors():
        from msm4sr.reports.comparison import check_metrics
        from msm4sr.reports.grid_report import write_grid_report

        page = write_grid_report(grid, out, check_metrics(metrics))
        console.print(f"report: {page}", markup=False)
