"""Extracted features on disk: vectors, which rows belong to which item, and a manifest of how they were made.

A folder holds `vectors.safetensors` (vectors, offsets), `manifest.json`, and `words.json` for keyword
features. It appears whole or not at all: it is written beside its place and then renamed.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from msm4sr.errors import InputError

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Features:
    """One modality's vectors for n items.

    vectors: float32 [rows, dim], memory-mapped when loaded. offsets: int64 [n + 1]; item i's rows are
    vectors[offsets[i]:offsets[i+1]], and no row means that the item lacks this modality. words: keyword
    features only; words[i][j] are the words of item i's j-th row, best first.
    """

    vectors: np.ndarray
    offsets: np.ndarray
    item_ids: list[str]
    words: list[list[list[str]]] | None = None

    def __post_init__(self) -> None:
        n, rows = len(self.item_ids), len(self.vectors)
        if len(self.offsets) != n + 1:
            raise ValueError(f"{n} items need {n + 1} offsets, not {len(self.offsets)}")
        if self.offsets[0] != 0 or self.offsets[-1] != rows or np.any(np.diff(self.offsets) < 0):
            raise ValueError(f"offsets must rise from 0 to the {rows} rows")

    @property
    def n_rows(self) -> int:
        return len(self.vectors)

    @property
    def n_items_with_rows(self) -> int:
        return int(np.count_nonzero(np.diff(self.offsets)))


def save_features(features: Features, folder: Path, manifest: Mapping[str, Any] | None = None) -> None:
    """Write `features` to `folder`, replacing what is there; `manifest` adds to what is always recorded."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        tensors: dict[str, np.ndarray] = {
            "vectors": np.ascontiguousarray(features.vectors, dtype=np.float32),
            "offsets": np.ascontiguousarray(features.offsets, dtype=np.int64),
        }
        save_file(tensors, temporary / "vectors.safetensors")
        if features.words is not None:
            _write_json(temporary / "words.json", features.words)
        record = {
            **(manifest or {}),
            "format": FORMAT,
            "dim": int(features.vectors.shape[1]),
            "rows": features.n_rows,
            "items": len(features.item_ids),
            "items_with_rows": features.n_items_with_rows,
            "item_ids": features.item_ids,
        }
        _write_json(temporary / "manifest.json", record)
        temporary.chmod(0o755)  # mkdtemp's folder is for its owner alone
        _replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_features(folder: Path) -> Features:
    """Read what `save_features` wrote; the vectors stay on disk until they are touched.

    Raises `InputError` when the folder holds no features or damaged ones.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder}: no extracted features here (manifest.json is missing)")
    try:
        arrays = _map_safetensors(folder / "vectors.safetensors")
        words = None
        if (folder / "words.json").exists():
            words = json.loads((folder / "words.json").read_text(encoding="utf-8"))
        return Features(arrays["vectors"], arrays["offsets"], manifest["item_ids"], words)
    except (OSError, ValueError, KeyError, IndexError) as error:
        why = f"{type(error).__name__}: {error}"
        raise InputError(f"{folder}: damaged features ({why}); delete the folder and extract again") from error


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest, or None where there is none. Raises `InputError` for another format or damaged JSON."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); delete {folder} and extract again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{path}: not of format {FORMAT}; delete {folder} and extract again")
    return manifest


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _replace_folder(new: Path, place: Path) -> None:
    """Rename `new` to `place`. A crash in between leaves no folder rather than half of one."""
    if place.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{place.name}-old-", dir=place.parent))
        os.replace(place, old)  # a rename onto an empty folder is allowed
        os.replace(new, place)
        shutil.rmtree(old)
    else:
        os.replace(new, place)


_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8")}


def _map_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The file's arrays, memory-mapped. (safetensors' own numpy loader reads everything into memory.)

    The format: 8 bytes length of the header, the header as JSON, then the bytes of the arrays.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size:
            raise ValueError(f"{path.name} is not a safetensors file")
        header = json.loads(file.read(length))
    arrays = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
        dtype = _DTYPES[entry["dtype"]]
        if end - start != dtype.itemsize * int(np.prod(shape)) or 8 + length + end > size:
            raise ValueError(f"{path.name} is cut short")
        if start == end:  # nothing to map
            arrays[name] = np.zeros(shape, dtype)
        else:
            arrays[name] = np.memmap(path, dtype, "r", 8 + length + start, shape)
    return arrays
