"""Speed and memory of both stages by the size of the catalogue, the length of histories and the number of users.

    python benchmarks/growth.py                          # a table (Markdown) and docs/images/growth.png
    python benchmarks/growth.py --before CHECKOUT        # the sizes of the catalogue only, also with another version
    python benchmarks/growth.py --quick                  # two small sizes of each: a smoke test

Catalogues are generated (`generate.py`): 384-d and 256-d embeddings, mapped from a file as those of a feature store.
Each cell runs in a separate process, so that its peak memory is its own. With `--before`, the folder of a checkout of
an earlier commit, both versions run every cell in turn, `--rounds` times; the table has the median of each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from common import Changes, Plot, Preset, Threads, describe, describe_preset, new_figure, save_figure
from steps import Stage

from msm4sr.cli.console import handle_errors
from msm4sr.experiments.settings import resolve_settings

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "src"
STAGES: tuple[Stage, ...] = ("pretrain", "finetune")
LABELS = {"items": "items of the catalogue", "history": "max_history", "users": "users"}
SIZES = (3_000, 30_000, 300_000, 1_000_000)


@dataclass(frozen=True)
class Cell:
    """One size of everything."""

    stage: Stage
    history: int = 200
    """`max_history` of the model."""
    items: int = 3_000
    users: int = 3_000
    length: int = 60
    """Mean length of the generated histories."""


@dataclass(frozen=True)
class Result:
    """What `growth_cell.measure` returns for a cell."""

    steps: int
    pairs_per_second: float
    first_step: float
    peak: float
    above: float


@dataclass(frozen=True)
class Options:
    """Of all cells."""

    preset: str
    changes: list[str]
    threads: int
    """0: those of the environment."""
    steps: int
    seconds: float
    cache: str


def run_cell(cell: Cell, options: Options, source: Path) -> Result | None:
    """Measure a cell with the package in `source`; None if its process died, most likely for lack of memory."""
    command = [sys.executable, str(HERE / "growth_cell.py"), json.dumps(asdict(cell) | asdict(options))]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(source)}, capture_output=True, text=True)
    if done.returncode < 0:
        return None
    if done.returncode:
        raise RuntimeError(done.stderr)
    return Result(**json.loads(done.stdout.splitlines()[-1]))


def cells(quick: bool) -> Iterator[tuple[str, Cell]]:
    """The name of the varied size, and a cell."""
    usual = Cell("pretrain")
    series = {
        "items": [replace(usual, items=n) for n in SIZES],
        "history": [replace(usual, history=n, length=300) for n in (25, 50, 100, 200)],
        "users": [replace(usual, users=n) for n in (1_000, 10_000, 100_000)],
    }
    if quick:
        tiny = Cell("pretrain", history=10, items=200, users=100, length=20)
        series = {name: [tiny, replace(tiny, **{name: 2 * getattr(tiny, name)})] for name in series}
    for name, each in series.items():
        for stage in STAGES:
            yield from ((name, replace(cell, stage=stage)) for cell in each)


def main(
    preset: Preset = "best",
    changes: Changes = [],
    out: Plot = Path("docs/images/growth.png"),
    before: Annotated[Path | None, typer.Option(help="A checkout of another commit, to compare with.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="With --before: how often both run a cell, in turn.")] = 2,
    steps: Annotated[int, typer.Option(min=2, help="Steps of a cell, at most.")] = 60,
    seconds: Annotated[float, typer.Option(min=0, help="Seconds of a cell's steps; at least two steps run.")] = 10,
    threads: Threads = 2,
    quick: Annotated[bool, typer.Option("--quick", help="Two small sizes of each.")] = False,
) -> None:
    with handle_errors(), tempfile.TemporaryDirectory() as cache:
        resolve_settings(preset, changes=changes)  # report wrong settings before anything runs
        torch.set_num_threads(threads)
        print(f"{describe_preset(preset, changes)}; {describe()}\n")
        options = Options(preset, changes, threads, steps, seconds, cache)
        if before is None:
            measure_all(options, quick, out)
        else:
            compare(before, options, rounds, quick)


def measure_all(options: Options, quick: bool, out: Path) -> None:
    """A row for each cell, and the plot."""
    print(
        "| what increases | stage | max_history | items | users | speed | first step, s | peak memory, MiB "
        "| of it above features and weights, MiB | steps |\n|---|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    )
    results = []
    for name, cell in cells(quick):
        result = run_cell(cell, options, SOURCE)
        results.append((name, cell, result))
        print(row(name, cell, result), flush=True)
    plot(results, out)


def row(name: str, cell: Cell, result: Result | None) -> str:
    sizes = f"| {name} | {cell.stage} | {cell.history} | {cell.items:,} | {cell.users:,} |"
    if result is None:
        return f"{sizes} out of memory | | | | |"
    return (
        f"{sizes} {result.pairs_per_second:,.0f} pairs/s | {result.first_step:.2f} | {result.peak:,.0f} "
        f"| {result.above:,.0f} | {result.steps} |"
    )


def compare(before: Path, options: Options, rounds: int, quick: bool) -> None:
    """A row for each size of the catalogue: speed and peak memory of both versions."""
    sources = {"before": before.absolute() / "src", "after": SOURCE}
    print(
        "| stage | items | before, pairs/s | after, pairs/s | ratio | peak before, MiB | peak after, MiB |\n"
        "|---|--:|--:|--:|--:|--:|--:|"
    )
    for name, cell in cells(quick):
        if name != "items":
            continue
        results: dict[str, list[Result]] = {which: [] for which in sources}
        for _ in range(rounds):
            for which, source in sources.items():
                if (result := run_cell(cell, options, source)) is not None:
                    results[which].append(result)
        print(compared(cell, results), flush=True)


def compared(cell: Cell, results: dict[str, list[Result]]) -> str:
    """The medians of each version."""
    columns = [f"{cell.stage}", f"{cell.items:,}"]
    speed = {name: median(one.pairs_per_second for one in each) for name, each in results.items() if each}
    peak = {name: max(one.peak for one in each) for name, each in results.items() if each}
    columns += [f"{speed[name]:,.0f}" if name in speed else "out of memory" for name in results]
    columns.append(f"{speed['after'] / speed['before']:.2f}" if len(speed) == 2 else "")
    columns += [f"{peak[name]:,.0f}" if name in peak else "" for name in results]
    return f"| {' | '.join(columns)} |"


def plot(results: Sequence[tuple[str, Cell, Result | None]], file: Path) -> None:
    """Speed above, memory below, a column for each varied size."""
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = new_figure(11, 6)
    panels = figure.subplots(2, len(LABELS), sharex="col", sharey="row")
    for column, (name, label) in enumerate(LABELS.items()):
        for stage in STAGES:
            line = [(getattr(c, name), r) for n, c, r in results if (n, c.stage) == (name, stage) and r]
            sizes = [size for size, _ in line]
            panels[0, column].plot(sizes, [r.pairs_per_second for _, r in line], "o-", label=stage)
            panels[1, column].plot(sizes, [r.above for _, r in line], "o-", label=stage)
        ticks = sorted({getattr(c, name) for n, c, _ in results if n == name})
        panels[1, column].set(xscale="log", xlabel=label)
        panels[1, column].set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        panels[1, column].minorticks_off()
    panels[0, 0].set(ylabel="pairs/s", ylim=(0, None))
    panels[1, 0].set(ylabel="MiB above features and weights", yscale="log")
    memory = panels[1, 0].yaxis
    memory.set_major_locator(LogLocator(subs=(1, 2, 5)))
    memory.set_major_formatter("{x:,.0f}")
    memory.set_minor_formatter(NullFormatter())
    panels[0, 0].legend()
    for panel in panels.flat:
        panel.grid(alpha=0.3)
    save_figure(figure, file)


if __name__ == "__main__":
    typer.run(main)
