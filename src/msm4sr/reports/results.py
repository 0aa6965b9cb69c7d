"""What a grid folder holds, read once for its report: each cell finished, failed, at work or missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl

from msm4sr.dotted import flatten
from msm4sr.errors import InputError
from msm4sr.experiments.claims import CLAIM
from msm4sr.experiments.grid import Cell, Row, cells_of, open_grid
from msm4sr.experiments.run import read_epochs
from msm4sr.experiments.settings import read_yaml

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
class GridResults:
    """A grid and all its cells."""

    folder: Path
    name: str
    title: str
    kind: str
    data: tuple[str, ...]
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
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
    grid = open_grid(folder)
    rows = _with_labels_of_their_own(grid.rows)
    outcomes: dict[tuple[str, str], list[Outcome]] = {}
    for cell in cells_of(folder, grid):
        outcomes.setdefault((cell.data.name, cell.row.name), []).append(_outcome(cell))
    data = tuple(entry.name for entry in grid.data)
    return GridResults(folder, grid.name, grid.title, grid.kind, data, grid.seeds, rows, grid.best_against, outcomes)


def _with_labels_of_their_own(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Rows that share a label are told apart by their names."""
    labels = [row.label for row in rows]
    return tuple(
        row.model_copy(update={"label": f"{row.label} ({row.name})"}) if labels.count(row.label) > 1 else row
        for row in rows
    )


def _outcome(cell: Cell) -> Outcome:
    folder = cell.folder
    metrics, failure = cell.metrics(), cell.failure()
    if metrics is not None:
        if not {"test", "run"} <= metrics.keys():
            raise InputError(
                f"{folder / 'metrics.json'}: not the metrics of a run; `msm4sr evaluate {folder}` makes it anew"
            )
        config = flatten(read_yaml(folder / "config.yaml"))
        settings = {key: value for key, value in config.items() if key not in ("data", "features_folder", "seed")}
        epochs = read_epochs(folder)
        return Outcome(cell.data.name, cell.row.name, cell.seed, folder, "finished", "", metrics, settings, epochs)
    if failure is not None:
        reason = str(failure.get("reason") or "no reason was kept")
        return Outcome(cell.data.name, cell.row.name, cell.seed, folder, "failed", reason)
    state: State = "at work" if any(folder.glob(f"{CLAIM}*")) else "missing"
    return Outcome(cell.data.name, cell.row.name, cell.seed, folder, state)
