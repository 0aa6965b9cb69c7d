"""A grid of systems, data sets and seeds, and its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        typer.Argument(help="comparison, ... (a grid that ships with the package), or a YAML file.", metavar="CONFIG"),
    ],
    out: Annotated[Path, typer.Option("--out", help="The grid folder, to make or to go on with.", metavar="GRID")],
    data: Annotated[
        list[Path], typer.Option("--data", help="A prepared folder. May be given several times.", metavar="DATA")
    ] = [],
    seeds: Annotated[
        list[int], typer.Option("--seed", min=0, help="A seed. May be given several times.", show_default="0")
    ] = [],
    rows: Annotated[
        list[str], typer.Option("--rows", metavar="NAME", help="This row alone. May be given several times.")
    ] = [],
    changes: Changes = [],
    preset: Annotated[str | None, typer.Option("--preset", help="In place of that of the config.")] = None,
    settings: Annotated[
        Path | None,
        typer.Option("--settings", metavar="DIR", help="Take DIR/DATASET/ROW.yaml (or MODEL.yaml) where it is there."),
    ] = None,
    features: Annotated[
        list[str],
        typer.Option(
            "--features",
            metavar="DIR | NAME=FILE",
            help="DIR: keep features in DIR/DATASET. NAME=FILE: vectors of your own for the modality NAME; {data} in "
            "FILE stands for the data set.",
            show_default="GRID/features",
        ),
    ] = [],
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Cells at a time, a process each.")] = 1,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Do cells that failed again.")] = False,
    stale_after: Annotated[
        float,
        typer.Option("--stale-after", min=1, help="Seconds after which a silent worker's cell is taken over."),
    ] = 120,
) -> None:
    """Run a grid of systems on data sets with several seeds, one run folder a cell, and print its table.

    The same command goes on where it was interrupted, and adds rows, seeds and data to a grid. Several machines that
    see the same folders may run it at once.
    """
    with handle_errors(f"interrupted; what was done is kept in {out}: the same command goes on"):
        from msm4sr.experiments.claims import file_time
        from msm4sr.experiments.compare import Options, do_cells, do_in_processes
        from msm4sr.experiments.grid import cells_of, check_cells, enter_grid
        from msm4sr.experiments.grid_plan import GridRequest, plan_grid

        kept, vectors = feature_sources(features)
        asked = plan_grid(GridRequest(config, data, seeds, rows, changes, preset, settings, vectors))
        enter_grid(out, asked)
        cells = cells_of(out.absolute(), asked)
        check_cells(cells)
        options = Options((kept or out / "features").absolute(), file_time(out) if retry_failed else 0.0, stale_after)
        news = _News(cells, options.retry_before)
        died = 0
        if jobs > 1:
            died = do_in_processes(cells, options, jobs, news.tell)
        else:
            with progress_bar() as progress:
                do_cells(
                    cells,
                    options,
                    watch=news.tell,
                    progress=progress,
                    monitor=lambda: TrainingProgress(progress, lines=False),
                    waiting=lambda folders: news.wait(len(folders), stale_after),
                )
        _tables(cells)
        failed = [cell for cell in cells if cell.failure()]
        if failed:
            errors.print(f"{len(failed)} of {len(cells)} cells failed; --retry-failed does them again")
        if died:
            errors.print(f"{died} of {jobs} processes died; the same command goes on with what they left")
        say_next("report", out)
        if failed or died:
            raise typer.Exit(1)


class _News:
    """Tells of each cell that has come to an end, whoever did it, once."""

    def __init__(self, cells: Sequence[Cell], retry_before: float) -> None:
        self._cells, self._retry_before = cells, retry_before
        self._waits = False
        self._told: set[Path] = {cell.folder for cell in cells if cell.finished}
        if self._told:
            console.print(f"{len(self._told)} of {len(cells)} cells are finished already")

    def tell(self) -> None:
        from msm4sr.experiments.compare import is_open

        for cell in self._cells:
            if cell.folder in self._told or is_open(cell, self._retry_before):
                continue
            metrics, failure = cell.metrics(), cell.failure()
            if metrics is not None:
                found = "  ".join(f"{name} {metrics['test'][name]:.4f}" for name in SHOWN)
                self._say(cell, found)
            elif failure is not None:
                self._say(cell, f"[red]failed[/red]: {escape(failure['reason'])}")

    def wait(self, count: int, stale_after: float) -> None:
        """The first time that there is nothing to do but to wait."""
        if not self._waits:
            self._waits = True
            console.print(
                f"others are at what is left ({count}); waiting (a cell whose worker was killed is taken over after "
                f"{stale_after:g} s, see --stale-after)"
            )

    def _say(self, cell: Cell, what: str) -> None:
        self._told.add(cell.folder)
        console.print(f"{len(self._told)}/{len(self._cells)}  {escape(cell.title)}  {what}")


def _tables(cells: Sequence[Cell]) -> None:
    """Means over seeds on the test items, and by which protocol: some models never rank what a user took."""
    found = {cell.folder: metrics for cell in cells if (metrics := cell.metrics())}
    protocols = {folder: metrics["run"]["protocol"].split(", ") for folder, metrics in found.items()}
    same = [part for part in next(iter(protocols.values()), []) if all(part in p for p in protocols.values())]
    seeds = len({cell.seed for cell in cells})
    shared = f"; {', '.join(same)}" if same else ""
    console.print(f"test, mean over {seeds} seed{'s' if seeds > 1 else ''}{shared}", markup=False)
    differs = {folder: [part for part in parts if part not in same] for folder, parts in protocols.items()}
    _table(cells, found, {metric: ("test", metric) for metric in SHOWN}, differs)
    if any("held_out" in metrics for metrics in found.values()):
        console.print("items that were held out, recommended when they arrive", markup=False)
        among = {"all": "among_all", "held-out": "among_held_out"}
        columns = {f"among {name}\n{metric}": (key, metric) for name, key in among.items() for metric in SHOWN}
        held_out = {folder: metrics["held_out"] for folder, metrics in found.items() if "held_out" in metrics}
        _table(cells, held_out, columns, {}, chance=True)


def _table(
    cells: Sequence[Cell],
    found: Mapping[Path, Mapping[str, Any]],
    columns: Mapping[str, tuple[str, str]],
    differs: Mapping[Path, Sequence[str]],
    chance: bool = False,
) -> None:
    """A table of means over seeds: a line a row, and for each data set `columns`, heading to where the value stands.

    With `chance` a last line, of what stands under the same name with `chance_` before it.
    """
    names = list(dict.fromkeys(cell.data.name for cell in cells))
    table = Table(box=SIMPLE_HEAD)
    table.add_column("row")
    for name in names:
        for heading in columns:
            table.add_column(f"{escape(name)}\n{heading}" if len(names) > 1 else heading, justify="right")
    if any(differs.values()):
        table.add_column("protocol")

    def mean(folders: Sequence[Path], place: tuple[str, str]) -> float:
        part, metric = place
        return sum(float(found[folder][part][metric]) for folder in folders) / len(folders)

    for row in {cell.row.name: cell.row for cell in cells}.values():
        shown: list[str] = []
        notes: list[str] = []
        for name in names:
            own = [cell for cell in cells if (cell.row.name, cell.data.name) == (row.name, name)]
            done = [cell.folder for cell in own if cell.folder in found]
            notes += [part for folder in done for part in differs.get(folder, ())]
            few = f" ({len(done)} of {len(own)})" if len(done) < len(own) else ""
            missing = "failed" if any(cell.failure() for cell in own) else "-"
            shown += [f"{mean(done, place):.4f}{few}" if done else missing for place in columns.values()]
        table.add_row(escape(row.label), *shown, *([", ".join(dict.fromkeys(notes))] if any(differs.values()) else []))
    if chance:
        done_on = [[cell.folder for cell in cells if cell.data.name == name and cell.folder in found] for name in names]
        places = [(f"chance_{part}", metric) for part, metric in columns.values()]
        table.add_row("chance", *(f"{mean(done, p):.4f}" if done else "-" for done in done_on for p in places))
    console.print(table)
