"""The folder of a run: its contents, and how a run is planned, started, resumed and opened.

config.yaml           version, data folder, features folder, files of precomputed embeddings, preset, all settings
features/             the features of the items (unless the run uses another features folder)
metrics.jsonl         one line per epoch
metrics.json          {"validation": {"ndcg@10": ...}, "test": {...}, "seen_excluded": {"validation": ..., "test": ...},
                      "run": how the run was made, "versions": {...}}
users.parquet         each user's rank of the target on validation and on test, for paired tests
checkpoints/          pretrain.safetensors, finetune.safetensors: the weights of each stage's best epoch;
                      pretrain.last.safetensors, ...: from which an interrupted stage resumes
model/                config.json, model.safetensors, items.json, rows.json (the ids of users and categories, of
                      models that have weights for them), README.md: self-contained
report.html           the report of the run
evaluations/NAME/     metrics.json and users.parquet of the stored model on other data
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from msm4sr.digests import file_digest, json_digest
from msm4sr.dotted import differences, flatten, shorten
from msm4sr.errors import InputError, command
from msm4sr.experiments.machine import reset_memory_peak
from msm4sr.experiments.settings import RunSettings, change_settings, read_yaml, validated
from msm4sr.files import make_folder, remove, write_json, write_text
from msm4sr.locks import try_lock, unlock
from msm4sr.models.registry import MODELS
from msm4sr.recommend.explanations import ID, SEEN
from msm4sr.recommend.scoring import BOTH, COLLABORATIVE
from msm4sr.tensor_files import read_checksum

RUN_LOCK = ".run.lock"  # locked while a process works on the run
RESERVED = (ID, SEEN, BOTH, COLLABORATIVE)  # parts of a score, and choices beside the modalities
MAY_DIFFER = ("device.devices", "device.num_nodes", "warm_start.weights")  # when a run is resumed
NO_SETTINGS = ("msm4sr", "data", "features_folder", "precomputed", "data_identity")  # of config.yaml
RESULTS = ("metrics.json", "users.parquet", "report.html", "model", "evaluations")  # written by evaluation


@dataclass(frozen=True)
class Precomputed:
    """A file of precomputed embeddings, and its sha256 when the run began."""

    file: Path
    sha256: str


@dataclass(frozen=True)
class Run:
    """A run folder and the contents of its config.yaml."""

    folder: Path
    data: Path
    features: Path
    preset: str
    settings: RunSettings
    precomputed: Mapping[str, Precomputed] = field(default_factory=dict)  # by modality
    data_identity: Mapping[str, str] = field(default_factory=dict)  # `Dataset.identity` when it began; empty: unknown

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics.json"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def settings_digest(self) -> str:
        """A digest of preset and settings, without the seconds between checkpoints.

        They are those of config.yaml, so that a setting that a later version adds does not change the digest.
        """
        content = flatten(read_yaml(self.folder / "config.yaml"))
        decisive = [
            key for key in content if key.partition(".")[0] not in NO_SETTINGS and "checkpoint_every" not in key
        ]
        return json_digest({key: content[key] for key in decisive})

    def epochs(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return read_epochs(self.folder)

    def remove_results(self) -> None:
        """Remove what evaluation has written."""
        _remove(self.folder, *RESULTS)


def write_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Write metrics.json with a checksum."""
    write_json(folder / "metrics.json", {**metrics, "checksum": json_digest(metrics)})


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """The contents of metrics.json; None for a run that is not complete. InputError if they are not as written."""
    file = folder / "metrics.json"
    try:
        metrics: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if metrics.pop("checksum") != json_digest(metrics):
            raise ValueError("its content does not match its checksum")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file}: damaged or edited ({error}); {command('evaluate', folder)} writes it again"
        ) from None
    return metrics


def read_epochs(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, if any. Raises InputError for a line that is not the record of an epoch."""
    file = folder / "metrics.jsonl"
    if not file.exists():
        return []
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # for example half a line, of a run that was killed
            row = None
        if not (isinstance(row, dict) and {"stage", "epoch", "seconds"} <= row.keys() and _is_epoch(**row)):
            raise InputError(f"{file}, line {number}: not the record of an epoch; delete that line")
        rows.append(row)
    return rows


def _is_epoch(stage: object, **values: object) -> bool:
    """Whether all values of a record but its stage are finite numbers."""
    return isinstance(stage, str) and all(
        isinstance(value, int | float) and abs(value) < math.inf for value in values.values()
    )


def plan_run(
    data: Path,
    folder: Path,
    settings: RunSettings,
    preset: str,
    features: Path | None = None,
    overwrite: bool = False,
    precomputed: Mapping[str, Path] | None = None,
) -> Run:
    """Check that a run can be made in `folder`. Nothing is written or removed before `begin_run`.

    Args:
        features: the features folder; None: inside the run.
        overwrite: replace a run that is in `folder`.
        precomputed: modality to a file of precomputed embeddings.

    Raises:
        InputError: the folder holds a run (without `overwrite`) or something else; the device is not available; as
            `read_precomputed`.
    """
    settings.device.check()
    files = read_precomputed(precomputed or {})
    if (folder / "config.yaml").exists():
        if not overwrite:
            raise InputError(
                f"{folder}: already contains a run; resume it with --resume (or msm4sr pretrain, finetune, evaluate), "
                "choose another --out, or replace it with --overwrite (its features are kept)"
            )
    elif folder.is_dir() and not {e.name for e in folder.iterdir() if not e.name.startswith(".")} <= {"features"}:
        raise InputError(f"{folder}: the folder is not empty and holds no run; choose another --out")
    run = Run(folder, data.absolute(), (features or folder / "features").absolute(), preset, settings, files)
    source = Path(settings.pretrain.init_from or "")
    if settings.pretrain.init_from and (source / "config.yaml").exists():  # else `start_from` refuses it
        _check_encoders(run, open_run(source), "pretrain.init_from")
    return _warm_started(run, features is None) if settings.warm_start.run else run


def _warm_started(run: Run, shares: bool) -> Run:
    """The run with the checksum of the weights that it starts from; if it `shares` features, with the folder of those.

    Raises InputError if the run that it starts from is not finished, or is one of another model or other encoders.
    """
    source = open_run(Path(run.settings.warm_start.run or ""))
    if source.folder.resolve() == run.folder.resolve():
        raise InputError(f"{run.folder}: a run cannot replace the one that it starts from; choose another --out")
    if not source.metrics_file.exists():
        raise InputError(
            f"--warm-start {source.folder}: it is not finished; {command('evaluate', source.folder)} ends it"
        )
    ours, theirs = run.settings.model.name, source.settings.model.name
    if ours != theirs:
        raise InputError(f"--warm-start {source.folder}: a run of {theirs}, not of {ours}")
    if MODELS[ours].uses_features:
        _check_encoders(run, source, f"--warm-start {source.folder}")
    checksum = read_checksum(
        source.folder / "model" / "model.safetensors", f"{command('evaluate', source.folder)} does"
    )
    start = run.settings.warm_start.model_copy(update={"weights": checksum})
    shared = shares and not source.features.is_relative_to(source.folder.absolute())
    settings = run.settings.model_copy(update={"warm_start": start})
    return replace(run, settings=settings, features=source.features if shared else run.features)


def _check_encoders(run: Run, source: Run, where: str) -> None:
    """Raise InputError, which begins with `where`, if the features of another run were made by other encoders."""
    for modality in ("text", "visual"):
        ours, theirs = (
            "precomputed embeddings"
            if modality in one.precomputed
            else getattr(one.settings.features, modality).model_dump(mode="json")
            for one in (run, source)
        )
        if ours != theirs:
            raise InputError(
                f"{where}: the features of {modality} differ: {theirs} in {source.folder}, {ours} here; "
                "both need the same encoder"
            )


def read_precomputed(files: Mapping[str, Path]) -> dict[str, Precomputed]:
    """Files of precomputed embeddings with hashes. Raises InputError for an unreadable file or an invalid modality."""
    for modality, file in files.items():
        # Modules are kept under the modality's name: `items` would hide a method of a mapping of modules.
        if modality in RESERVED or hasattr(torch.nn.ModuleDict(), modality):
            raise InputError(f"--features {modality}={file}: {modality!r} is used otherwise; choose another name")
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", modality):
            raise InputError(
                f"--features {modality}={file}: {modality!r} cannot name a modality; use letters, digits and "
                "underscores, for example audio"
            )
    return {modality: Precomputed(file.absolute(), file_digest(file)) for modality, file in files.items()}


def begin_run(run: Run, data_identity: Mapping[str, str] = {}) -> None:
    """Write config.yaml and remove what an earlier run left, except its features; memory is measured from here on.

    A features folder inside the run is written as a relative path, so that the run can be moved. `data_identity` is
    that of its data set; see `check_data`.
    """
    reset_memory_peak()
    inside = run.features.is_relative_to(run.folder.absolute())
    features = run.features.relative_to(run.folder.absolute()) if inside else run.features
    config: dict[str, Any] = {
        "msm4sr": version("msm4sr"),
        "data": str(run.data),
        "features_folder": str(features),
        "preset": run.preset,
    }
    files = {name: {"file": str(found.file), "sha256": found.sha256} for name, found in run.precomputed.items()}
    config |= {"precomputed": files} if files else {}
    config |= {"data_identity": dict(data_identity)} if data_identity else {}
    try:
        make_folder(run.folder)
        _remove_unfinished(run.folder)
        _remove(run.folder, "metrics.jsonl", "logs", "checkpoints", *RESULTS)
        text = yaml.safe_dump(config | run.settings.model_dump(mode="json"), sort_keys=False)
        write_text(run.folder / "config.yaml", text)
    except OSError as error:
        raise InputError(f"{run.folder}: cannot be written ({error.strerror or error})") from None


def resume_run(
    data: Path,
    folder: Path,
    settings: RunSettings,
    features: Path | None = None,
    precomputed: Mapping[str, Path] | None = None,
) -> Run:
    """Open the run in `folder` to resume it, with any number of processes.

    Raises:
        InputError: its data or other settings differ.
    """
    run = open_run(folder)
    now = flatten(settings.model_dump(mode="json")) | {"data": str(data.absolute())}
    then = flatten(run.settings.model_dump(mode="json")) | {"data": str(run.data)}
    if features is not None:
        now, then = now | {"--features": str(features.absolute())}, then | {"--features": str(run.features)}
    now |= {f"--features {name}": file_digest(file) for name, file in (precomputed or {}).items()}
    then |= {f"--features {name}": found.sha256 for name, found in run.precomputed.items()}
    if found := differences(then, now, [key for key in {**now, **then} if key not in MAY_DIFFER]):
        raise InputError(
            f"{folder}: cannot resume this run: {shorten(found)}; give the options it was started with, or start "
            "from scratch with --overwrite"
        )
    settings.device.check()
    reset_memory_peak()
    _remove_unfinished(folder)
    return with_processes_of(run, settings)


def with_processes_of(run: Run, settings: RunSettings) -> Run:
    """The run with the processes that other settings ask for."""
    return replace(run, settings=run.settings.model_copy(update={"device": settings.device}))


def open_run(folder: Path, changes: Sequence[str] = (), data: Path | None = None) -> Run:
    """Read the run in `folder`, with changes that are not stored: settings `key=value`, another place of its `data`.

    Raises:
        InputError: there is no run, or its config.yaml is damaged.
    """
    file = folder / "config.yaml"
    if not file.is_file() and (folder / "interactions.parquet").exists():
        training = command("run", folder, "--out", "RUN")
        raise InputError(f"{folder}: prepared data, not a run; {training} trains a model on it")
    if not file.is_file():
        raise InputError(
            f"{folder}: no run here (no config.yaml); {command('run', 'DATA', '--out', folder)} creates one"
        )
    config = read_yaml(file)
    try:
        stored, features, preset = Path(config.pop("data")), Path(config.pop("features_folder")), config.pop("preset")
        found = config.pop("precomputed", {})
        precomputed = {name: Precomputed(Path(one["file"]), str(one["sha256"])) for name, one in found.items()}
        identity = dict(config.pop("data_identity", {}))
    except (AttributeError, KeyError, TypeError, ValueError):
        needed = "data, features_folder and preset, as `msm4sr run` writes them"
        raise InputError(f"{file}: not a run's settings: it must have {needed}") from None
    written_by = config.pop("msm4sr", "unknown")
    hint = f"; the run was written by another version of msm4sr ({written_by}); train it again"
    if written_by == version("msm4sr"):
        hint = "; the file was edited: undo it, and make a new run for other settings"
    settings = change_settings(validated(RunSettings, config, str(file), hint), changes)
    place = stored if data is None else data.absolute()
    return Run(folder, place, folder.absolute() / features, preset, settings, precomputed, identity)


def check_data(run: Run, identity: Mapping[str, str]) -> None:
    """Raise InputError if the run was begun on other data than that with this `Dataset.identity`."""
    if run.data_identity and (found := differences(run.data_identity, identity)):
        raise InputError(
            f"{run.data}: other data than {run.folder} was begun on: {shorten(found)}; make a new run, or finish this "
            "one on its own data before it is evaluated on other data"
        )


class RunLocked(InputError):
    """Another process works on the run."""


@contextmanager
def locked_run(folder: Path, seconds: float = 0) -> Iterator[None]:
    """Lock a run folder during the block; at its end, remove the folder if no run was created in it.

    Raises:
        RunLocked: another process works on it, and still does after `seconds`.
    """
    lock = try_lock(folder / RUN_LOCK, seconds)
    if lock is None:
        raise RunLocked(f"{folder}: another process works on this run; wait until it ends, or choose another --out")
    try:
        _remove_unfinished(folder)
        yield
    finally:
        begun = (folder / "config.yaml").exists()
        if begun and not (folder / "metrics.json").exists():
            lock.release()  # without removing the file, since another process may resume the run
        else:
            unlock(lock)
        if not begun:
            remove_empty(folder / "features", folder)


def remove_empty(*folders: Path) -> None:
    """Remove those of the folders that are empty."""
    for folder in folders:
        with suppress(OSError):  # not empty, or not there
            folder.rmdir()


def _remove(folder: Path, *names: str) -> None:
    for name in names:
        remove(folder / name)


def _remove_unfinished(folder: Path) -> None:
    """Remove what a killed process left of the files it was writing, here or in safetensors. The run must be locked."""
    for place in (folder, folder / "checkpoints", folder / "model"):
        for left in [*place.glob(".*.unfinished"), *place.glob(".tmp*")]:
            remove(left)
