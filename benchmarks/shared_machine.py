"""How fast a stage trains beside other processes, by the number of threads and how they wait for each other.

    python benchmarks/shared_machine.py

Each measurement is a new process, since OpenMP reads its environment once, beside 0, 1 or 2 endless loops. The
variants alternate. `msm4sr` is what the command of that name would choose at that moment (`msm4sr.threads`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Annotated

import typer
from common import Changes, Preset, describe, describe_preset
from growth import SOURCE, Cell, Options, run_cell
from steps import Stage

from msm4sr.cli.console import handle_errors
from msm4sr.experiments.settings import resolve_settings
from msm4sr.threads import CHOSEN, POLICY, SPINS, THREADS, busy_cores, choose, cpu_quota, usable_cores

LOOPS = 0, 1, 2
LOOP = "import os; first = os.getppid()\nwhile os.getppid() == first: sum(range(10**6))"  # ends with this process
STAGES: tuple[Stage, ...] = "pretrain", "finetune"
VARIANTS = {  # to the variables of OpenMP
    "one thread": {THREADS: "1"},
    "OpenMP's default": {},
    "all cores, sleeping": {POLICY: "passive"},
}


def main(
    preset: Preset = "best",
    changes: Changes = [],
    steps: Annotated[int, typer.Option(min=2, help="Steps of a measurement; a fifth of them warm up.")] = 40,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each variant.")] = 3,
    items: Annotated[int, typer.Option(min=10, help="Items and users of the generated data.")] = 3000,
) -> None:
    with handle_errors(), tempfile.TemporaryDirectory() as cache:
        options = Options(preset, changes, threads=0, steps=steps, seconds=1e9, cache=cache)
        resolve_settings(preset, changes=changes)  # report wrong settings before anything runs
        print(f"{describe_preset(preset, changes)}; {describe()}; {steps} steps, median (range) of {rounds}\n")
        print("pairs/s:\n")
        print(f"| busy loops | stage | {' | '.join(VARIANTS)} | msm4sr | its choice |")
        print(f"|--:|---|{'--:|' * len(VARIANTS)}--:|---|")
        for loops in LOOPS:
            with endless_loops(loops):
                for stage in STAGES:
                    print(row(loops, Cell(stage, items=items, users=items), options, rounds), flush=True)


def row(loops: int, cell: Cell, options: Options, rounds: int) -> str:
    speeds: dict[str, list[float]] = {name: [] for name in (*VARIANTS, "msm4sr")}
    chosen: list[str] = []
    for _ in range(rounds):
        cores = usable_cores()
        choice = choose(len(cores), cpu_quota(), busy_cores(cores), {})
        chosen += [str(choice)] if str(choice) not in chosen else []
        for name, variables in (VARIANTS | {"msm4sr": choice.variables}).items():
            speeds[name].append(measure(variables, cell, options))
    shown = [f"{median(each):.0f} ({min(each):.0f} to {max(each):.0f})" for each in speeds.values()]
    return f"| {loops} | {cell.stage} | {' | '.join(shown)} | {', '.join(chosen)} |"


def measure(variables: dict[str, str], cell: Cell, options: Options) -> float:
    """Pairs per second in a process with these variables, and none of the others that OpenMP reads."""
    before = dict(os.environ)
    for name in (THREADS, POLICY, SPINS, CHOSEN):
        os.environ.pop(name, None)
    os.environ |= variables
    try:
        result = run_cell(cell, options, SOURCE)
    finally:
        os.environ.clear()
        os.environ |= before
    return result.pairs_per_second if result else 0.0


@contextmanager
def endless_loops(count: int) -> Iterator[None]:
    """Keep so many cores busy, as far as there are free ones."""
    loops = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


if __name__ == "__main__":
    typer.run(main)
