"""A grid: rows (a system and its settings each) on data sets, with several seeds.

GRID/grid.yaml                               the grid, with all options resolved
GRID/features/DATASET/                       features, shared by the cells of a data set
GRID/cells/DATASET/ROW/seed-N/               a run folder; finished when metrics.json is there
GRID/cells/DATASET/ROW/seed-N/failed.json    why a cell failed: {"reason": one line, "traceback": text or null, ...}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from msm4sr.data.dataset import load_dataset
from msm4sr.digests import file_digest
from msm4sr.dotted import differences, flatten, shorten
from msm4sr.errors import InputError
from msm4sr.experiments.run import RUN_LOCK, open_run, read_metrics
from msm4sr.experiments.settings import RunSettings, read_yaml, resolve_settings, validated
from msm4sr.files import write_text
from msm4sr.strict import Strict
from msm4sr.training.identity import CODE_VERSION

# The settings of features that are part of a store's name (`store_names`).
NAMED = {"text": {"encoder"}, "visual": {"kind", "network", "tagger"}}


GridKind = Literal["comparison", "ablation", "modality", "cold_start", "strict_cold_start", "transfer", "sparsity",
                   "sensitivity", "any_modality"]  # fmt: skip


class Row(Strict):
    """A row of the grid. In its values, {data} is replaced by the name of the data set, {seed} by the seed."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", description="name of the row and its folder")
    label: str = Field("", description="shown in tables; empty: the name")
    model: str = "msm4sr"
    preset: str = "best"
    changes: Mapping[str, Any] = Field({}, description="dotted key to value: changes to preset and file")
    settings: str | None = Field(None, description="a settings file")
    precomputed: Mapping[str, str] = Field({}, description="modality to its file of precomputed embeddings")

    def resolve(self, data: Data, seed: int) -> RunSettings:
        """The settings of one cell. Raises InputError, which names the row, for an invalid setting."""
        changes = [f"{key}={json.dumps(_filled_in(value, data.name, seed))}" for key, value in self.changes.items()]
        file = None if self.settings is None else Path(_filled_in(self.settings, data.name, seed))
        try:
            return resolve_settings(self.preset, self.model, changes, seed, file, data.folder)
        except InputError as error:
            raise InputError(f"row {self.name}: {error}") from None

    def precomputed_files(self, data: str, seed: int) -> dict[str, Path]:
        """The precomputed embeddings of one cell: modality to file."""
        return {modality: Path(_filled_in(file, data, seed)) for modality, file in self.precomputed.items()}


def _filled_in(value: Any, data: str, seed: int) -> Any:
    return value.replace("{data}", data).replace("{seed}", str(seed)) if isinstance(value, str) else value


class Data(Strict):
    """A data set of the grid."""

    name: str
    folder: Path


class Grid(Strict):
    """The contents of grid.yaml."""

    name: str
    title: str
    kind: GridKind = "comparison"
    data: tuple[Data, ...]
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    rows: tuple[Row, ...] = Field(min_length=1)
    best_against: tuple[str, ...] = Field(("msm4sr",), description="our rows; the others are baselines")


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    data: Data
    row: Row
    seed: int
    folder: Path

    @property
    def title(self) -> str:
        return f"{self.data.name} {self.row.name} seed {self.seed}"

    @cached_property
    def settings(self) -> RunSettings:
        return self.row.resolve(self.data, self.seed)

    @property
    def failed_file(self) -> Path:
        return self.folder / "failed.json"

    @property
    def lock_file(self) -> Path:
        """Locked while a process works on the cell."""
        return self.folder / RUN_LOCK

    @property
    def finished(self) -> bool:
        return (self.folder / "metrics.json").exists()

    def metrics(self) -> dict[str, Any] | None:
        """The contents of metrics.json; None for a cell that is not finished."""
        return read_metrics(self.folder)

    def failure(self) -> dict[str, Any] | None:
        """The contents of failed.json; None for a cell that has not failed."""
        return None if self.finished else _read_json(self.failed_file)


def open_grid(folder: Path) -> Grid:
    """Read the grid in `folder`. Raises InputError when there is none."""
    file = folder / "grid.yaml"
    if not file.is_file():
        run = "; the report of a run is its report.html" if (folder / "config.yaml").exists() else ""
        raise InputError(f"{folder}: no grid here (no grid.yaml); `msm4sr compare` creates one{run}")
    return validated(Grid, read_yaml(file), str(file))


def join_grid(folder: Path, asked: Grid) -> Grid:
    """The grid in `folder`, if there is one, with what is asked for; nothing is written.

    Rows, seeds and data sets may be added to a grid, and rows that have only failed may be changed.

    Raises:
        InputError: the folder holds something else, or a grid that defines a name differently.
    """
    file = folder / "grid.yaml"
    if file.exists():
        return _joined(open_grid(folder), asked, file)
    if folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise InputError(f"{folder}: the folder is not empty and holds no grid; choose another --out")
    return asked


def write_grid(folder: Path, grid: Grid) -> None:
    """Write grid.yaml, which must be locked (`compare.locked_grid`)."""
    content = yaml.safe_dump(grid.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    try:
        write_text(folder / "grid.yaml", content)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None


def _joined(stored: Grid, asked: Grid, file: Path) -> Grid:
    """The union of both, the stored first; title, labels and rows that have only failed are those of `asked`."""
    found = differences(*({"name": grid.name, "kind": grid.kind} for grid in (stored, asked)))
    done = {row.name: row for row in stored.rows if not _only_failed(file.parent, row.name)}
    for part, there in (("data", {entry.name: entry for entry in stored.data}), ("rows", done)):
        for entry in getattr(asked, part):
            if entry.name in there:
                then, now = (flatten(e.model_dump(mode="json", exclude={"label"})) for e in (there[entry.name], entry))
                found += [f"{part} {entry.name}: {line}" for line in differences(dict.fromkeys(now) | then, now)]
    if found:
        raise InputError(f"{file}: another grid: {shorten(found)}; choose another --out")
    seeds = tuple(dict.fromkeys((*stored.seeds, *asked.seeds)))
    data, rows = _united(stored.data, asked.data), _united(stored.rows, asked.rows)
    return asked.model_copy(update={"seeds": seeds, "data": data, "rows": rows})


def _only_failed(folder: Path, row: str) -> bool:
    """Whether all begun cells of a row have failed, so that its settings may be changed."""
    cells = folder.glob(f"cells/*/{row}/seed-*")
    return all((cell / "failed.json").exists() and not (cell / "metrics.json").exists() for cell in cells)


def _united(stored: tuple[Any, ...], asked: tuple[Any, ...]) -> tuple[Any, ...]:
    """The union by name; entries of both are those of `asked`."""
    return tuple({entry.name: entry for entry in (*stored, *asked)}.values())


def cells_of(folder: Path, grid: Grid) -> list[Cell]:
    """All cells, the first seed of all rows before the second, so that a first table is complete early."""
    return [
        Cell(data, row, seed, folder / "cells" / data.name / row.name / f"seed-{seed}")
        for seed, data, row in product(grid.seeds, grid.data, grid.rows)
    ]


HINT = "remove that folder or choose another --out"


def check_settings(cell: Cell, metrics: Mapping[str, Any] | None) -> None:
    """Raise InputError for a cell whose run has other settings than its row, or than when it wrote these `metrics`."""
    file = cell.folder / "config.yaml"
    then, now = flatten(read_yaml(file)), flatten(cell.settings.model_dump(mode="json"))
    if found := differences(then, now, now.keys() & then.keys() - {"warm_start.weights"}):
        raise InputError(f"{cell.folder}: made with different settings: {shorten(sorted(found))}; {HINT}")
    stored = None if metrics is None else metrics["identity"].get("settings")
    if stored is not None and stored != open_run(cell.folder).settings_digest:
        raise InputError(f"{file}: edited since the run; restore it, or {HINT}")


def check_cells(cells: Sequence[Cell]) -> None:
    """Raise InputError for a cell of other settings or embeddings than its row, or of data that has changed since."""
    digest, load = cache(file_digest), cache(load_dataset)  # several cells have the same
    for cell in cells:
        if not (cell.folder / "config.yaml").exists() or cell.failure():  # a failed cell is replaced
            continue
        metrics = cell.metrics()
        check_settings(cell, metrics)
        now = {name: digest(file) for name, file in cell.row.precomputed_files(cell.data.name, cell.seed).items()}
        then = {name: found.sha256 for name, found in open_run(cell.folder).precomputed.items()}
        if found := differences(then, now):
            raise InputError(f"{cell.folder}: made with other embeddings: --features {shorten(found)}; {HINT}")
        if metrics is None:
            continue
        if found := differences(metrics["identity"], {"code": CODE_VERSION}, ["code"]):
            raise InputError(f"{cell.folder}: made by another version of msm4sr: {shorten(found)}; {HINT}")
        dataset, stored = load(cell.data.folder, cell.settings.dataset), metrics["identity"]
        same = flatten({"data": dataset.identity | {"content": dataset.content_digest}})
        if "data.content" not in stored:
            del same["data.content"]
        if found := differences(stored, same, same):
            raise InputError(f"{cell.folder}: {cell.data.folder} has changed since: {shorten(found)}; {HINT}")


def features_folder(root: Path, cell: Cell) -> Path:
    """The features folder of a cell: `root`/DATASET.

    Rows with other settings that are not part of a store's name (such as the number of keywords) use
    `root`/DATASET-HASH, since a store has one version of its features.
    """
    settings, of_items = cell.settings, {"user_core", "item_core"}
    if settings.dataset.user_core or settings.dataset.item_core:  # which interactions the cores count
        of_items |= {"split", "validation_from"}
    changed = [
        settings.features.model_dump(mode="json", exclude=NAMED, exclude_defaults=True),
        settings.dataset.model_dump(mode="json", include=of_items, exclude_defaults=True),
    ]
    if not any(any(part.values()) for part in changed):
        return root / cell.data.name
    digest = hashlib.blake2b(json.dumps(changed, sort_keys=True).encode(), digest_size=4).hexdigest()
    return root / f"{cell.data.name}-{digest}"


def _read_json(file: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not readable ({error}); remove it to run the cell again") from None
    return content
