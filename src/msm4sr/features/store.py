"""Extracted features on disk: vectors, which rows belong to which item, and how they were made.

A folder holds one modality from one encoder:

    vectors.safetensors   vectors float32 [rows, dim], offsets int64 [n + 1]: item i has rows offsets[i]:offsets[i + 1]
    items.parquet         item_id, content (a hash of what the item was made from), in row order
    missing.parquet       item (row number), item_id, image (null where the item has nothing at all), reason
    rows.parquet          pictures only, a line a vector: image (its path); for keywords words and scores, best first
    manifest.json         what made it: modality, kind, encoder, settings, vocabulary; and counts

It appears whole or not at all: it is written beside its place and then put there. `locked` keeps two processes from
doing so at once.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from filelock import FileLock, Timeout

from msm4sr.errors import InputError

FORMAT = 2

MISSING = {"item": pl.Int64, "item_id": pl.String, "image": pl.String, "reason": pl.String}
"""The columns of missing.parquet."""


@dataclass(frozen=True, eq=False)
class Features:
    """One modality's vectors for n items.

    vectors: float32 [rows, dim], memory-mapped when loaded. offsets: int64 [n + 1]; item i's rows are
    vectors[offsets[i]:offsets[i+1]], and no row means that the item lacks this modality.
    """

    vectors: np.ndarray
    offsets: np.ndarray
    item_ids: Sequence[str]

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

    def of(self, item_ids: Sequence[str]) -> Features:
        """Those of some of the items, in another order if so given."""
        place = {name: item for item, name in enumerate(self.item_ids)}
        items = np.array([place[name] for name in item_ids], dtype=np.int64)
        counts = np.diff(self.offsets)[items]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        return Features(self.vectors[np.repeat(self.offsets[items], counts) + within], offsets, list(item_ids))


# --- reading


def load_features(folder: Path) -> Features:
    """Read what `write_store` wrote; the vectors stay on disk until they are touched.

    Raises `InputError` when the folder holds no features or damaged ones.
    """
    if read_manifest(folder) is None:
        raise InputError(f"{folder}: no extracted features here (manifest.json is missing)")
    with _damage(folder):
        arrays, _ = map_tensors(folder / "vectors.safetensors")
        return Features(arrays["vectors"], arrays["offsets"], _read(folder / "items.parquet")["item_id"].to_list())


def read_contents(folder: Path) -> list[str]:
    """The hash of each item's content, in row order."""
    with _damage(folder):
        return _read(folder / "items.parquet")["content"].to_list()


def read_missing(folder: Path) -> pl.DataFrame:
    """What could not be used, and why: columns item, item_id, image, reason."""
    with _damage(folder):
        return _read(folder / "missing.parquet").select(*MISSING)


def read_rows(folder: Path) -> pl.DataFrame | None:
    """A line a vector: image, and for keywords words and scores. None for a modality whose rows are not pictures."""
    with _damage(folder):
        return _read(folder / "rows.parquet") if (folder / "rows.parquet").exists() else None


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest, or None where there is none. Raises `InputError` for another format or damaged JSON."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); delete {folder} and extract again") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise InputError(f"{path}: of format {found}, not {FORMAT}; delete {folder} and extract again")
    return dict(manifest)


def find_stores(folder: Path) -> list[Path]:
    """The stores under a features folder, in the order of their names."""
    return sorted(path.parent for path in folder.glob("*/manifest.json"))


@contextmanager
def _damage(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, IndexError, pl.exceptions.PolarsError) as error:
        why = f"{type(error).__name__}: {error}"
        raise InputError(f"{folder}: damaged features ({why}); delete the folder and extract again") from error


def _read(path: Path) -> pl.DataFrame:
    # Not memory-mapped: the file may be replaced while the frame lives.
    return pl.read_parquet(path.read_bytes())


# --- writing


def write_store(
    folder: Path,
    manifest: Mapping[str, Any],
    item_ids: Sequence[str],
    contents: Sequence[str],
    counts: np.ndarray,
    blocks: Iterable[np.ndarray],
    missing: pl.DataFrame,
    rows: pl.DataFrame | None = None,
    dim: int = 0,
) -> None:
    """Write a store to `folder`, replacing what is there. Call it under `locked`.

    Item i has `counts[i]` of the rows that `blocks` (float32 [any number, dim]) bring in order; a block is written
    before the next is asked for. `manifest` adds to the counts that are always recorded.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    new, old = _beside(folder)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
        _stream_tensors(new / "vectors.safetensors", offsets, dim, blocks)
        columns = {"item_id": item_ids, "content": contents}
        _write_table(pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String)), new / "items.parquet")
        _write_table(missing, new / "missing.parquet")
        if rows is not None:
            _write_table(rows, new / "rows.parquet")
        record = {
            **manifest,
            "format": FORMAT,
            "items": len(item_ids),
            "items_with_rows": int(np.count_nonzero(counts)),
            "rows": int(offsets[-1]),
            "dim": dim,
            "missing": _by_reason(missing.filter(pl.col("image").is_null())),
            "broken": _by_reason(missing.filter(pl.col("image").is_not_null())),
        }
        _write_json(new / "manifest.json", record)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)  # a kill just before this line leaves the old store beside: `recover` puts it back
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def recover(folder: Path) -> None:
    """Put back a store whose replacement was cut short, and remove what it left. Call it under `locked`."""
    new, old = _beside(folder)
    if old.exists() and not folder.exists():
        os.replace(old, folder)
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)


def cut_short(folder: Path) -> bool:
    """Whether a replacement of the store was cut short (or goes on just now)."""
    return any(path.exists() for path in _beside(folder))


@contextmanager
def locked(folder: Path, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """One process at a time in this block for this store; `waiting` is called if another is there.

    The lock is the operating system's, on `.NAME.lock` beside the store: it ends with the process that holds it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _beside(folder: Path) -> tuple[Path, Path]:
    """Where the store is built, and where the one that it replaces is kept meanwhile."""
    return folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")


def _by_reason(missing: pl.DataFrame) -> dict[str, int]:
    return dict(Counter(missing["reason"].to_list()).most_common())


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _write_table(table: pl.DataFrame, path: Path) -> None:
    table.write_parquet(path, compression="zstd")


# --- safetensors, a block at a time

ALIGNED = 64  # bytes: where vectors begin, as in memory that torch makes; its products then give the same bits

_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8")}


def _stream_tensors(path: Path, offsets: np.ndarray, dim: int, blocks: Iterable[np.ndarray]) -> None:
    """`offsets` and the rows of `blocks` as one safetensors file. (safetensors' own writer wants all in memory.)"""
    rows = int(offsets[-1])
    first = 8 * len(offsets)
    header = {
        "offsets": {"dtype": "I64", "shape": [len(offsets)], "data_offsets": [0, first]},
        "vectors": {"dtype": "F32", "shape": [rows, dim], "data_offsets": [first, first + 4 * rows * dim]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text) + first) % ALIGNED)
    written = 0
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(np.ascontiguousarray(offsets, "<i8").data)
        for block in blocks:
            if block.size:
                if block.shape[1] != dim:
                    raise ValueError(f"a block of width {block.shape[1]} among vectors of width {dim}")
                file.write(np.ascontiguousarray(block, "<f4").data)
            written += len(block)
        file.flush()
        os.fsync(file.fileno())
    if written != rows:
        raise ValueError(f"{written} rows came, {rows} were counted")


def map_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The file's arrays, memory-mapped, and its notes. (safetensors' own numpy loader reads everything into memory.)

    The format: 8 bytes length of the header, the header as JSON, then the bytes of the arrays. Raises OSError,
    ValueError or KeyError for a file that is damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size:
            raise ValueError(f"{path.name} is not a safetensors file")
        header = json.loads(file.read(length))
    notes: dict[str, str] = header.pop("__metadata__", {})
    arrays = {}
    for name, entry in header.items():
        shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
        dtype = _DTYPES[entry["dtype"]]
        if end - start != dtype.itemsize * int(np.prod(shape)) or 8 + length + end > size:
            raise ValueError(f"{path.name} is cut short")
        if start == end:  # nothing to map
            arrays[name] = np.zeros(shape, dtype)
        else:
            # copy on write: what is written stays in this process
            arrays[name] = np.memmap(path, dtype, "c", 8 + length + start, shape)
    return arrays, notes
