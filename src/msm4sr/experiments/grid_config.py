"""From a configuration and the options of `msm4sr compare` to the grid that is run.

A configuration is a YAML file (`Config`); those of `configs/` are found by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from os.path import abspath
from pathlib import Path
from typing import Any

from pydantic import Field

from msm4sr.errors import InputError
from msm4sr.experiments.grid import Data, Grid, GridKind, Row
from msm4sr.experiments.settings import parse_change, read_yaml, validated
from msm4sr.models.registry import MODELS
from msm4sr.registry import closest
from msm4sr.strict import Strict

CONFIGS = {file.stem: file for file in sorted(Path(__file__).with_name("configs").glob("*.yaml"))}
PRECOMPUTED = "--features NAME=FILE"


@dataclass(frozen=True)
class GridRequest:
    """The options of a user; an empty value means that of the configuration.

    `settings` is a folder of settings files DATASET/ROW.yaml (for one row) or DATASET/MODEL.yaml (for all rows of a
    model). Rows that name no file themselves use them; a file must exist for all data sets or for none.
    """

    config: str  # name of a shipped configuration, or a YAML file
    data: Sequence[Path] = ()  # prepared folders
    seeds: Sequence[int] = ()
    rows: Sequence[str] = ()  # names of the rows to run
    changes: Sequence[str] = ()  # `key=value` for all rows whose model has that setting; a row's changes override it
    preset: str | None = None  # replaces that of the configuration's base
    settings: Path | None = None
    precomputed: Mapping[str, Path] = field(default_factory=dict)  # modality to a file, for rows that have no other


class Base(Strict):
    """Defaults of the rows of a configuration."""

    model: str = "msm4sr"
    preset: str = "best"
    changes: Mapping[str, Any] = {}
    settings: str | None = None


class Config(Strict):
    """The contents of a configuration."""

    name: str = ""  # that of the file
    title: str = ""  # likewise
    kind: GridKind = "comparison"
    needs: Mapping[str, str] = Field({}, description="an option or setting that must be given, and why")
    base: Base = Base()
    rows: tuple[Mapping[str, Any], ...] | None = Field(None, description="as `Row`; null: one per registered model")
    data: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    best_against: tuple[str, ...] = Grid.model_fields["best_against"].default


def plan_grid(request: GridRequest) -> Grid:
    """The requested grid; base and options are applied to each row, whose own changes take precedence.

    Raises:
        InputError: something in the configuration or the options is not valid.
    """
    where = request.config
    file = CONFIGS.get(where, Path(where))
    if not file.is_file():
        raise InputError(f"{where}: neither a file nor one of {', '.join(CONFIGS)}{closest(where, CONFIGS)}")
    config = validated(Config, read_yaml(file), where)
    changes = dict(parse_change(change) for change in request.changes)
    _check_needs(config.needs, request, changes)
    rows = _rows(config, request, changes)
    _check_known("--rows", request.rows, rows)
    if "best_against" in config.model_fields_set:
        _check_known(f"{where}: best_against", config.best_against, rows)
    rows = [row for row in rows if not request.rows or row.name in request.rows]
    data = _data_sets(request.data or [Path(folder) for folder in config.data])
    if request.settings is not None:
        if not request.settings.is_dir():
            raise InputError(f"--settings {request.settings}: no such folder; give one with files DATASET/ROW.yaml")
        rows = [_with_file(row, request.settings.absolute(), [entry.name for entry in data]) for row in rows]
    content = {
        "name": config.name or Path(where).stem,
        "title": config.title or Path(where).stem,
        "kind": config.kind,
        "data": data,
        "seeds": list(dict.fromkeys(request.seeds or config.seeds)),
        "rows": rows,
        "best_against": config.best_against,
    }
    grid = validated(Grid, content, where)
    _check_grid(grid, where)
    return grid


def _rows(config: Config, request: GridRequest, changes: Mapping[str, Any]) -> list[Row]:
    """All rows of a configuration, with base and options applied."""
    base = config.base if request.preset is None else config.base.model_copy(update={"preset": request.preset})
    precomputed = {modality: str(file.absolute()) for modality, file in request.precomputed.items()}
    given = _model_rows() if config.rows is None else config.rows
    rows = [_complete(row, base, changes, precomputed, request.config) for row in given]
    _check_unique(f"{request.config}: rows", [row.name for row in rows])
    for key in changes:
        if not any(_has(row.model, key) for row in rows):
            raise InputError(f"--set {key}: no model of these rows has that setting")
    return rows


def _data_sets(folders: Sequence[Path]) -> list[Data]:
    if not folders:
        raise InputError("--data: name at least one prepared folder")
    data = [Data(name=folder.resolve().name, folder=Path(abspath(folder))) for folder in folders]  # without ".."
    _check_unique("--data: names of folders", [entry.name for entry in data])
    return data


def _model_rows() -> list[dict[str, Any]]:
    """A row for each registered model: the non-learned baselines first, MSM4SR last."""
    names = sorted(MODELS, key=lambda name: (name == "msm4sr", bool(MODELS[name].tasks)))
    return [{"name": name, "label": MODELS[name].label, "model": name} for name in names]


def _check_needs(needs: Mapping[str, str], request: GridRequest, changes: Mapping[str, Any]) -> None:
    for need, reason in needs.items():
        if need not in changes and not (need == PRECOMPUTED and request.precomputed):
            option = need if need.startswith("-") else f"--set {need}=..."
            raise InputError(f"{request.config}: give {option}: {reason}")


def _complete(
    row: Mapping[str, Any], base: Base, changes: Mapping[str, Any], precomputed: Mapping[str, str], where: str
) -> Row:
    """A row of a configuration, with base and options applied."""
    where = f"{where}: row {row.get('name', '')}"
    own = validated(Row, row, where)
    given = {name: getattr(own, name) for name in own.model_fields_set}
    model = given.get("model", base.model)
    shared = {key: value for key, value in {**base.changes, **changes}.items() if _has(model, key)}
    named = {key: list(precomputed) if value == "{precomputed}" else value for key, value in own.changes.items()}
    inherited = {"label": own.name, "model": model, "preset": base.preset, "settings": base.settings}
    content = {**inherited, "precomputed": precomputed, **given, "changes": shared | named}
    if isinstance(content["settings"], str):
        content["settings"] = str(Path(content["settings"]).absolute())
    return validated(Row, content, where)


def _with_file(row: Row, folder: Path, data: Sequence[str]) -> Row:
    """The row with its settings file DATASET/ROW.yaml in `folder`, or that of its model, if it exists."""
    for owner in () if row.settings is not None else (row.name, row.model):
        file = str(folder / "{data}" / f"{owner}.yaml")
        there = [name for name in data if Path(file.replace("{data}", name)).is_file()]
        if len(there) == len(data):
            return row.model_copy(update={"settings": file})
        if there:
            lacking = next(name for name in data if name not in there)
            raise InputError(f"--settings {folder}: {owner} has a file for {there[0]} but not for {lacking}")
    return row


def _has(model: str, key: str) -> bool:
    """Whether a model has a setting; true for every setting outside of `model`."""
    return not key.startswith("model.") or model not in MODELS or key[6:] in MODELS[model].Config.model_fields


def _check_known(where: str, names: Sequence[str], rows: Sequence[Row]) -> None:
    known = [row.name for row in rows]
    if unknown := [str(name) for name in names if name not in known]:
        hint = closest(unknown[0], known)
        raise InputError(f"{where}: there is no row {unknown[0]!r}; there are {', '.join(known)}{hint}")


def _check_unique(where: str, names: Sequence[str]) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{where}: {twice[0]!r} is listed twice; give each a different name")


def _check_grid(grid: Grid, where: str) -> None:
    """Raise InputError if rows contradict each other, or a cell needs several processes."""
    for modality in {modality for row in grid.rows for modality in row.precomputed}:
        if len({row.precomputed[modality] for row in grid.rows if modality in row.precomputed}) > 1:
            raise InputError(f"{where}: rows have different files of {modality}; give each a different name")
    for row in grid.rows:
        for key in row.changes:
            if key.startswith(tuple(f"features.{modality}." for modality in row.precomputed)):
                raise InputError(
                    f"row {row.name}: {key} has no effect on precomputed embeddings (--features NAME=FILE); name the "
                    "other rows with --rows"
                )
    for entry, row in product(grid.data, grid.rows):
        if row.resolve(entry, grid.seeds[0]).device.processes > 1:
            raise InputError(f"row {row.name}: device.devices: a cell uses one process; --jobs runs several cells")
