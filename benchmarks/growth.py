"""How speed and memory of both stages grow with the history's length, the catalogue and the number of users.

    python benchmarks/growth.py           # a table (Markdown) and docs/images/growth.png, under 10 minutes on 2 cores
    python benchmarks/growth.py --quick   # two small sizes of each, to see that it works

Items, features and histories are generated, by seed: features of two modalities with 384 numbers a row, one to three
rows of text (mean 2) and one picture an item; histories drawn from a popularity that falls with the rank. Settings are
those of a preset; `finetune.candidates: auto` takes a sample of the items over 100,000 (`--set finetune.candidates=all`
compares with all of them, which at 300,000 takes some 8 GB). Each cell is a process of its own, so that its peak memory
is its own.
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
from machine import describe, memory_now, memory_peak, reset_memory_peak
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from options import Changes, Plot, Preset, Threads
from steps import Stage, run_steps

from msm4sr.cli.console import told
from msm4sr.data.dataset import Dataset
from msm4sr.experiments.settings import resolve_settings
from msm4sr.models.msm4sr import MSM4SR, MSM4SRConfig

WIDTH = 384  # numbers a row of features
STAGES: tuple[Stage, ...] = ("pretrain", "finetune")
LABELS = {"history": "max_history", "items": "items of the catalogue", "users": "users"}


@dataclass(frozen=True)
class Cell:
    """One size of everything."""

    stage: Stage
    history: int = 50
    items: int = 3_000
    users: int = 3_000
    taken: int = 60
    """Items a user took, on average, the longest history that is looked at apart: windows are full where they can."""


@dataclass(frozen=True)
class Result:
    """What a cell took."""

    steps: int
    pairs_per_second: float
    first_step: float
    """Seconds of the first step: with set-up, and the cutting and shuffling of the epoch's windows."""
    peak: float
    """MiB of the whole process while it trains."""
    above_features: float
    """MiB of it beyond data, features and weights."""


@dataclass(frozen=True)
class GeneratedRows:
    """Features of one modality, as a model takes them."""

    vectors: np.ndarray
    offsets: np.ndarray


def generate_dataset(cell: Cell, seed: int = 0) -> Dataset:
    """Ragged of two thirds to four thirds of `taken` items, but of three at least."""
    rng = np.random.default_rng([seed, 0])
    lengths = np.maximum(3, rng.integers(2 * cell.taken // 3, 4 * cell.taken // 3 + 1, cell.users))
    popularity = 1 / (np.arange(cell.items) + 20.0)
    values = rng.choice(cell.items, lengths.sum(), p=popularity / popularity.sum()).astype(np.int32)
    ids = [str(item) for item in range(cell.items)]
    return Dataset(
        folder=Path("generated"),
        user_ids=[str(user) for user in range(cell.users)],
        item_ids=ids,
        offsets=np.concatenate([[0], lengths.cumsum()]).astype(np.int64),
        values=values,
        items=pl.DataFrame({"item_id": ids}),
        dropped={},
    )


def generate_features(items: int, seed: int = 0) -> dict[str, GeneratedRows]:
    """One to three rows of text and a picture an item."""
    rng = np.random.default_rng([seed, 1])
    counts = {"text": rng.integers(1, 4, items), "visual": np.ones(items, dtype=np.int64)}
    return {
        name: GeneratedRows(
            rng.standard_normal((count.sum(), WIDTH), dtype=np.float32),
            np.concatenate([[0], count.cumsum()]).astype(np.int64),
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
    model = MSM4SR.from_features(settings.model, features).train()
    del features
    loaded = memory_now()
    reset_memory_peak()
    taken = run_steps(cell.stage, model, dataset, settings, steps=steps, seconds=seconds)
    timed = taken[max(1, len(taken) // 5) :]  # the first ones warm up
    speed = sum(step.pairs for step in timed) / sum(step.cost for step in timed)
    return Result(len(timed), speed, taken[0].cost, memory_peak(), memory_peak() - loaded)


def in_own_process(cell: Cell, *arguments: Any) -> Result | None:
    """`measure` in a new process; None where it ended without an answer, for want of memory most likely."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(measure, cell, *arguments).result()
        except BrokenProcessPool:
            return None


def cells(quick: bool) -> Iterator[tuple[str, Cell]]:
    """What grows, and a cell; all else stays."""
    usual = Cell("pretrain")
    series = {
        "history": [replace(usual, history=n, taken=300) for n in (25, 50, 100, 200)],
        "items": [replace(usual, items=n) for n in (3_000, 30_000, 300_000)],
        "users": [replace(usual, users=n) for n in (1_000, 10_000, 100_000)],
    }
    if quick:
        tiny = Cell("pretrain", history=10, items=200, users=100, taken=20)
        series = {name: [tiny, replace(tiny, **{name: 2 * getattr(tiny, name)})] for name in series}
    for name, each in series.items():
        for stage in STAGES:
            yield from ((name, replace(cell, stage=stage)) for cell in each)


def main(
    preset: Preset = "seed",
    changes: Changes = [],  # never changed
    out: Plot = Path("docs/images/growth.png"),
    steps: Annotated[int, typer.Option(min=2, help="Of a cell, at most.")] = 60,
    seconds: Annotated[float, typer.Option(min=0, help="Of a cell's steps; two are taken at least.")] = 10,
    threads: Threads = 2,
    quick: Annotated[bool, typer.Option("--quick", help="Two small sizes of each.")] = False,
) -> None:
    with told():
        resolve_settings(preset, changes=changes)  # what is wrong is told before anything runs
        torch.set_num_threads(threads)
        print(f"Preset {preset}{''.join(f', {c}' for c in changes)}; {describe()}\n")
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
        print(f"\n{out}")


def row(name: str, cell: Cell, result: Result | None) -> str:
    sizes = f"| {name} | {cell.stage} | {cell.history} | {cell.items} | {cell.users} |"
    if result is None:
        return f"{sizes} out of memory | | | | |"
    return (
        f"{sizes} {result.pairs_per_second:.0f} pairs/s | {result.first_step:.2f} | {result.peak:.0f} "
        f"| {result.above_features:.0f} | {result.steps} |"
    )


def plot(results: Sequence[tuple[str, Cell, Result | None]], file: Path) -> None:
    """Speed above, memory below, a column for each thing that grows."""
    figure = Figure(figsize=(11, 6), layout="constrained")
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
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    typer.run(main)
