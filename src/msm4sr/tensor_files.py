"""Tensors in a safetensors file, written atomically; its header has a description, and a checksum of each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from msm4sr.digests import array_digest, json_digest
from msm4sr.errors import InputError
from msm4sr.files import atomic_file

REMEDY = "rerun the command that writes it"


def save_tensors(tensors: Mapping[str, Tensor], file: Path, about: Mapping[str, Any] = {}) -> None:
    """Write `tensors`, and `about` as JSON in the header, to `file`.

    Raises:
        InputError: the file cannot be written; an earlier `file` is kept.
    """
    # Cloned: safetensors refuses tensors that share memory, such as two modalities with the same features.
    shared: set[int] = set()
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        stored[name] = plain.clone() if plain.data_ptr() in shared else plain
        shared.add(plain.data_ptr())
    text = json.dumps(about)
    try:
        with atomic_file(file) as unfinished:
            checksums = {"about_checksum": json_digest(text), "checksum": _checksum(stored)}
            save_file(stored, unfinished, {"about": text, **checksums})
    except (OSError, SafetensorError) as error:
        kept = "; the earlier one is kept" if file.exists() else ""
        raise InputError(f"{file}: could not be written ({error}){kept}") from None


def load_tensors(file: Path, remedy: str = REMEDY) -> dict[str, Tensor]:
    """Read what `save_tensors` wrote. InputError, which ends with `remedy`, for a missing or damaged file."""
    with _readable(file, remedy), safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() or {}
        _about(metadata)
        # Cloned: safetensors maps tensors with another alignment than torch, and products differ in the last bit.
        tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 (not a mapping)
        if metadata.get("checksum") != _checksum(tensors):
            raise ValueError("its content does not match its checksum")
        return tensors


def read_about(file: Path, remedy: str = REMEDY) -> dict[str, Any]:
    """The description that `save_tensors` wrote; reads only the header. InputError as in `load_tensors`."""
    with _readable(file, remedy):
        about: dict[str, Any] = json.loads(_about(_metadata(file)))
        return about


def read_checksum(file: Path, remedy: str = REMEDY) -> str:
    """The checksum that `save_tensors` wrote; reads only the header. InputError as in `load_tensors`."""
    with _readable(file, remedy):
        return _metadata(file).get("checksum", "")


def _metadata(file: Path) -> dict[str, str]:
    """Read by hand: `safe_open` opens the file twice, and it may be replaced meanwhile."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError("it is not a safetensors file")
        return dict(json.loads(opened.read(length)).get("__metadata__", {}))


def _about(metadata: Mapping[str, str]) -> str:
    """The description, verified."""
    text = metadata.get("about", "")
    if metadata.get("about_checksum") != json_digest(text):
        raise ValueError("its description does not match its checksum")
    return text


def tensor_digest(*tensors: Tensor) -> str:
    """A hash of the bytes of tensors of any type, on any device."""
    return array_digest(*(_bytes(tensor.detach().cpu().contiguous().reshape(-1)) for tensor in tensors))


def _bytes(flat: Tensor) -> np.ndarray:
    plain = flat if flat.numel() > 1 else torch.empty_strided(flat.shape, (1,), dtype=flat.dtype).copy_(flat)
    return plain.view(torch.uint8).numpy()  # a single element may have a stride that cannot be viewed


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    names = sorted(tensors)
    layout = [f"{name} {tensors[name].dtype} {list(tensors[name].shape)}" for name in names]
    return json_digest(layout, tensor_digest(*(tensors[name] for name in names)))


@contextmanager
def _readable(file: Path, remedy: str) -> Iterator[None]:
    """Raise errors of reading a file as InputError."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; {remedy}") from None
    except (OSError, ValueError, TypeError, AttributeError, SafetensorError, RuntimeError) as error:
        raise InputError(f"{file}: damaged ({error}); {remedy}") from None
