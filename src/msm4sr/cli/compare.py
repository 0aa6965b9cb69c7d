"""`msm4sr compare`: a grid of systems, data sets and seeds, and its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from msm4sr.cli.console import Changes, TrainingProgress, console, errors, handle_errors, progress_bar, say_next
from msm4sr.cli.stages import feature_sources

if TYPE_CHECKING:
    from msm4sr.experiments.grid import Cell

SHOWN = ("ndcg@10", "recall@10")


def compare(
    config: Annotated[
        str,
        typer.Argument(help="comparison, ... (a grid of the package), or a YAML file.", metavar="CONFIG"),
    ],
    out: Annotated[Path, typer.Option("--out", help="The grid folder, to make or to continue.", metavar="GRID")],
    data: Annotated[
        list[Path], typer.Option("--data", help="A prepared folder. May be given several times.", metavar="DATA")
    ] = [],
    seeds: Annotated[
        list[int], typer.Option("--seed", min=0, help="A seed. May be given several times.", show_default="0")
    ] = [],
    rows: Annotated[
        list[str], typer.Option("--rows", metavar="NAME", help="Only this row. May be given several times.")
    ] = [],
    changes: Changes = [],
    preset: Annotated[str | None, typer.Option("--preset", help="Replaces the preset of the config.")] = None,
    settings: Annotated[
        Path | None,
        typer.Option("--settings", metavar="DIR", help="Use DIR/DATASET/ROW.yaml (or MODEL.yaml) if there is one."),
    ] = None,
    features: Annotated[
        list[str],
        typer.Option(
            "--features",
            metavar="DIR | NAME=FILE",
            help="DIR: keep features in DIR/DATASET. NAME=FILE: precomputed embeddings for the modality NAME; {data} "
            "in FILE is replaced by the name of the data set.",
            show_default="GRID/features",
        ),
    ] = [],
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Cells at a time, a process each.")] = 1,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed cells again.")] = False,
    stale_after: Annotated[
        float,
        typer.Option("--stale-after", min=1, help="Seconds after which the cell of a silent worker is resumed."),
    ] = 120,
) -> None:
    """Run a grid of systems on data sets with several seeds, one run folder per cell, and print its table.

    Rerun the command to continue an interrupted grid, or with more rows, seeds and data to extend it. Several machines
    that see the same folders may run it at once.
    """
    with handle_errors(f"interrupted; finished work is kept in {out}. Rerun the command to continue."):
        from msm4sr.experiments.claims import file_time
        from msm4sr.experiments.compare import Options, run_cells, run_in_processes
        from msm4sr.experiments.grid import cells_of, check_cells, enter_grid
        from msm4sr.experiments.grid_plan import GridRequest, plan_grid

        kept, precomputed = feature_sources(features)
        asked = plan_grid(GridRequest(config, data, seeds, rows, changes, preset, settings, precomputed))
        enter_grid(out, asked)
        cells = cells_of(out.absolute(), asked)
        check_cells(cells)
        options = Options((kept or out / "features").absolute(), file_time(out) if retry_failed else 0.0, stale_after)
        died = 0
        if jobs > 1:
            died = run_in_processes(cells, options, jobs)
        else:
            with progress_bar() as progress:
                run_cells(cells, options, progress, [TrainingProgress(progress, lines=False)])
        _print_tables(cells)
        failed = [cell for cell in cells if cell.failure()]
        if failed:
            errors.print(f"{len(failed)} of {len(cells)} cells failed; rerun with --retry-failed to run them again")
        if died:
            errors.print(f"{died} of {jobs} processes died; rerun the command to continue their cells")
        say_next("report", out)
        if failed or died:
            raise typer.Exit(1)


def _print_tables(cells: Sequence[Cell]) -> None:
    """Means over seeds on the test items, with the protocol: some models never rank seen items."""
    found = {cell.folder: metrics for cell in cells if (metrics := cell.metrics())}
    protocols = {folder: metrics["run"]["protocol"].split(", ") for folder, metrics in found.items()}
    same = [part for part in next(iter(protocols.values()), []) if all(part in p for p in protocols.values())]
    seeds = len({cell.seed for cell in cells})
    shared = f"; {', '.join(same)}" if same else ""
    console.print(f"test, mean over {seeds} seed{'s' if seeds > 1 else ''}{shared}", markup=False)
    notes = {folder: [part for part in parts if part not in same] for folder, parts in protocols.items()}
    console.print(_Means(cells, found, {metric: ("test", metric) for metric in SHOWN}, notes).table())
    if any("held_out" in metrics for metrics in found.values()):
        console.print("cold-start targets: held-out items, recommended when they are new", markup=False)
        among = {"all": "among_all", "held-out": "among_held_out"}
        columns = {f"among {name}\n{metric}": (key, metric) for name, key in among.items() for metric in SHOWN}
        held_out = {folder: metrics["held_out"] for folder, metrics in found.items() if "held_out" in metrics}
        means = _Means(cells, held_out, columns)
        table = means.table()
        table.add_row("chance", *means.chance())
        console.print(table)


@dataclass(frozen=True)
class _Means:
    """Means over seeds of some metrics, a line per row of the grid.

    Attributes:
        cells: of the grid.
        found: metrics by the folder of their cell.
        columns: from heading to section and name of a metric; all of them for each data set.
        notes: what the protocol of a cell has that not all share.
    """

    cells: Sequence[Cell]
    found: Mapping[Path, Mapping[str, Any]]
    columns: Mapping[str, tuple[str, str]]
    notes: Mapping[Path, Sequence[str]] = field(default_factory=dict)

    def table(self) -> Table:
        names = self._data_names()
        table = Table(box=SIMPLE_HEAD)
        table.add_column("row")
        for name in names:
            for heading in self.columns:
                table.add_column(f"{escape(name)}\n{heading}" if len(names) > 1 else heading, justify="right")
        if any(self.notes.values()):
            table.add_column("protocol")
        for row in {cell.row.name: cell.row for cell in self.cells}.values():
            of_row = [cell for cell in self.cells if cell.row.name == row.name]
            values = [value for name in names for value in self._values(of_row, name)]
            notes = dict.fromkeys(note for cell in of_row for note in self.notes.get(cell.folder, ()))
            table.add_row(escape(row.label), *values, *([", ".join(notes)] if any(self.notes.values()) else []))
        return table

    def chance(self) -> list[str]:
        """The columns of random rankings, which `found` has under the same section with `chance_` before it."""
        values = []
        for name in self._data_names():
            done = self._done([cell for cell in self.cells if cell.data.name == name])
            for section, metric in self.columns.values():
                values.append(f"{self._mean(done, f'chance_{section}', metric):.4f}" if done else "-")
        return values

    def _values(self, of_row: Sequence[Cell], data: str) -> list[str]:
        cells = [cell for cell in of_row if cell.data.name == data]
        done = self._done(cells)
        if not done:
            return ["failed" if any(cell.failure() for cell in cells) else "-"] * len(self.columns)
        few = f" ({len(done)} of {len(cells)})" if len(done) < len(cells) else ""
        return [f"{self._mean(done, *place):.4f}{few}" for place in self.columns.values()]

    def _data_names(self) -> list[str]:
        return list(dict.fromkeys(cell.data.name for cell in self.cells))

    def _done(self, cells: Sequence[Cell]) -> list[Path]:
        return [cell.folder for cell in cells if cell.folder in self.found]

    def _mean(self, folders: Sequence[Path], section: str, metric: str) -> float:
        return sum(float(self.found[folder][section][metric]) for folder in folders) / len(folders)
