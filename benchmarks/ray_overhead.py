"""The seconds of one grid by local processes and on a Ray cluster of the same cores.

    python benchmarks/ray_overhead.py --data DATA/ml-100k

`msm4sr compare` trains SASRec with several seeds, one core each, in two processes (`--jobs 2`) and on a new Ray cluster
(`--ray local`), in turn. The grids with one finished cell and nothing to do show what starting costs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from common import Data, describe

GRID = "rows:\n  - {name: sasrec, model: sasrec, changes: {finetune.epochs: EPOCHS, finetune.patience: EPOCHS}}\n"
EXECUTORS = {"--jobs 2": ["--jobs=2"], "--ray local": ["--ray=local"]}


def main(
    data: Data,
    seeds: Annotated[int, typer.Option(min=1, help="Cells of the grid.")] = 8,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of a cell.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each.")] = 3,
) -> None:
    print(f"{seeds} cells of {epochs} epochs; {describe()}; median (range) of {rounds}\n")
    print("| executor | all cells, s | finished already, s |\n|---|--:|--:|")
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in EXECUTORS}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "grid.yaml"
        config.write_text(GRID.replace("EPOCHS", str(epochs)))
        for number in range(rounds):
            for name, options in EXECUTORS.items():
                out = Path(folder) / f"{options[0]}-{number}"
                command = [config, "--data", data, "--out", out, *(f"--seed={seed}" for seed in range(seeds)), *options]
                seconds[name].append((compare(command), compare(command)))
    for name, measured in seconds.items():
        columns = [f"{median(part):.1f} ({min(part):.1f} to {max(part):.1f})" for part in zip(*measured, strict=True)]
        print(f"| `{name}` | {' | '.join(columns)} |")


def compare(arguments: list[str | Path]) -> float:
    """The seconds of `msm4sr compare` with these arguments."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "msm4sr", "compare", *map(str, arguments)],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return time.perf_counter() - began


if __name__ == "__main__":
    typer.run(main)
