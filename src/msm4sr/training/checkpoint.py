"""Checkpoints: one safetensors file each, written atomically, with a description as JSON in its header.

Two files could be of two moments after a kill. The best weights are written before the checkpoint that refers to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from msm4sr.dotted import differences, shorten
from msm4sr.errors import InputError
from msm4sr.models.item_table import item_tables
from msm4sr.models.layers import update_features
from msm4sr.tensor_files import Blocks, mapped_tensors, read_about, save_tensors
from msm4sr.training.sharding import join_in


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the parameters that this process has (without the frozen features), on the CPU."""
    return {name: weight.detach().cpu().clone() for name, weight in model.named_parameters()}


def set_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy `weights` into `model`. InputError when names or shapes differ.

    Of a table it takes the rows that this process has, from all rows or from those alone.
    """
    own = dict(model.named_parameters())
    tables = {name: table for name, table in item_tables(model).items() if len(weights.get(name, ())) == table.n_items}
    weights = {**weights, **{name: table.shard.rows(weights[name]) for name, table in tables.items()}}
    if own.keys() != weights.keys() or any(own[name].shape != weights[name].shape for name in own):
        raise InputError("the checkpoint belongs to another model: settings, data or features have changed")
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(weights[name])
    update_features(model)


@dataclass
class TrainingState:
    """How far a training has come; with weights, optimiser and generators, everything that resuming needs."""

    epoch: int = 1  # the current one, from 1
    step: int = 0  # completed steps of it
    steps: int = 0  # completed steps of all epochs
    pairs: int = 0  # of the epoch so far
    seconds: float = 0.0  # of training in the epoch so far, without validation
    best: float | None = None  # the best validation value; None before the first
    best_epoch: int = 0
    waited: int = 0  # validations since the best
    done: bool = False  # the training is complete
    threads: int = 0  # of this process, which change the last bits of sums; 0: unknown
    processes: int = 1  # that trained together
    rows: list[dict[str, Any]] = field(default_factory=list)  # `EpochRecord.as_row` of each completed epoch

    def count_step(self, pairs: int) -> None:
        """One more step of the current epoch is done."""
        self.step, self.steps, self.pairs = self.step + 1, self.steps + 1, self.pairs + pairs

    def next_epoch(self) -> None:
        """The current epoch is done."""
        self.epoch, self.step, self.pairs, self.seconds = self.epoch + 1, 0, 0, 0.0


def best_file(checkpoints: Path, stage: str) -> Path:
    """The weights of a stage's best epoch."""
    return checkpoints / f"{stage}.safetensors"


def last_file(checkpoints: Path, stage: str) -> Path:
    """The state from which an interrupted stage resumes."""
    return checkpoints / f"{stage}.last.safetensors"


def read_state(checkpoints: Path, stage: str) -> TrainingState | None:
    """The progress of a stage at its last checkpoint; None if there is none. InputError for a damaged one."""
    file = last_file(checkpoints, stage)
    return _state_of(file, stage, read_about(file, retrain(checkpoints, stage))) if file.exists() else None


def retrain(checkpoints: Path, stage: str) -> str:
    """How to write the checkpoints of a stage again, as the end of a message."""
    return f"run `msm4sr {stage} {checkpoints.parent} --overwrite`"


def _state_of(file: Path, stage: str, about: Mapping[str, Any]) -> TrainingState:
    state = about.get("state")
    if isinstance(state, dict):
        state = {"processes": about.get("identity", {}).get("processes", 1)} | state  # of earlier versions
    if not isinstance(state, dict) or state.keys() != asdict(TrainingState()).keys():
        raise InputError(f"{file}: damaged (no complete state of a training); {retrain(file.parent, stage)}")
    return TrainingState(**state)


@dataclass(frozen=True)
class Checkpoints:
    """The two checkpoints of a stage: `STAGE.safetensors` (the best epoch) and `STAGE.last.safetensors` (to resume).

    The files are the same for any number of processes. All processes must save together.
    """

    folder: Path
    stage: str
    identity: Mapping[str, Any]  # what the weights depend on; checkpoints of anything else are refused
    writes: bool = True  # in the first process; the others send it their rows

    def save_best(self, weights: Mapping[str, Tensor | Blocks], epoch: int) -> None:
        """Keep the weights of the best epoch so far."""
        self._save(weights, best_file(self.folder, self.stage), {"epoch": epoch})

    def save_last(self, tensors: Mapping[str, Tensor | Blocks], state: TrainingState) -> None:
        """Keep everything that resuming needs."""
        self._save(tensors, last_file(self.folder, self.stage), {"state": asdict(state)})

    def _save(self, tensors: Mapping[str, Tensor | Blocks], file: Path, about: Mapping[str, Any]) -> None:
        if self.writes:
            save_tensors(tensors, file, {"identity": self.identity, **about})
        else:
            join_in(tensors)

    def load_last(self) -> tuple[dict[str, Tensor], TrainingState] | None:
        """What `save_last` wrote, mapped; None if there is nothing. InputError for another training's checkpoint."""
        file = last_file(self.folder, self.stage)
        if not file.exists():
            return None
        about = self._read_own(file)
        return mapped_tensors(file, self._remedy), _state_of(file, self.stage, about)

    def load_best(self, epoch: int) -> dict[str, Tensor]:
        """The best weights, mapped: of `epoch` or, in a resumed training, of the interrupted epoch."""
        file = best_file(self.folder, self.stage)
        about = self._read_own(file)
        if about["epoch"] < epoch:
            raise InputError(f"{file}: from epoch {about['epoch']}, not {epoch}; {self._remedy}")
        return mapped_tensors(file, self._remedy)

    @property
    def _remedy(self) -> str:
        return retrain(self.folder, self.stage)

    def _read_own(self, file: Path) -> dict[str, Any]:
        about = read_about(file, self._remedy)
        check_identity(file, about, self.identity, "rerun without --resume to start from scratch")
        return about


def check_identity(file: Path, about: Mapping[str, Any], identity: Mapping[str, Any], remedy: str) -> None:
    """InputError that names what differs between a checkpoint's identity and the one asked for; then `remedy`."""
    if found := differences(about.get("identity", {}), identity, identity):
        raise InputError(f"{file}: the checkpoint belongs to another training: {shorten(found)}; {remedy}")
