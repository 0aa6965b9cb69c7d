"""Tensors in a safetensors file, written atomically; its header has a description, and a checksum of each."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from msm4sr.digests import array_digest, chunked_digest, json_digest
from msm4sr.errors import InputError
from msm4sr.files import atomic_file

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
CHUNK = 1 << 24  # bytes that are read at a time
NO_CHECKSUM = "0" * 32  # as long as the one that replaces it
REMEDY = "rerun the command that writes it"


class Blocks(ABC):
    """A tensor that is written in blocks of rows, so that it need not be in memory."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The type of its elements."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Its complete shape."""

    @abstractmethod
    def blocks(self) -> Iterator[Tensor]:
        """All rows in their order."""


def save_tensors(tensors: Mapping[str, Tensor | Blocks], file: Path, about: Mapping[str, Any] = {}) -> None:
    """Write `tensors`, and `about` as JSON in the header, to `file`. It takes the memory of the largest block.

    Raises:
        InputError: the file cannot be written; an earlier `file` is kept.
    """
    text = json.dumps(about)
    metadata = {"about": text, "about_checksum": json_digest(text), "checksum": NO_CHECKSUM}
    try:
        with atomic_file(file) as unfinished, unfinished.open("w+b") as opened:
            start = opened.write(_header(tensors, metadata))
            starts = {name: start + place for name, (place, _) in _places(tensors).items()}
            for name in starts:
                value = tensors[name]
                for block in [value] if isinstance(value, Tensor) else value.blocks():
                    opened.write(_bytes(block.detach().cpu().contiguous().reshape(-1)).data)
            metadata["checksum"] = _checksum(tensors, lambda name, size: _read(opened, starts[name], size))
            opened.seek(0)
            opened.write(_header(tensors, metadata))
    except (OSError, SafetensorError) as error:
        kept = "; the earlier one is kept" if file.exists() else ""
        raise InputError(f"{file}: could not be written ({error}){kept}") from None


def in_file_order(tensors: Mapping[str, Tensor | Blocks]) -> list[str]:
    """Names in the order of `save_tensors`, in which every tensor is aligned to its type."""
    return sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))


def _places(tensors: Mapping[str, Tensor | Blocks]) -> dict[str, tuple[int, int]]:
    """The first byte and the end of each tensor behind the header, in the order of the file."""
    names = in_file_order(tensors)
    ends = list(accumulate(_size(tensors[name]) for name in names))
    return dict(zip(names, zip([0, *ends], ends, strict=False), strict=True))


def _header(tensors: Mapping[str, Tensor | Blocks], metadata: Mapping[str, str]) -> bytes:
    """The start of a safetensors file, up to the first tensor."""
    header: dict[str, Any] = {"__metadata__": metadata}
    for name, place in _places(tensors).items():
        value = tensors[name]
        header[name] = {"dtype": DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": place}
    text = json.dumps(header).encode("ascii")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def load_tensors(file: Path, remedy: str = REMEDY) -> dict[str, Tensor]:
    """Read what `save_tensors` wrote. InputError, which ends with `remedy`, for a missing or damaged file."""
    # Cloned: safetensors maps tensors with another alignment than torch, and products differ in the last bit.
    return {name: tensor.clone() for name, tensor in mapped_tensors(file, remedy).items()}


def mapped_tensors(file: Path, remedy: str = REMEDY) -> dict[str, Tensor]:
    """`load_tensors` without a copy: what is read comes from the file. Copy what is needed, and keep nothing else."""
    with _readable(file, remedy), safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() or {}
        _about(metadata)
        mapped = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
        if metadata.get("checksum") != _checksum(mapped, lambda name, _: [_bytes(mapped[name].reshape(-1)).data]):
            raise ValueError("its content does not match its checksum")
        return mapped


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


def _checksum(
    tensors: Mapping[str, Tensor | Blocks], content: Callable[[str, int], Iterable[bytes | memoryview]]
) -> str:
    """A hash of the types, shapes and contents of tensors; `content` reads one, by its name and its number of bytes."""
    names = sorted(tensors)
    layout = [f"{name} {tensors[name].dtype} {list(tensors[name].shape)}" for name in names]
    sizes = [_size(tensors[name]) for name in names]
    return json_digest(layout, chunked_digest((size, content(n, size)) for n, size in zip(names, sizes, strict=True)))


def _size(tensor: Tensor | Blocks) -> int:
    """Bytes."""
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def _read(opened: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    """Bytes of a file, a chunk at a time."""
    opened.seek(start)
    for done in range(0, size, CHUNK):
        yield opened.read(min(CHUNK, size - done))


@contextmanager
def _readable(file: Path, remedy: str) -> Iterator[None]:
    """Raise errors of reading a file as InputError."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; {remedy}") from None
    except (OSError, ValueError, TypeError, AttributeError, SafetensorError, RuntimeError) as error:
        raise InputError(f"{file}: damaged ({error}); {remedy}") from None
