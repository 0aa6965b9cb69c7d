"""What every sequence model offers to training, evaluation and serving, and how it is stored."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from msm4sr.errors import InputError


@runtime_checkable
class SequenceModel(Protocol):
    """Scores are one product: `encode_histories(histories, catalogue) @ scoring_vectors(catalogue).T`."""

    max_history: int

    def encode_items(self) -> Tensor:
        """The whole catalogue as the model sees it, once a step: [N, M, D], M modalities (1 for IDs alone)."""
        ...

    def encode_histories(self, histories: Tensor, catalogue: Tensor) -> Tensor:
        """Item rows [B, L], padded on the right, to a vector for each prefix [B, L, Q]."""
        ...

    def scoring_vectors(self, catalogue: Tensor) -> Tensor:
        """What a prefix vector is multiplied with: [N, Q]."""
        ...


def write_model(model: nn.Module, config: dict[str, object], folder: Path) -> None:
    """Store weights and frozen features as `model.safetensors`, the settings as `config.json`, each atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    try:
        save_file(state, folder / "model.safetensors.part")
    except SafetensorError as error:
        (folder / "model.safetensors.part").unlink(missing_ok=True)
        raise InputError(f"{folder / 'model.safetensors'}: could not be written ({error})") from None
    os.replace(folder / "model.safetensors.part", folder / "model.safetensors")
    (folder / "config.json.part").write_text(json.dumps(config, indent=2) + "\n")
    os.replace(folder / "config.json.part", folder / "config.json")


@contextmanager
def whole(folder: Path) -> Iterator[None]:
    """Settings and tensors that do not make a model together become an InputError that names their folder."""
    try:
        yield
    except (KeyError, TypeError, ValidationError, RuntimeError) as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{folder}: config.json and model.safetensors do not make a model ({why})") from None


def read_model(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and tensors that `write_model` stored. InputError when the folder does not hold a whole model."""
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: there is no model here ({name} is missing); `msm4sr evaluate RUN` makes one")
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{folder / 'config.json'}: not readable as JSON ({error})") from None
    try:
        return config, load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder / 'model.safetensors'}: not a whole safetensors file ({error})") from None
