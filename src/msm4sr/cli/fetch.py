"""Pictures that are named by address."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from msm4sr.cli.console import Data, console, handle_errors, progress_bar, say_next


def fetch_images(
    data: Data,
    parallel: Annotated[int, typer.Option(min=1, max=64, help="Requests at a time.")] = 8,
    attempts: Annotated[int, typer.Option(min=1, help="Tries of a picture, after waits that grow.")] = 4,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for one try.")] = 60,
    max_mib: Annotated[float, typer.Option(min=0.01, help="Largest picture, in MiB.")] = 20,
) -> None:
    """Download the pictures that DATA's items name by address; run it again to go on or to retry what failed."""
    with handle_errors("interrupted; what was fetched stays, the same command goes on"):
        from msm4sr.features.fetch import FetchSettings, fetch_images

        settings = FetchSettings(parallel=parallel, attempts=attempts, timeout=timeout, max_mib=max_mib)
        with progress_bar() as progress:
            report = fetch_images(data, settings, progress)
        for line in report.lines():
            console.print(escape(line))
        say_next("run", data, "--out", "RUN")
