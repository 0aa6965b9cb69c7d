"""Weights on disk: safetensors, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from msm4sr.errors import InputError


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the trainable weights (the frozen features left out), on the CPU."""
    return {name: weight.detach().cpu().clone() for name, weight in model.named_parameters()}


def save_weights(weights: dict[str, Tensor], file: Path) -> None:
    """Write `weights` to `file`, through a temporary file beside it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    try:
        save_file({name: weight.contiguous() for name, weight in weights.items()}, part)
        os.replace(part, file)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise InputError(f"{file}: the checkpoint could not be written ({error}); the one before is whole") from None


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read what `save_weights` wrote. InputError when it is not there or not whole."""
    try:
        return load_file(file)
    except FileNotFoundError:
        raise InputError(f"{file}: there is no such checkpoint") from None
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: not a whole checkpoint ({error}); run the stage again that makes it") from None


def set_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put `weights` into `model`. InputError when the names or shapes are another model's."""
    own = dict(model.named_parameters())
    if own.keys() != weights.keys() or any(own[name].shape != weights[name].shape for name in own):
        raise InputError("the checkpoint is of another model: its settings, its data or its features have changed")
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(weights[name])
