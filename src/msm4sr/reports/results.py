"""The contents of a grid folder, read once for its report."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import polars as pl

from msm4sr.data.schema import read_parquet
from msm4sr.digests import file_digest
from msm4sr.dotted import flatten
from msm4sr.errors import InputError, command
from msm4sr.evaluation.users import tested
from msm4sr.experiments.grid import Cell, Grid, Row, cells_of, check_settings, open_grid
from msm4sr.experiments.run import read_epochs
from msm4sr.experiments.settings import read_yaml
from msm4sr.locks import is_locked

State = Literal["finished", "failed", "running", "missing"]


@dataclass(frozen=True)
class Outcome:
    """A cell and its state."""

    data: str
    row: str
    seed: int
    folder: Path
    state: State
    reason: str = ""  # why it failed
    metrics: Mapping[str, Any] = field(default_factory=dict)  # the contents of metrics.json of a finished cell
    settings: Mapping[str, Any] = field(default_factory=dict)  # by dotted name, without data and seed if finished
    epochs: Sequence[Mapping[str, Any]] = ()  # the lines of metrics.jsonl

    @cached_property
    def test_users(self) -> pl.DataFrame | None:
        """See `evaluation.users.tested`; None for a run without users.parquet."""
        file = self.folder / "users.parquet"
        if not file.exists():
            return None
        if file_digest(file) != self.metrics["identity"].get("users.parquet"):
            raise InputError(f"{file}: does not belong to metrics.json; {command('evaluate', self.folder)} writes both")
        return tested(read_parquet(file))


@dataclass(frozen=True)
class GridResults:
    """A grid and the outcomes of its cells."""

    folder: Path
    name: str
    title: str
    kind: str
    data: tuple[str, ...]
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    ours: tuple[str, ...]  # names of our rows; the others are baselines
    outcomes: Mapping[tuple[str, str], Sequence[Outcome]]  # (data set, row) to its cells, one per seed

    @property
    def labels(self) -> dict[str, str]:
        """Row to label."""
        return {row.name: row.label for row in self.rows}

    def finished(self, data: str, row: str) -> list[Outcome]:
        return [outcome for outcome in self.outcomes[data, row] if outcome.state == "finished"]

    def all(self) -> Iterator[Outcome]:
        return itertools.chain.from_iterable(self.outcomes.values())

    def where(self, keep: Callable[[Outcome], bool]) -> GridResults:
        """These cells, and the rows and data sets that have any of them."""
        kept = {place: list(filter(keep, cells)) for place, cells in self.outcomes.items()}
        data = tuple(name for name in self.data if any(cells for (on, _), cells in kept.items() if on == name))
        rows = tuple(row for row in self.rows if any(cells for (_, of), cells in kept.items() if of == row.name))
        outcomes = {(name, row.name): kept[name, row.name] for name in data for row in rows}
        return replace(self, data=data, rows=rows, outcomes=outcomes)


def read_grid(folder: Path, grid: Grid | None = None) -> GridResults:
    """Read all that a report shows, of `grid` where only a part of the grid in `folder` is reported.

    Raises InputError where there is no grid, or a file in it cannot be read.
    """
    grid = grid or open_grid(folder)
    outcomes: dict[tuple[str, str], list[Outcome]] = {}
    for cell in cells_of(folder, grid):
        outcomes.setdefault((cell.data.name, cell.row.name), []).append(_outcome(cell))
    _check_same_data([outcome for cells in outcomes.values() for outcome in cells if outcome.state == "finished"])
    data, shared = tuple(entry.name for entry in grid.data), Counter(row.label for row in grid.rows)
    rows = tuple(  # labels that several rows share are extended by names
        row.model_copy(update={"label": f"{row.label} ({row.name})"}) if shared[row.label] > 1 else row
        for row in grid.rows
    )
    return GridResults(folder, grid.name, grid.title, grid.kind, data, grid.seeds, rows, grid.best_against, outcomes)


def _check_same_data(finished: Sequence[Outcome]) -> None:
    """Raise InputError for cells of different code, or with different data or features by the same settings."""
    first: dict[tuple[Any, ...], tuple[Outcome, Any]] = {}
    codes = {outcome.metrics["identity"].get("code"): outcome.folder for outcome in finished}
    if len(codes) > 1:
        (old, folder), (new, _), *_ = sorted(codes.items(), key=str)
        raise InputError(
            f"{folder}: made by another version of msm4sr than other cells (code {old} and {new}); remove it, and run "
            "`msm4sr compare` again"
        )
    for outcome in finished:
        for sections, kind in (("dataset.",), "data."), (("dataset.", "features.", "precomputed."), "inputs.features."):
            used = {
                key: value
                for key, value in outcome.settings.items()
                if key.startswith(sections) and not key.endswith(".sha256")
            }
            for name, value in outcome.metrics["identity"].items():
                if name.startswith(kind):
                    then, before = first.setdefault((outcome.data, name, repr(used)), (outcome, value))
                    if before != value:
                        raise InputError(
                            f"{outcome.folder} and {then.folder} were run on different data: {name} is {value} and "
                            f"{before}; remove the older one, and run `msm4sr compare` again"
                        )


def _outcome(cell: Cell) -> Outcome:
    folder, metrics, failure = cell.folder, cell.metrics(), cell.failure()
    state: State = "running" if is_locked(cell.lock_file) else "missing"
    outcome = Outcome(cell.data.name, cell.row.name, cell.seed, folder, state, settings=_planned(cell))
    if failure is not None:
        return replace(outcome, state="failed", reason=str(failure.get("reason") or "no reason was recorded"))
    if metrics is None:
        return outcome
    check_settings(cell, metrics)
    config = flatten(read_yaml(folder / "config.yaml"))
    others = ("msm4sr", "data", "features_folder", "seed", "data_identity")
    settings = {key: value for key, value in config.items() if key.partition(".")[0] not in others}
    return replace(outcome, state="finished", metrics=metrics, settings=settings, epochs=read_epochs(folder))


def _planned(cell: Cell) -> dict[str, Any]:
    """The settings of a cell that is not finished; only the changes of its row if its data is not here."""
    try:
        return flatten(cell.settings.model_dump(mode="json"))
    except InputError:
        return dict(cell.row.changes)
