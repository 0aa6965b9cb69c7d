"""A grid: rows (a system and its settings each) on data sets, with several seeds. What is asked for, and what is there.

GRID/grid.yaml                           the grid, as asked for, resolved
GRID/features/DATASET/                   features, shared by the cells of a data set
GRID/cells/DATASET/ROW/seed-N/           a run folder; finished when metrics.json is there
GRID/cells/DATASET/ROW/seed-N/failed.json    why a cell failed: {"reason": one line, "traceback": text or null, ...}
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from msm4sr.dotted import flatten
from msm4sr.errors import InputError
from msm4sr.experiments.run import open_run
from msm4sr.experiments.settings import RunSettings, read_yaml, resolve_settings
from msm4sr.files import atomic_file
from msm4sr.models.registry import CONFIGS

CONFIGS_PACKAGE = "msm4sr.experiments.configs"
Section = TypeVar("Section", bound=BaseModel)

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$"

# Of the settings of features those that the name of a store tells apart (`store_names`).
NAMED = {"text": {"encoder"}, "visual": {"kind", "network", "tagger"}}


class Row(BaseModel):
    """A line of the table."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=NAME, description="of its folder")
    label: str = Field("", description="as the table shows it; empty: the name")
    model: str = "msm4sr"
    preset: str = "best"
    changes: Mapping[str, Any] = Field({}, description="dotted key to value, what differs from preset and file")
    settings: str | None = Field(None, description="a file of settings")
    vectors: Mapping[str, str] = Field({}, description="modality to a file of vectors of the user's own")

    # In all that a row names {data} stands for the name of the data set, {seed} for the seed.

    def resolve(self, data: str, seed: int) -> RunSettings:
        """The settings of one cell. InputError, which names the row, for what is no setting of the model."""
        changes = [f"{key}={json.dumps(_filled_in(value, data, seed))}" for key, value in self.changes.items()]
        file = None if self.settings is None else Path(_filled_in(self.settings, data, seed))
        try:
            return resolve_settings(self.preset, self.model, changes, seed, file)
        except InputError as error:
            raise InputError(f"row {self.name}: {error}") from None

    def precomputed_embeddings(self, data: str, seed: int) -> dict[str, Path]:
        """Modality to file, of one cell."""
        return {modality: Path(_filled_in(file, data, seed)) for modality, file in self.vectors.items()}


def _filled_in(value: Any, data: str, seed: int) -> Any:
    return value.replace("{data}", data).replace("{seed}", str(seed)) if isinstance(value, str) else value


class Data(BaseModel):
    """A data set of the grid."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    folder: Path

    @classmethod
    def of(cls, folder: Path) -> Data:
        """Named as its folder is."""
        return cls(name=folder.resolve().name, folder=Path(os.path.abspath(folder)))  # without ".."


class Grid(BaseModel):
    """What grid.yaml says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    kind: Literal[
        "comparison",
        "ablation",
        "modality",
        "cold_start",
        "strict_cold_start",
        "transfer",
        "sparsity",
        "sensitivity",
        "any_modality",
    ] = "comparison"
    data: tuple[Data, ...]
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    rows: tuple[Row, ...] = Field(min_length=1)
    best_against: tuple[str, ...] = Field(("msm4sr",), description="the rows that are ours")


class Base(BaseModel):
    """What all rows of a config share, unless they say else."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "msm4sr"
    preset: str = "best"
    changes: Mapping[str, Any] = {}
    settings: str | None = None


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

    @property
    def settings(self) -> RunSettings:
        return self.row.resolve(self.data.name, self.seed)

    @property
    def failed_file(self) -> Path:
        return self.folder / "failed.json"

    @property
    def finished(self) -> bool:
        return (self.folder / "metrics.json").exists()

    def metrics(self) -> dict[str, Any] | None:
        """Of a finished cell."""
        return _read_json(self.folder / "metrics.json")

    def failure(self) -> dict[str, Any] | None:
        """Why it failed, if it did."""
        return None if self.finished else _read_json(self.failed_file)


def config_names() -> list[str]:
    """The grids that ship with the package, in alphabetical order."""
    found = (entry.name for entry in files(CONFIGS_PACKAGE).iterdir())
    return sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml"))


def read_config(config: str) -> dict[str, Any]:
    """A shipped config by name, or a YAML file. InputError when it is neither."""
    if config in config_names():
        with as_file(files(CONFIGS_PACKAGE) / f"{config}.yaml") as file:
            said = read_yaml(file)
    elif Path(config).is_file():
        said = read_yaml(Path(config))
    else:
        near = difflib.get_close_matches(config, config_names(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{config}: neither a file nor one of {', '.join(config_names())}{hint}")
    return {"name": Path(config).stem, "title": Path(config).stem} | said


def plan_grid(
    config: str,
    data: Sequence[Path] = (),
    seeds: Sequence[int] = (),
    rows: Sequence[str] = (),
    changes: Sequence[str] = (),
    preset: str | None = None,
    settings: Path | None = None,
    vectors: Mapping[str, Path] | None = None,
) -> Grid:
    """The grid that is asked for: each row whole, with what it takes from the base and from the options.

    Args:
        config: name of a shipped config, or a YAML file.
        data: prepared folders; none: those that the config names.
        seeds: none: those of the config, else 0.
        rows: names of those wanted; none: all.
        changes: `key=value` for all rows whose model has that setting; what a row changes itself stands.
        preset: in place of the base's.
        settings: folder of settings files DATASET/ROW.yaml (for this row) or DATASET/MODEL.yaml (for all rows of a
            model), of which those that are there are taken: by rows that name none, on all data sets or on none.
        vectors: modality to a file of vectors of one's own, for all rows that do not say else.

    Raises:
        InputError: anything in the config or the options that is no grid.
    """
    said = read_config(config)
    base = _validated(Base, said.pop("base", {}), f"{config}: base")
    if preset is not None:
        base = base.model_copy(update={"preset": preset})
    given = said.pop("rows", None)
    if not isinstance(given, list) or not all(isinstance(row, dict) for row in given):
        raise InputError(f"{config}: rows: a list of mappings such as {{name: sasrec, model: sasrec}}")
    set_for_all = dict(_change(change) for change in changes)
    own = {modality: str(file.absolute()) for modality, file in (vectors or {}).items()}
    for need, why in said.pop("needs", {}).items():
        if need not in set_for_all and not (need == "--features NAME=FILE" and own):
            raise InputError(f"{config}: give {need if need.startswith('-') else f'--set {need}=...'}: {why}")
    filled = [_filled(row, base, set_for_all, own, config) for row in given]
    _check_unique(f"{config}: rows", [row.name for row in filled])
    for key in set_for_all:
        if not any(_has(row.model, key) for row in filled):
            raise InputError(f"--set {key}: no model of these rows has that setting")
    if unknown := [name for name in rows if name not in {row.name for row in filled}]:
        raise InputError(f"--rows: there is no row {unknown[0]!r}; there are {', '.join(row.name for row in filled)}")
    filled = [row for row in filled if not rows or row.name in rows]
    said["rows"] = filled
    folders = data or [Path(folder) for folder in said.get("data", ())]
    said["data"] = [Data.of(folder) for folder in folders]
    if not folders:
        raise InputError("--data: name at least one prepared folder")
    _check_unique("--data: names of folders", [entry.name for entry in said["data"]])
    if settings is not None:
        names = [entry.name for entry in said["data"]]
        said["rows"] = [_with_file(row, settings.absolute(), names) for row in filled]
    if seeds:
        said["seeds"] = list(dict.fromkeys(seeds))
    grid = _validated(Grid, said, config)
    for modality in {modality for row in grid.rows for modality in row.vectors}:
        if len({row.vectors[modality] for row in grid.rows if modality in row.vectors}) > 1:
            raise InputError(f"{config}: rows have different files of {modality}; give each a name of its own")
    for entry, row in product(grid.data, grid.rows):
        if row.resolve(entry.name, grid.seeds[0]).device.processes > 1:
            raise InputError(f"row {row.name}: device.devices: a cell is one process; --jobs runs several cells")
    return grid


def _filled(
    row: Mapping[str, Any], base: Base, set_for_all: Mapping[str, Any], vectors: Mapping[str, str], where: str
) -> Row:
    """A row of a config with what it takes from elsewhere."""
    model = row.get("model", base.model)
    shared = {key: value for key, value in {**base.changes, **set_for_all}.items() if _has(model, key)}
    own = {"model": model, "preset": base.preset, "settings": base.settings, "vectors": vectors, **row}
    if isinstance(own["settings"], str):
        own["settings"] = str(Path(own["settings"]).absolute())
    changes = {key: list(vectors) if value == "{own}" else value for key, value in (row.get("changes") or {}).items()}
    whole = {**own, "changes": shared | changes}
    filled = _validated(Row, whole, f"{where}: row {row.get('name', '')}")
    return filled if filled.label else filled.model_copy(update={"label": filled.name})


def _with_file(row: Row, folder: Path, data: Sequence[str]) -> Row:
    """The row, with its settings files DATASET/ROW.yaml under `folder`, or those of its model, where they are there."""
    for owner in () if row.settings is not None else (row.name, row.model):
        file = str(folder / "{data}" / f"{owner}.yaml")
        there = [name for name in data if Path(file.replace("{data}", name)).is_file()]
        if len(there) == len(data):
            return row.model_copy(update={"settings": file})
        if there:
            lacking = next(name for name in data if name not in there)
            raise InputError(f"--settings {folder}: {owner} has a file for {there[0]}, and none for {lacking}")
    return row


def _has(model: str, key: str) -> bool:
    """Whether a setting of a model, if the key is one, is this model's."""
    return not key.startswith("model.") or model not in CONFIGS or key[6:] in CONFIGS[model].model_fields


def _change(change: str) -> tuple[str, Any]:
    key, equals, text = change.partition("=")
    if not equals:
        raise InputError(f"--set {change}: write it as key=value, for example finetune.learning_rate=1e-4")
    try:
        return key, yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"--set {change}: {text!r} is no value; quote it if it is meant as text") from None


def _check_unique(where: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{where}: {name!r} stands there twice; each needs a name of its own")


def _validated(kind: type[Section], said: Any, where: str) -> Section:
    try:
        return kind.model_validate(said)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise InputError(f"{where}: {key}: {problem['msg']}") from None


# -- the grid folder -------------------------------------------------------------------------------------------------


def open_grid(folder: Path) -> Grid:
    """The grid that stands in `folder`. InputError when there is none."""
    file = folder / "grid.yaml"
    if not file.is_file():
        run = "; a run has its report in report.html already" if (folder / "config.yaml").exists() else ""
        raise InputError(f"{folder}: there is no grid here (no grid.yaml); `msm4sr compare` makes one{run}")
    return _validated(Grid, read_yaml(file), str(file))


def enter_grid(folder: Path, asked: Grid) -> Grid:
    """Write what is asked for into grid.yaml, beside what stands there already; the whole.

    Rows, seeds and data may be added to a grid, and rows mended that have only failed, by several processes at a time.

    Raises:
        InputError: the folder holds something else, or a grid in which the same name means something else.
    """
    file = folder / "grid.yaml"
    if not file.exists() and folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise InputError(f"{folder}: the folder is not empty and holds no grid; name another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".grid.lock"):
            stored = open_grid(folder) if file.exists() else None
            whole = asked if stored is None else _joined(stored, asked, file)
            if whole != stored:
                text = yaml.safe_dump(whole.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
                with atomic_file(file) as unfinished:
                    unfinished.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None
    return whole


def _joined(stored: Grid, asked: Grid, file: Path) -> Grid:
    """Both, the stored first; titles, labels and rows that have only failed yet are as asked.

    InputError, which says what differs, where a name means something else in one of them.
    """
    differing = [
        f"{key} is {getattr(stored, key)} there and {getattr(asked, key)} now"
        for key in ("name", "kind")
        if getattr(stored, key) != getattr(asked, key)
    ]
    done = {row.name: row for row in stored.rows if not _only_failed(file.parent, row.name)}
    for part, there in (("data", {entry.name: entry for entry in stored.data}), ("rows", done)):
        for entry in getattr(asked, part):
            if entry.name in there:
                then, now = (flatten(e.model_dump(mode="json", exclude={"label"})) for e in (there[entry.name], entry))
                differing += [
                    f"{part} {entry.name}: {key} is {then.get(key)} there and {now.get(key)} now"
                    for key in then | now
                    if then.get(key) != now.get(key)
                ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise InputError(f"{file}: another grid: {'; '.join(differing[:3])}{more}; name another --out")
    return asked.model_copy(
        update={
            "seeds": tuple(dict.fromkeys((*stored.seeds, *asked.seeds))),
            "data": _united(stored.data, asked.data),
            "rows": _united(stored.rows, asked.rows),
        }
    )


def _only_failed(folder: Path, row: str) -> bool:
    """Whether no cell of a row has come further than to fail: its settings may then be mended."""
    cells = folder.glob(f"cells/*/{row}/seed-*")
    return all((cell / "failed.json").exists() and not (cell / "metrics.json").exists() for cell in cells)


def _united(stored: tuple[Any, ...], asked: tuple[Any, ...]) -> tuple[Any, ...]:
    """Those of both by name, in the order of the first; what both have is as asked."""
    return tuple(({entry.name: entry for entry in stored} | {entry.name: entry for entry in asked}).values())


def cells_of(folder: Path, grid: Grid) -> list[Cell]:
    """All cells; all rows of the first seed come before the second, so that a table is soon whole."""
    return [
        Cell(data, row, seed, folder / "cells" / data.name / row.name / f"seed-{seed}")
        for seed in grid.seeds
        for data in grid.data
        for row in grid.rows
    ]


def check_cells(cells: Sequence[Cell]) -> None:
    """InputError where a cell that was begun has other settings than its row has now (a preset may have changed)."""
    for cell in cells:
        if (cell.folder / "config.yaml").exists() and not cell.failed_file.exists():  # else it is made anew, if at all
            run = open_run(cell.folder)
            then, now = (flatten(s.model_dump(mode="json")) for s in (run.settings, cell.settings))
            differing = [f"{key} is {then[key]} there and {now[key]} now" for key in now if then.get(key) != now[key]]
            if differing:
                raise InputError(
                    f"{cell.folder}: made with other settings: {'; '.join(differing[:3])}; remove that folder, or "
                    "name another --out"
                )


def features_folder(root: Path, cell: Cell) -> Path:
    """Where the features of a cell are kept: `root`/DATASET.

    A store holds one version of what its name says: rows whose features differ in what no store's name tells (the
    number of keywords, say) have a folder of their own, `root`/DATASET-HASH.
    """
    settings = cell.settings
    differs = [
        settings.features.model_dump(mode="json", exclude=NAMED, exclude_defaults=True),
        settings.dataset.model_dump(mode="json", include={"user_core", "item_core"}, exclude_defaults=True),
    ]
    if not any(any(part.values()) for part in differs):
        return root / cell.data.name
    digest = hashlib.blake2b(json.dumps(differs, sort_keys=True).encode(), digest_size=4).hexdigest()
    return root / f"{cell.data.name}-{digest}"


def _read_json(file: Path) -> dict[str, Any] | None:
    try:
        said: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not readable ({error}); remove it, and the cell is made again") from None
    return said
