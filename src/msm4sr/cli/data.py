"""Describe a prepared folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msm4sr.cli.console import Data, console, handle_errors

data = typer.Typer(help="Describe a prepared folder.", no_args_is_help=True)


@data.command("info")
def data_info(
    folder: Data,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with histograms and example items.")] = None,
) -> None:
    """Print the statistics of a data set."""
    from msm4sr.data.statistics import statistics

    with handle_errors():
        counted = statistics(folder)
        width = max(len(label) for label, _ in counted.lines())
        for label, value in counted.lines():
            console.print(f"{label:<{width}}  {value}", markup=False)
        if html is not None:
            from msm4sr.reports.data_report import write_data_report

            console.print(f"page: {write_data_report(counted, html)}", markup=False)
