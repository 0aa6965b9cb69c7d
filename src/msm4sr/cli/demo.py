"""`msm4sr demo`: four systems on a generated toy shop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from msm4sr.cli.console import console, handle_errors, progress_bar

if TYPE_CHECKING:
    from msm4sr.experiments.demo import Demo

SHOWN = ("recall@5", "recall@10", "recall@20", "ndcg@10", "mrr")


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder of the demo; an earlier demo is replaced.")] = Path("demo"),
    users: Annotated[int, typer.Option(min=10, help="Number of users.")] = 3000,
    items: Annotated[int, typer.Option(min=40, help="Number of items.")] = 600,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every random draw.")] = 0,
) -> None:
    """Train and compare on a generated toy shop: popularity, texts only, images only, and both."""
    from msm4sr.experiments.demo import run_demo
    from msm4sr.reports.run_report import write_run_report
    from msm4sr.training.callbacks import TrainingProgress

    with handle_errors(f"interrupted; finished work is kept in {out}"):
        with progress_bar() as progress:
            done = run_demo(out, users, items, seed, progress=progress, callbacks=[TrainingProgress(progress)])
        comparison = [(name, metrics["test"]) for name, metrics in done.metrics.items()]
        report = write_run_report(done.run, done.dataset, done.model, done.metrics["MSM4SR"], comparison)
        console.print(_table(done))
        console.print(f"report: {report.absolute()}", markup=False)


def _table(done: Demo) -> Table:
    """The test metrics, the best of each in bold."""
    from msm4sr.reports.tables import places

    systems = {name: metrics["test"] for name, metrics in done.metrics.items()}
    title = f"test, {done.dataset.n_users:,} users, all {done.dataset.n_items} items ranked"
    table = Table("system", *(Column(name, justify="right") for name in SHOWN), title=title)
    marks = {name: places([values[name] for values in systems.values()]) for name in SHOWN}
    for row, (system, values) in enumerate(systems.items()):
        cells = (f"[bold]{values[n]:.4f}[/bold]" if marks[n][row] == 1 else f"{values[n]:.4f}" for n in SHOWN)
        table.add_row(system, *cells)
    return table
