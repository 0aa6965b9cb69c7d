"""Models in folders: `config.json` and `model.safetensors`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from msm4sr.errors import InputError
from msm4sr.files import atomic_file, write_json


def write_model(model: nn.Module, config: Mapping[str, object], folder: Path) -> None:
    """Write the weights and frozen features, and the settings; each file atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    state: dict[str, Tensor] = {}
    addresses: set[int] = set()
    for name, tensor in model.state_dict().items():
        stored = tensor.detach().cpu().contiguous()
        # safetensors refuses tensors that share memory, and two modalities may have the same features
        state[name] = stored.clone() if stored.data_ptr() in addresses else stored
        addresses.add(stored.data_ptr())
    try:
        with atomic_file(folder / "model.safetensors") as file:
            save_file(state, file)
    except SafetensorError as error:
        raise InputError(f"{folder / 'model.safetensors'}: could not be written ({error})") from None
    write_json(folder / "config.json", config)


def read_model(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and tensors that `write_model` wrote. Raises InputError if the folder holds no complete model."""
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: there is no model here ({name} is missing); `msm4sr evaluate RUN` makes one")
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{folder / 'config.json'}: not readable as JSON ({error})") from None
    try:
        # copied: safetensors maps tensors with another alignment than torch, and products differ in the last bit
        return config, {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder / 'model.safetensors'}: not a complete safetensors file ({error})") from None
