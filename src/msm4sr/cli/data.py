"""`msm4sr data` and `msm4sr fetch-images`: describe a prepared folder, and add the images that it gives by URL."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from msm4sr.cli.console import Data, console, handle_errors, progress_bar, say_next
from msm4sr.errors import InputError

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


def fetch_images(
    data: Data,
    parallel: Annotated[int, typer.Option(min=1, max=64, help="Number of parallel requests.")] = 8,
    attempts: Annotated[int, typer.Option(min=1, help="Attempts per image, with increasing waits.")] = 4,
    timeout: Annotated[float, typer.Option(min=1, help="Time limit of an attempt, in seconds.")] = 60,
    max_mib: Annotated[float, typer.Option(min=0.01, help="Size limit of an image, in MiB.")] = 20,
) -> None:
    """Download the images that DATA gives by URL. Rerun the command to resume, or to retry failed downloads."""
    with handle_errors("interrupted; downloaded images are kept. Rerun the command to resume."):
        try:
            from msm4sr.features.fetch import FetchSettings, fetch_images
        except ModuleNotFoundError:
            raise InputError("fetching images needs the extra 'fetch': pip install 'msm4sr[fetch]'") from None
        settings = FetchSettings(parallel=parallel, attempts=attempts, timeout=timeout, max_mib=max_mib)
        with progress_bar() as progress:
            report = fetch_images(data, settings, progress)
        for line in report.lines():
            console.print(escape(line))
        say_next("run", data, "--out", "RUN")
