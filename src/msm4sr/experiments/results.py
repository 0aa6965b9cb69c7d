"""What a grid folder holds, read once for its report: each cell finished, failed, at work or missing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl
import yaml

from msm4sr.errors import InputError
from msm4sr.experiments.run import read_epochs
from msm4sr.training.checkpoint import flat

State = Literal["finished", "failed", "at work", "missing"]


@dataclass(frozen=True)
class Outcome:
    """One cell. What a finished one has measured is in `metrics`; `settings` are dotted, without data and seed."""

    data: str
    row: str
    seed: int
    folder: Path
    state: State
    reason: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    epochs: Sequence[Mapping[str, Any]] = ()

    def test_users(self) -> pl.DataFrame | None:
        """The rows of users.parquet on the test part; None for a run that kept none."""
        file = self.folder / "users.parquet"
        if not file.exists():
            return None
        try:
            return pl.read_parquet(file).filter(pl.col("part") == "test")
        except (OSError, pl.exceptions.PolarsError) as error:
            raise InputError(f"{file}: not readable ({error}); `msm4sr evaluate {self.folder}` makes it anew") from None


@dataclass(frozen=True)
class RowInfo:
    """A line of the grid: its name, how it is called on a page, and what it differs by."""

    name: str
    label: str
    model: str
    preset: str
    changes: Mapping[str, Any]
    settings: str | None


@dataclass(frozen=True)
class GridResults:
    """A grid and all its cells."""

    folder: Path
    name: str
    title: str
    kind: str
    data: tuple[str, ...]
    seeds: tuple[int, ...]
    rows: tuple[RowInfo, ...]
    ours: tuple[str, ...]
    """Names of rows; what is not ours is a baseline."""
    outcomes: Mapping[tuple[str, str], Sequence[Outcome]]
    """(data, row) to its cells, a seed each."""

    def finished(self, data: str, row: str) -> list[Outcome]:
        return [outcome for outcome in self.outcomes[data, row] if outcome.state == "finished"]

    def all(self) -> Iterator[Outcome]:
        for outcomes in self.outcomes.values():
            yield from outcomes


def read_grid(folder: Path) -> GridResults:
    """Everything that a report shows. InputError: there is no grid here, or a file in it cannot be read."""
    file = folder / "grid.yaml"
    if not file.is_file():
        run = "; a run has its report in report.html already" if (folder / "config.yaml").exists() else ""
        raise InputError(f"{folder}: there is no grid here (no grid.yaml); `msm4sr compare` makes one{run}")
    said = _read(file)
    try:
        data = tuple(str(entry["name"]) for entry in said["data"])
        seeds = tuple(int(seed) for seed in said["seeds"])
        rows = _with_labels_of_their_own([_row(row) for row in said["rows"]])
        name, kind = str(said["name"]), str(said.get("kind", "comparison"))
        ours = tuple(said.get("best_against", ("msm4sr",)))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file}: not a grid ({type(error).__name__}: {error})") from None
    outcomes = {
        (entry, row.name): [
            _outcome(folder / "cells" / entry / row.name / f"seed-{seed}", entry, row.name, seed) for seed in seeds
        ]
        for entry in data
        for row in rows
    }
    return GridResults(folder, name, str(said.get("title") or name), kind, data, seeds, rows, ours, outcomes)


def _row(said: Mapping[str, Any]) -> RowInfo:
    return RowInfo(
        name=said["name"],
        label=said.get("label") or said["name"],
        model=said.get("model", "msm4sr"),
        preset=said.get("preset", "best"),
        changes=said.get("changes") or {},
        settings=said.get("settings"),
    )


def _with_labels_of_their_own(rows: Sequence[RowInfo]) -> tuple[RowInfo, ...]:
    """Rows that share a label are told apart by their names."""
    labels = [row.label for row in rows]
    return tuple(
        replace(row, label=f"{row.label} ({row.name})") if labels.count(row.label) > 1 else row for row in rows
    )


def _outcome(folder: Path, data: str, row: str, seed: int) -> Outcome:
    file = folder / "metrics.json"
    if file.exists():
        metrics, config = _read(file), _read(folder / "config.yaml")
        if not {"test", "run"} <= metrics.keys():
            raise InputError(f"{file}: not the metrics of a run; `msm4sr evaluate {folder}` makes it anew")
        settings = {key: value for key, value in flat(config).items() if key not in ("data", "features_folder", "seed")}
        return Outcome(data, row, seed, folder, "finished", "", metrics, settings, read_epochs(folder))
    if (folder / "failed.json").exists():
        reason = _read(folder / "failed.json").get("reason") or "no reason was kept"
        return Outcome(data, row, seed, folder, "failed", str(reason))
    state: State = "at work" if any(folder.glob("cell.claim*")) else "missing"
    return Outcome(data, row, seed, folder, state)


def _read(file: Path) -> dict[str, Any]:
    """A mapping from a JSON or YAML file."""
    try:
        text = file.read_text(encoding="utf-8")
        said = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{file}: not readable ({' '.join(str(error).split())})") from None
    if not isinstance(said, dict):
        raise InputError(f"{file}: not a mapping; remove that cell's folder and run the grid again")
    return said
