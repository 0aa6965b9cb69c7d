"""Checkpoints: one safetensors file each, written whole or not at all, with what it is of as JSON in its header."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from msm4sr.errors import InputError


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the trainable weights (the frozen features left out), on the CPU."""
    return {name: weight.detach().cpu().clone() for name, weight in model.named_parameters()}


def save_weights(weights: Mapping[str, Tensor], file: Path, about: Mapping[str, Any] | None = None) -> None:
    """Write `weights`, and `about` (as JSON, in the header), to `file`, through a temporary file beside it.

    InputError when that fails; a former `file` is then still there, and whole.
    """
    part = file.with_name(file.name + ".part")
    header = None if about is None else {"about": json.dumps(about)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: weight.contiguous() for name, weight in weights.items()}, part, header)
        with part.open("rb+") as written:
            os.fsync(written.fileno())  # else a power cut could leave the new name on an empty file
        os.replace(part, file)
    except (OSError, SafetensorError) as error:
        kept = "; the one before is whole" if file.exists() else ""
        raise InputError(f"{file}: the checkpoint could not be written ({error}){kept}") from None
    finally:  # after Ctrl-C too
        with suppress(OSError):  # a folder that cannot be written is being told
            part.unlink(missing_ok=True)


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read what `save_weights` wrote. InputError when it is not there or not whole."""
    try:
        return load_file(file)
    except FileNotFoundError:
        raise InputError(f"{file}: there is no such checkpoint") from None
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: not a whole checkpoint ({error}); run the stage again that makes it") from None


def read_about(file: Path) -> dict[str, Any]:
    """What was given as `about`; only the header is read. InputError when it is not there or not whole."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > file.stat().st_size:
                raise ValueError("it does not begin as a safetensors file does")
            header: dict[str, Any] = json.loads(opened.read(length))
        about: dict[str, Any] = json.loads(header.get("__metadata__", {}).get("about", "{}"))
        return about
    except FileNotFoundError:
        raise InputError(f"{file}: there is no such checkpoint") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not a whole checkpoint ({error}); run the stage again that makes it") from None


def set_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put `weights` into `model`. InputError when the names or shapes are another model's."""
    own = dict(model.named_parameters())
    if own.keys() != weights.keys() or any(own[name].shape != weights[name].shape for name in own):
        raise InputError("the checkpoint is of another model: its settings, its data or its features have changed")
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(weights[name])


# -- what a checkpoint is of -----------------------------------------------------------------------------------------


def digest(*parts: bytes | np.ndarray) -> str:
    """A short name for any content."""
    made = hashlib.blake2b(digest_size=12)
    for part in parts:
        content = np.frombuffer(part, np.uint8) if isinstance(part, bytes) else np.ascontiguousarray(part).reshape(-1)
        made.update(content.nbytes.to_bytes(8, "little"))
        made.update(content.view(np.uint8).data)
    return made.hexdigest()


def check_same(
    then: Mapping[str, Any], now: Mapping[str, Any], otherwise: str = "the checkpoint is of another training"
) -> None:
    """InputError that says what differs between what a checkpoint (or a study) is of and what is asked for (`now`).

    A setting that the checkpoint does not know has come since; where it is off, all is as it was.
    """
    now = json.loads(json.dumps(now))  # as it was stored: no tuples
    differing = [
        f"{name} ({then.get(name, 'not known')} there, {value} now)"
        for name, value in now.items()
        if (then[name] != value if name in then else bool(value))
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise InputError(f"{otherwise}: {', '.join(differing[:3])}{more}")
