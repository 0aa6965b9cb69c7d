"""Keep the finished cells of a grid without weights, users and items: their metrics, and the rank of each target.

    python benchmarks/cells.py save GRID results/ml-1m/comparison

With the data, the tables can be made from them, and rows be added:

    msm4sr compare comparison --data DATA/ml-1m --rows popularity --out GRID
    python benchmarks/cells.py restore results/ml-1m/comparison GRID
    msm4sr compare comparison --data DATA/ml-1m --settings configs/models --out GRID
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import polars as pl
import typer

from msm4sr.cli.console import handle_errors
from msm4sr.digests import file_digest
from msm4sr.errors import InputError

app = typer.Typer()
Grid = Annotated[Path, typer.Argument(help="A grid folder.")]
Saved = Annotated[Path, typer.Argument(help="A folder of saved cells.")]
FILES = ("config.yaml", "metrics.json")


def finished_cells(folder: Path) -> Iterator[tuple[Path, Path]]:
    """The folders of the finished cells, and where they are in the grid: DATA/ROW/seed-SEED."""
    for metrics in sorted(folder.glob("*/*/seed-*/metrics.json")):
        yield metrics.parent, metrics.parent.relative_to(folder)


def read_users(cells: Path, data: str) -> pl.DataFrame:
    """The users of a data set and their targets, from the first finished cell."""
    for cell, _ in finished_cells(cells):
        if cell.parent.parent.name == data:
            return pl.read_parquet(cell / "users.parquet")
    raise InputError(f"{cells}: no finished cell on {data}; run one first, for example with --rows popularity")


@app.command()
def save(grid: Grid, out: Saved) -> None:
    """Copy the finished cells; ranks are in the order of the users."""
    with handle_errors():
        for cell, place in finished_cells(grid / "cells"):
            (out / place).mkdir(parents=True, exist_ok=True)
            for name in FILES:
                shutil.copy(cell / name, out / place)
            ranks = pl.read_parquet(cell / "users.parquet").select("rank", "rank_seen_excluded")
            ranks.write_parquet(out / place / "ranks.parquet", compression="zstd")
            print(out / place)


@app.command()
def restore(saved: Saved, grid: Grid) -> None:
    """Add saved cells to a grid that has a finished cell on the same data."""
    with handle_errors():
        for cell, place in finished_cells(saved):
            to = grid / "cells" / place
            if (to / "metrics.json").exists():
                continue
            users, ranks = read_users(grid / "cells", place.parts[0]), pl.read_parquet(cell / "ranks.parquet")
            to.mkdir(parents=True, exist_ok=True)
            if len(users) == len(ranks):
                users.with_columns(ranks).write_parquet(to / "users.parquet")
            metrics = json.loads((cell / "metrics.json").read_text())
            if len(users) != len(ranks) or file_digest(to / "users.parquet") != metrics["identity"]["users.parquet"]:
                shutil.rmtree(to)
                raise InputError(f"{cell}: of other users or targets than {grid}, or another version of Polars")
            for name in FILES:
                shutil.copy(cell / name, to)
            print(to)


if __name__ == "__main__":
    app()
