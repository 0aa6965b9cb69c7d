"""A run is a folder; its stages read what the one before left there: extract, pretrain, finetune, evaluate.

config.yaml           data folder, features folder, vectors of one's own, preset, all settings
features/             what the frozen encoders made of the items (unless the features folder is another)
metrics.jsonl         a line an epoch
curves.png            the same lines, drawn
metrics.json          {"validation": {"ndcg@10": ...}, "test": {...}, "seen_excluded": the same two where what a user
                      already took is not ranked, "run": what was run, "versions": {...}}
users.parquet         each user's rank of the target, on validation and on test: what a paired test needs
checkpoints/          pretrain.safetensors, finetune.safetensors: the weights of the best epoch of each stage;
                      pretrain.last.safetensors, ...: what an interrupted stage goes on from
model/                config.json, model.safetensors, items.json, README.md: whole without the rest
report.html           for people"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from msm4sr.dotted import flatten
from msm4sr.errors import InputError
from msm4sr.experiments.claims import CLAIM
from msm4sr.experiments.machine import forget_peak
from msm4sr.experiments.settings import RunSettings, change_settings, validate_settings
from msm4sr.features.precomputed import file_hash

Note = Callable[[str], object]


"""Is told a line, in rich's markup."""


BEFORE_A_RUN = {"features", "config.yaml.part"}  # what an extraction leaves, even one that was killed at its very end


UNSEEN = (".", CLAIM)  # how the names begin of what is no content of a folder: files in the making, claims


RESULTS = ("metrics.json", "users.parquet", "report.html", "model")  # what evaluation makes of the last stage's weights


@dataclass(frozen=True)
class Precomputed:
    """A file of vectors in place of an encoder, and its sha256 when the run began."""

    file: Path
    sha256: str


@dataclass(frozen=True)
class Run:
    """A run folder and what its config.yaml says."""

    folder: Path
    data: Path
    features: Path
    preset: str
    settings: RunSettings
    vectors: Mapping[str, Precomputed] = field(default_factory=dict)
    """Of the modalities that come from a file of the user's."""

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics.json"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def epochs(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return read_epochs(self.folder)


def read_epochs(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; none before the first epoch has ended. InputError for half a line."""
    file = folder / "metrics.jsonl"
    if not file.exists():
        return []
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # for example half a line, of a run that was killed
            row = None
        if not (isinstance(row, dict) and {"stage", "epoch", "seconds"} <= row.keys()):
            raise InputError(f"{file}, line {number}: not the record of an epoch; delete that line")
        rows.append(row)
    return rows


def plan_run(
    data: Path,
    folder: Path,
    settings: RunSettings,
    preset: str,
    features: Path | None = None,
    overwrite: bool = False,
    vectors: Mapping[str, Path] | None = None,
) -> Run:
    """Check that a run can be made in `folder`; nothing is written, and nothing lost, before `begin_run`.

    Raises:
        InputError: the folder holds a run (and `overwrite` is off) or something else; the settings ask for a device
            that is not there; a file of vectors is not there, or its modality has no proper name.
    """
    settings.device.check()
    own = {name: precomputed_embeddings(name, file) for name, file in (vectors or {}).items()}
    if (folder / "config.yaml").exists():
        if not overwrite:
            raise InputError(
                f"{folder}: there is a run already; go on with it by --resume (or by msm4sr pretrain, finetune, "
                "evaluate), name another --out, or replace it by --overwrite (its features are kept)"
            )
    elif folder.is_dir() and not {e.name for e in folder.iterdir() if not e.name.startswith(UNSEEN)} <= BEFORE_A_RUN:
        raise InputError(f"{folder}: the folder is not empty and holds no run; name another --out")
    return Run(folder, data.absolute(), (features or folder / "features").absolute(), preset, settings, own)


def precomputed_embeddings(modality: str, file: Path) -> Precomputed:
    """A file of vectors as it is now. InputError where it cannot be read, or the modality has no proper name."""
    # Modules are kept under the modality's name: `items`, say, would hide what a mapping of modules needs itself.
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", modality) or hasattr(torch.nn.ModuleDict(), modality):
        raise InputError(
            f"--features {modality}={file}: {modality!r} cannot name a modality; letters, digits and underscores can, "
            "for example audio"
        )
    return Precomputed(file.absolute(), file_hash(file))


def begin_run(run: Run) -> None:
    """Write config.yaml; what a former run has left is removed, but for its features.

    A features folder inside the run is written as a relative path, so that the run can be moved. The memory that the
    run is said to take counts from here.
    """
    forget_peak()
    inside = run.features.is_relative_to(run.folder.absolute())
    features = run.features.relative_to(run.folder.absolute()) if inside else run.features
    config: dict[str, Any] = {"data": str(run.data), "features_folder": str(features), "preset": run.preset}
    if run.vectors:
        config["vectors"] = {name: {"file": str(own.file), "sha256": own.sha256} for name, own in run.vectors.items()}
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        _remove(run.folder, "metrics.jsonl", "curves.png", "logs", "checkpoints", *RESULTS)
        text = yaml.safe_dump(config | run.settings.model_dump(mode="json"), sort_keys=False)
        _write(run.folder / "config.yaml", text)
    except OSError as error:
        raise InputError(f"{run.folder}: cannot be written ({error.strerror})") from None


def resume_run(
    data: Path,
    folder: Path,
    settings: RunSettings,
    features: Path | None = None,
    vectors: Mapping[str, Path] | None = None,
) -> Run:
    """The run that stands in `folder`, to go on with. InputError when it is not one of this data and these settings."""
    run = open_run(folder)
    now = flatten(settings.model_dump(mode="json")) | {"data": str(data.absolute())}
    then = flatten(run.settings.model_dump(mode="json")) | {"data": str(run.data)}
    if features is not None:
        now, then = now | {"--features": str(features.absolute())}, then | {"--features": str(run.features)}
    now |= {f"--features {name}": file_hash(file) for name, file in (vectors or {}).items()}
    then |= {f"--features {name}": own.sha256 for name, own in run.vectors.items()}
    differing = [
        f"{key} is {then.get(key)} there and {now.get(key)} now" for key in now | then if then.get(key) != now.get(key)
    ]
    if differing:
        raise InputError(
            f"{folder}: cannot go on with this run: {'; '.join(differing[:3])}; give the options that it was begun "
            "with, or start anew by --overwrite"
        )
    settings.device.check()
    forget_peak()
    return run


def open_run(folder: Path, changes: Sequence[str] = ()) -> Run:
    """Read the run that stands in `folder`, with `key=value` changes of its settings that are for this time only.

    InputError when there is none or its config.yaml is damaged.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        raise InputError(f"{folder}: there is no run here (no config.yaml); `msm4sr run DATA --out {folder}` makes one")
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        data, features, preset = (config.pop(key) for key in ("data", "features_folder", "preset"))
        data, features = Path(data), Path(features)
        vectors = {
            name: Precomputed(Path(own["file"]), str(own["sha256"])) for name, own in config.pop("vectors", {}).items()
        }
    except OSError as error:
        raise InputError(f"{file}: not readable ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not a run's settings ({type(error).__name__}: {error})") from None
    settings = change_settings(validate_settings(config, str(file)), changes)
    return Run(folder, data, folder.absolute() / features, preset, settings, vectors)


def tidy(run: Run) -> None:
    """Remove the folders of a run that did not begin, where they are empty."""
    for folder in (run.features, run.folder):
        with suppress(OSError):  # not empty, or not there
            folder.rmdir()


def _remove(folder: Path, *names: str) -> None:
    for name in names:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    part = file.with_name(file.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)
