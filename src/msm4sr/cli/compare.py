"""`msm4sr compare` and `msm4sr report`: a grid of systems, data sets and seeds, its table and its page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from msm4sr.cli.console import (
    Changes,
    Cpus,
    Gpus,
    Jobs,
    RayAddress,
    check_workers,
    chosen_executor,
    console,
    errors,
    feature_sources,
    handle_errors,
    progress_bar,
    say_next,
)
from msm4sr.cluster import check_local_path
from msm4sr.errors import InputError

if TYPE_CHECKING:
    from msm4sr.reports.results import GridResults
    from msm4sr.reports.table_writer import Table as ReportTable

SHOWN = ("ndcg@10", "recall@10")


Config = Annotated[
    str, typer.Argument(help="A built-in grid (comparison, ablation, ...) or a YAML file.", metavar="CONFIG")
]
GridFolder = Annotated[Path, typer.Option("--out", help="The grid folder, new or to continue.", metavar="GRID")]
DataFolders = Annotated[
    list[Path], typer.Option("--data", help="A prepared folder. Can be given several times.", metavar="DATA")
]
Seeds = Annotated[
    list[int], typer.Option("--seed", min=0, help="A seed. Can be given several times.", show_default="0")
]
Rows = Annotated[list[str], typer.Option("--rows", metavar="NAME", help="Only this row. Can be given several times.")]
OtherPreset = Annotated[str | None, typer.Option("--preset", help="Replaces the preset of the config.")]
SettingsFolder = Annotated[
    Path | None,
    typer.Option("--settings", metavar="DIR", help="Use DIR/DATASET/ROW.yaml (or MODEL.yaml) if it exists."),
]
Features = Annotated[
    list[str],
    typer.Option(
        "--features",
        metavar="DIR | NAME=FILE",
        help="DIR: keep features in DIR/DATASET. NAME=FILE: precomputed embeddings for the modality NAME; {data} in "
        "FILE is replaced by the name of the data set.",
        show_default="GRID/features",
    ),
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Run failed cells again.")]


def compare(
    config: Config,
    out: GridFolder,
    data: DataFolders = [],
    seeds: Seeds = [],
    rows: Rows = [],
    changes: Changes = [],
    preset: OtherPreset = None,
    settings: SettingsFolder = None,
    features: Features = [],
    jobs: Jobs = 1,
    ray: RayAddress = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
    retry_failed: RetryFailed = False,
) -> None:
    """Run a grid of systems on data sets with several seeds, one run folder per cell, and print its table.

    Rerun the command to continue an interrupted grid, or with more rows, seeds and data to extend it.
    """
    with handle_errors(f"interrupted; finished work is kept in {out}. Rerun the command to continue."):
        from msm4sr.experiments.compare import locked_grid, run_cells
        from msm4sr.experiments.grid import cells_of, check_cells, join_grid, write_grid
        from msm4sr.experiments.grid_config import GridRequest, plan_grid
        from msm4sr.reports.results import read_grid

        check_workers(ray, cpus, gpus)
        check_local_path("--out", out)
        for folder in data:
            check_local_path("--data", folder)
            if not folder.is_dir():
                raise InputError(f"--data {folder}: no such folder")
        kept, precomputed = feature_sources(features)
        asked = plan_grid(GridRequest(config, data, seeds, rows, changes, preset, settings, precomputed))
        join_grid(out, asked)  # refused before anything is written
        cells = cells_of(out.absolute(), asked)
        folder = (kept or out / "features").absolute()
        read = [entry.folder for entry in asked.data]
        with (
            locked_grid(out),
            chosen_executor(jobs, ray, cpus, gpus, read, out) as executor,
            progress_bar() as progress,
        ):
            grid = join_grid(out, asked)
            check_cells(cells)
            write_grid(out, grid)
            lost = run_cells(cells, folder, executor, progress, retry_failed=retry_failed)
        _print_tables(read_grid(out.absolute(), asked))
        failed = [cell for cell in cells if cell.failure()]
        if failed:
            noun = "cell" if len(cells) == 1 else "cells"
            errors.print(f"{len(failed)} of {len(cells)} {noun} failed; rerun with --retry-failed to try again")
        if lost:
            errors.print(f"{lost} of {len(cells)} cells were lost, as said above; rerun the command to continue")
        say_next("report", out)
        if failed or lost:
            raise typer.Exit(1)


def _print_tables(results: GridResults) -> None:
    """Print means over the seeds on the test part, and metrics of held-out and of cold items and users, if any."""
    from msm4sr.reports.comparison import measure
    from msm4sr.reports.tables import cold_table, held_out_table, main_table

    for comparison in measure(results, SHOWN, resamples=0):
        seeds = f"mean over {len(results.seeds)} seed{'s' if len(results.seeds) > 1 else ''}"
        console.print(f"test, {seeds}; {comparison.split}, full ranking{comparison.suffix}", markup=False)
        _print_table(main_table(comparison))
        for table in (
            make(comparison, data) for data in comparison.results.data for make in (held_out_table, cold_table)
        ):
            if table.rows:
                console.print(table.title, markup=False)
                _print_table(table)


def _print_table(table: ReportTable) -> None:
    """Print a table of the report without published values; text comes last, so that numbers are next to the labels."""
    shown = [number for number, column in enumerate(table.columns) if not column.printed]
    shown.sort(key=lambda number: table.columns[number].words)
    printed = Table(table.corner, box=SIMPLE_HEAD)
    for column in (table.columns[number] for number in shown):
        printed.add_column(escape(f"{column.group}\n{column.name}"), justify="left" if column.words else "right")
    for row in table.rows:
        cells = [row.cells[number] for number in shown]
        printed.add_row(escape(row.label), *(escape(f"{cell.text} {cell.plus_minus}".strip()) for cell in cells))
    console.print(printed)
    for note in table.notes:
        if note.startswith("*"):
            console.print(note, markup=False)


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
