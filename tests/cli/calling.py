"""The command line called in this process, and small prepared folders to call it on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import polars as pl
from typer.testing import CliRunner

from msm4sr.cli import app

QUICK = ("--preset", "seed", "--set", "pretrain.epochs=1", "--set", "finetune.epochs=1", "--seed", "0")


@dataclass(frozen=True)
class Called:
    """What a command answered; line breaks are one space, so that it is found wherever a terminal would wrap it."""

    code: int
    out: str
    err: str


class Cli(Protocol):
    def __call__(self, *arguments: str | Path) -> Called: ...


def call(*arguments: str | Path) -> Called:
    """`msm4sr ARGUMENTS`. An exception that the command lets through is raised here: no user should see a traceback."""
    result = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(
        app, [str(a) for a in arguments], catch_exceptions=False
    )
    return Called(result.exit_code, " ".join(result.stdout.split()), " ".join(result.stderr.split()))


@dataclass(frozen=True)
class Trained:
    folder: Path
    first_answer: Called


def metrics_of(run: Path) -> dict[str, Any]:
    """metrics.json without time and memory, in which two equal runs may differ."""
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    del metrics["run"]["training_seconds"], metrics["run"]["peak_memory_mib"], metrics["checksum"]
    return metrics


def write_folder(folder: Path, log: dict[str, list[Any]], items: dict[str, list[Any]] | None = None) -> Path:
    """A prepared folder with these columns."""
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(log).write_parquet(folder / "interactions.parquet")
    if items is not None:
        pl.DataFrame(items).write_parquet(folder / "items.parquet")
    return folder


def small_log(users: int = 8, length: int = 5, items: int = 6) -> dict[str, list[Any]]:
    """User u takes the items u, u + 1, u + 2 ..., round and round."""
    rows = [(f"u{u}", f"i{(u + step) % items}", step) for u in range(users) for step in range(length)]
    users_, items_, times = (list(column) for column in zip(*rows, strict=True))
    return {"user_id": users_, "item_id": items_, "timestamp": times}


def small_items(items: int = 6, **columns: list[Any]) -> dict[str, list[Any]]:
    return {"item_id": [f"i{i}" for i in range(items)], **columns}
