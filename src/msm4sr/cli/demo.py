"""The main job on a generated catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from msm4sr.cli.console import TrainingProgress, console, handle_errors, progress_bar


def demo(
    out: Annotated[Path, typer.Option("--out", help="Where to put it all; made anew.")] = Path("demo"),
    users: Annotated[int, typer.Option(min=10)] = 3000,
    items: Annotated[int, typer.Option(min=40)] = 600,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """The main job on a generated toy shop: popularity, texts alone, pictures alone, and both, side by side."""
    from msm4sr.experiments.demo import run_demo
    from msm4sr.reports.run_report import write_run_report

    with handle_errors(f"interrupted; what was done is kept in {out}"):
        with progress_bar() as progress:
            done = run_demo(
                out,
                users,
                items,
                seed,
                progress=progress,
                monitor=lambda: TrainingProgress(progress),
                note=progress.console.print,
            )
        comparison = [(name, metrics["test"]) for name, metrics in done.metrics.items()]
        report = write_run_report(done.run, done.dataset, done.model, done.metrics["MSM4SR"], comparison)
        shown = ("recall@5", "recall@10", "recall@20", "ndcg@10", "mrr")
        table = Table(title=f"test, {done.dataset.n_users:,} users, all {done.dataset.n_items} items ranked")
        table.add_column("system")
        for name in shown:
            table.add_column(name, justify="right")
        best = {name: max(values[name] for _, values in comparison) for name in shown}
        for system, values in comparison:
            cells = (f"[bold]{values[n]:.4f}[/bold]" if values[n] == best[n] else f"{values[n]:.4f}" for n in shown)
            table.add_row(system, *cells)
        console.print(table)
        console.print(f"look at it: {report.absolute()}", markup=False)
