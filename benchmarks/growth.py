"""Speed and memory of both stages by the length of histories, the size of the catalogue and the number of users.

    python benchmarks/growth.py           # a table (Markdown) and docs/images/growth.png, under 10 minutes on 2 cores
    python benchmarks/growth.py --quick   # two small sizes of each: a smoke test

Items, features and histories are generated from a seed: 384-d features of two modalities, one to three rows of text
(mean 2) and one image per item; item popularity falls with its rank. Settings are those of a preset;
`finetune.candidates: auto` samples the items over 100,000 (`--set finetune.candidates=all` uses all of them, which at
300,000 needs some 8 GB). Each cell runs in a separate process, so that its peak memory is its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import torch
import typer
from common import (
    Changes,
    Plot,
    Preset,
    Threads,
    describe,
    describe_preset,
    memory_now,
    memory_peak,
    new_figure,
    reset_memory_peak,
    save_figure,
)
from steps import Limit, Stage, run_steps

from msm4sr.cli.console import handle_errors
from msm4sr.data.dataset import Dataset
from msm4sr.experiments.settings import resolve_settings
from msm4sr.models.base import Inputs, as_tensors
from msm4sr.models.msm4sr import MSM4SRConfig
from msm4sr.models.registry import build
from msm4sr.ragged import Ragged

WIDTH = 384
STAGES: tuple[Stage, ...] = ("pretrain", "finetune")
LABELS = {"history": "max_history", "items": "items of the catalogue", "users": "users"}


@dataclass(frozen=True)
class Cell:
    """One size of everything."""

    stage: Stage
    history: int = 50
    """`max_history` of the model."""
    items: int = 3_000
    users: int = 3_000
    length: int = 60
    """Mean length of the generated histories."""


@dataclass(frozen=True)
class Result:
    """What was measured for a cell."""

    steps: int
    pairs_per_second: float
    first_step: float
    """Seconds of the first step: with set-up, and the cutting and shuffling of the epoch's windows."""
    peak: float
    """Peak memory of the process while training, MiB."""
    above_features: float
    """The peak without data, features and weights, MiB."""


def generate_dataset(cell: Cell, seed: int = 0) -> Dataset:
    """Histories of two thirds to four thirds of `length` items, at least three."""
    rng = np.random.default_rng([seed, 0])
    lengths = np.maximum(3, rng.integers(2 * cell.length // 3, 4 * cell.length // 3 + 1, cell.users))
    popularity = 1 / (np.arange(cell.items) + 20.0)
    values = rng.choice(cell.items, lengths.sum(), p=popularity / popularity.sum()).astype(np.int32)
    ids = [str(item) for item in range(cell.items)]
    return Dataset(
        folder=Path("generated"),
        user_ids=[str(user) for user in range(cell.users)],
        item_ids=ids,
        histories=Ragged(values, np.concatenate([[0], lengths.cumsum()]).astype(np.int64)),
        items=pl.DataFrame({"item_id": ids}),
        dropped={},
    )


def generate_features(items: int, seed: int = 0) -> dict[str, Ragged]:
    """One to three rows of text and one image per item."""
    rng = np.random.default_rng([seed, 1])
    counts = {"text": rng.integers(1, 4, items), "visual": np.ones(items, dtype=np.int64)}
    return {
        name: as_tensors(
            Ragged(
                rng.standard_normal((count.sum(), WIDTH), dtype=np.float32),
                np.concatenate([[0], count.cumsum()]).astype(np.int64),
            )
        )
        for name, count in counts.items()
    }


def measure(cell: Cell, preset: str, changes: Sequence[str], threads: int, steps: int, seconds: float) -> Result:
    """Run a cell in this process."""
    torch.set_num_threads(threads)
    settings = resolve_settings(
        preset, changes=["device.accelerator=cpu", *changes, f"model.max_history={cell.history}"]
    )
    assert isinstance(settings.model, MSM4SRConfig)
    dataset, features = generate_dataset(cell), generate_features(cell.items)
    model = build(settings.model, Inputs(cell.items, features=features)).train()
    del features
    loaded = memory_now()
    reset_memory_peak()
    done = run_steps(cell.stage, model, dataset, settings, Limit(steps, seconds=seconds))
    timed = done[max(1, len(done) // 5) :]  # without the warm-up
    speed = sum(step.pairs for step in timed) / sum(step.cost for step in timed)
    return Result(len(timed), speed, done[0].cost, memory_peak(), memory_peak() - loaded)


def in_own_process(cell: Cell, *arguments: Any) -> Result | None:
    """`measure` in a new process; None if it died, most likely for lack of memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(measure, cell, *arguments).result()
        except BrokenProcessPool:
            return None


def cells(quick: bool) -> Iterator[tuple[str, Cell]]:
    """The name of the varied size, and a cell."""
    usual = Cell("pretrain")
    series = {
        "history": [replace(usual, history=n, length=300) for n in (25, 50, 100, 200)],
        "items": [replace(usual, items=n) for n in (3_000, 30_000, 300_000)],
        "users": [replace(usual, users=n) for n in (1_000, 10_000, 100_000)],
    }
    if quick:
        tiny = Cell("pretrain", history=10, items=200, users=100, length=20)
        series = {name: [tiny, replace(tiny, **{name: 2 * getattr(tiny, name)})] for name in series}
    for name, each in series.items():
        for stage in STAGES:
            yield from ((name, replace(cell, stage=stage)) for cell in each)


def main(
    preset: Preset = "seed",
    changes: Changes = [],
    out: Plot = Path("docs/images/growth.png"),
    steps: Annotated[int, typer.Option(min=2, help="Steps of a cell, at most.")] = 60,
    seconds: Annotated[float, typer.Option(min=0, help="Seconds of a cell's steps; at least two steps run.")] = 10,
    threads: Threads = 2,
    quick: Annotated[bool, typer.Option("--quick", help="Two small sizes of each.")] = False,
) -> None:
    with handle_errors():
        resolve_settings(preset, changes=changes)  # report wrong settings before anything runs
        torch.set_num_threads(threads)
        print(f"{describe_preset(preset, changes)}; {describe()}\n")
        print(
            "| what grows | stage | max_history | items | users | speed | first step, s | peak memory, MiB "
            "| of it above features and weights, MiB | steps |\n|---|---|--:|--:|--:|--:|--:|--:|--:|--:|"
        )
        results = []
        for name, cell in cells(quick):
            result = in_own_process(cell, preset, changes, threads, steps, seconds)
            results.append((name, cell, result))
            print(row(name, cell, result), flush=True)
        plot(results, out)


def row(name: str, cell: Cell, result: Result | None) -> str:
    sizes = f"| {name} | {cell.stage} | {cell.history} | {cell.items} | {cell.users} |"
    if result is None:
        return f"{sizes} out of memory | | | | |"
    return (
        f"{sizes} {result.pairs_per_second:.0f} pairs/s | {result.first_step:.2f} | {result.peak:.0f} "
        f"| {result.above_features:.0f} | {result.steps} |"
    )


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
            panels[1, column].plot(sizes, [r.above_features for _, r in line], "o-", label=stage)
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
