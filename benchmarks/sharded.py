"""Fine-tuning over a large catalogue, whose ID embeddings several processes divide.

    python benchmarks/sharded.py --items 10000000 --users 1000000

SASRec without dropout on generated histories (`generate.py`), with 64-d embeddings. Each row is a training by as many
processes on this machine: some steps, then the end of an epoch, which collects all rows in the first process as
validation does, and writes both checkpoints. Memory is the most that each process has allocated (mapped files do not
count); the first process comes first.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from common import Changes, describe
from generate import Generator

CELL = Path(__file__).with_name("sharded_cell.py")
COLUMNS = (
    "processes",
    "speed",
    "peak while building, MiB",
    "in the steps, MiB",
    "at the end of the epoch, MiB",
    "end of the epoch, s",
    "largest difference of a loss from one process",
)


def main(
    items: Annotated[int, typer.Option(min=10, help="Items of the catalogue.")] = 100_000,
    users: Annotated[int, typer.Option(min=1)] = 20_000,
    length: Annotated[int, typer.Option(min=3, help="Mean length of a history.")] = 20,
    steps: Annotated[int, typer.Option(min=3, help="Steps of a training; the first two are not timed.")] = 30,
    processes: Annotated[list[int], typer.Option(min=1, help="How many processes; repeat it.")] = [1, 2, 4],
    changes: Changes = [],
) -> None:
    with tempfile.TemporaryDirectory() as cache:
        folder = Path(cache)
        histories = Generator(items).histories(users, length)
        np.save(folder / "values.npy", histories.values)
        np.save(folder / "offsets.npy", histories.offsets)
        del histories
        print(f"{items:,} items, {users:,} users; {describe()}\n")
        print(f"| {' | '.join(COLUMNS)} |\n|{'--:|' * len(COLUMNS)}")
        losses: list[float] = []
        for count in processes:
            found = measure(count, {"folder": cache, "items": items, "steps": steps, "changes": changes})
            losses = losses or found["losses"]
            apart = max(abs(a - b) for a, b in zip(losses, found["losses"], strict=True))
            parts = (" ".join(f"{peak:,.0f}" for peak in found[part]) for part in ("build", "steps", "end"))
            cells = (count, f"{found['speed']:,.0f} pairs/s", *parts, f"{found['seconds']:.1f}", f"{apart:.1e}")
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


def measure(processes: int, options: dict[str, Any]) -> dict[str, Any]:
    """The result of a training, as `sharded_cell.py` prints it."""
    command = [sys.executable, str(CELL), json.dumps({"processes": processes, **options})]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr or f"a process died with {done.returncode}, most likely for lack of memory")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    typer.run(main)
