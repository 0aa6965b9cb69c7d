"""Extracted features on disk: vectors, which rows belong to which item, and how they were made.

A folder holds one modality from one encoder:

    vectors.safetensors   vectors float32 [rows, dim], offsets int64 [n + 1]: item i has rows offsets[i]:offsets[i + 1]
    items.parquet         item_id, content (a hash of what the item was made from), in row order
    missing.parquet       item (row number), item_id, image (null where the item has nothing at all), reason
    rows.parquet          images only, a line per vector: image (its path); for keywords words and scores, best first
    manifest.json         what made it: modality, kind, encoder, settings, vocabulary; counts; checksums of the files

A store is written to a folder beside it, which then replaces it, so that it is always complete. `locked` keeps two
processes from writing it at once.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from filelock import FileLock

from msm4sr.data.schema import writing
from msm4sr.digests import file_digest
from msm4sr.errors import InputError
from msm4sr.files import atomic_file, make_folder, remove, sync, write_json
from msm4sr.locks import try_lock
from msm4sr.ragged import Ragged

logger = logging.getLogger(__name__)

FORMAT = 4

MISSING = {"item": pl.Int64, "item_id": pl.String, "image": pl.String, "reason": pl.String}
"""The columns of missing.parquet."""


@dataclass(frozen=True, eq=False)
class Features(Ragged):
    """The vectors of one modality for n items, float32 [rows, dim]; an item without rows lacks the modality."""

    item_ids: Sequence[str]

    def __post_init__(self) -> None:
        n, rows = len(self.item_ids), len(self.values)
        if len(self.offsets) != n + 1:
            raise ValueError(f"{n} items need {n + 1} offsets, not {len(self.offsets)}")
        if self.offsets[0] != 0 or self.offsets[-1] != rows or np.any(np.diff(self.offsets) < 0):
            raise ValueError(f"offsets must ascend from 0 to the {rows} rows")

    @property
    def n_rows(self) -> int:
        """Number of vectors of all items."""
        return len(self.values)

    @property
    def dim(self) -> int:
        """Dimension of a vector."""
        return int(self.values.shape[1])

    def of(self, item_ids: Sequence[str]) -> Features:
        """The features of some of the items, in the order given."""
        place = {name: item for item, name in enumerate(self.item_ids)}
        rows = self.take(np.array([place[name] for name in item_ids], dtype=np.int64))
        return Features(rows.values, rows.offsets, list(item_ids))


def load_features(folder: Path) -> Features:
    """Read a store; the vectors stay on disk until they are used. Raises InputError for none, or a damaged one."""
    with readable(folder):
        manifest = _existing_manifest(folder)  # one for both files: the store may be replaced meanwhile
        _check(folder, "vectors.safetensors", manifest)
        arrays = mapped_arrays(folder / "vectors.safetensors")
        items = _read(folder, "items.parquet", manifest)
        return Features(arrays["vectors"], arrays["offsets"], items["item_id"].to_list())


def read_contents(folder: Path) -> list[str]:
    """The hash of each item's content, in row order."""
    with readable(folder):
        return _read(folder, "items.parquet")["content"].to_list()


def read_missing(folder: Path) -> pl.DataFrame:
    """Items and images without a vector, and why: columns item, item_id, image, reason."""
    with readable(folder):
        return _read(folder, "missing.parquet").select(*MISSING)


def read_rows(folder: Path) -> pl.DataFrame | None:
    """A line per vector: image, and for keywords words and scores. None for a modality whose rows are not images."""
    with readable(folder):
        return _read(folder, "rows.parquet") if (folder / "rows.parquet").exists() else None


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest, or None if there is none. Raises InputError for another format or damaged JSON."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); delete {folder} and extract again") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise InputError(f"{path}: format {found}, but this version reads {FORMAT}; delete {folder} and extract again")
    return dict(manifest)


def is_current(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether there is a store whose manifest has all entries of `record`."""
    with suppress(InputError):
        manifest = read_manifest(folder)
        return manifest is not None and all(manifest.get(key) == value for key, value in record.items())
    return False


def find_current(folder: Path, record: Mapping[str, Any]) -> Features | None:
    """The features of a store that `is_current` and not damaged."""
    with suppress(InputError):
        return load_features(folder) if is_current(folder, record) else None
    return None


def find_stores(folder: Path) -> list[Path]:
    """The stores under a features folder, sorted by name."""
    return sorted(path.parent for path in folder.glob("*/manifest.json"))


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Raise errors of using the content of a store as InputError."""
    try:
        yield
    except (OSError, ValueError, TypeError, AttributeError, LookupError, pl.exceptions.PolarsError) as error:
        why = f"{type(error).__name__}: {error}"
        raise InputError(f"{folder}: damaged features ({why}); delete the folder and extract again") from error


def _read(folder: Path, name: str, manifest: Mapping[str, Any] | None = None) -> pl.DataFrame:
    _check(folder, name, _existing_manifest(folder) if manifest is None else manifest)
    # Not memory-mapped: the file may be replaced while the frame lives.
    return pl.read_parquet((folder / name).read_bytes())


def _existing_manifest(folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder}: no extracted features here (manifest.json is missing)")
    return manifest


def _check(folder: Path, name: str, manifest: Mapping[str, Any]) -> None:
    """Raise ValueError if a file does not match its checksum in the manifest."""
    if file_digest(folder / name) != manifest["checksums"][name]:
        raise ValueError(f"{name} does not match its checksum")


@dataclass(frozen=True, eq=False)
class StoreTables:
    """What a store says of its items."""

    item_ids: Sequence[str]
    contents: Sequence[str]  # the hash of the content of each item
    counts: np.ndarray  # int64 [n], the rows of each item
    missing: pl.DataFrame  # what could not be encoded: columns `MISSING`
    rows: pl.DataFrame | None = None  # a line per row, if rows are images


def write_store(
    folder: Path, manifest: Mapping[str, Any], tables: StoreTables, blocks: Iterable[np.ndarray], dim: int = 0
) -> None:
    """Write a store to `folder`, replacing the one there; the counts are added to the manifest. Call it under `locked`.

    `blocks` are the vectors in order, float32 [any number, dim] each, written one at a time.
    """
    make_folder(folder.parent)
    new, old = _beside(folder)
    discard(new)
    new.mkdir()
    try:
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(tables.counts, dtype=np.int64)])
        _stream_tensors(new / "vectors.safetensors", offsets, dim, blocks)
        columns = {"item_id": tables.item_ids, "content": tables.contents}
        _write_table(pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String)), new / "items.parquet")
        _write_table(tables.missing, new / "missing.parquet")
        if tables.rows is not None:
            _write_table(tables.rows, new / "rows.parquet")
        checksums = {file.name: file_digest(file) for file in sorted(new.iterdir())}
        record = {
            **manifest,
            "format": FORMAT,
            "checksums": checksums,
            "items": len(tables.item_ids),
            "items_with_rows": int(np.count_nonzero(tables.counts)),
            "rows": int(offsets[-1]),
            "dim": dim,
            "missing": _by_reason(tables.missing.filter(pl.col("image").is_null())),
            "broken": _by_reason(tables.missing.filter(pl.col("image").is_not_null())),
        }
        write_json(new / "manifest.json", record)
        discard(old)
        if os.path.lexists(folder):  # also a link to nothing
            os.replace(folder, old)
        os.replace(new, folder)  # a kill just before this line leaves the old store beside: `recover` restores it
        sync(folder.parent)  # before the old store, and the chunks that the new one is made of, are removed
        discard(old)
    finally:
        discard(new)


def recover(folder: Path) -> None:
    """Restore a store whose replacement was interrupted, and remove what that left. Call it under `locked`."""
    new, old = _beside(folder)
    if old.exists() and not folder.exists():
        os.replace(old, folder)
    for left in (new, old):
        discard(left)


def discard(path: Path) -> None:
    """Remove a folder or a link, as far as that is possible."""
    with suppress(OSError):
        remove(path)


def cut_short(folder: Path) -> bool:
    """Whether a replacement of the store was interrupted, or is in progress."""
    return any(path.exists() for path in _beside(folder))


@contextmanager
def locked_store(folder: Path) -> Iterator[None]:
    """One process at a time in this block for this store, by `.NAME.lock` beside it; the others wait."""
    file = folder.parent / f".{folder.name}.lock"
    lock = try_lock(file)
    if lock is None:
        logger.info("%s: another process is writing it; waiting", folder)
        lock = FileLock(file)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _beside(folder: Path) -> tuple[Path, Path]:
    """The folder where a new store is written, and the one where the old store is kept meanwhile."""
    return folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")


def _by_reason(missing: pl.DataFrame) -> dict[str, int]:
    return dict(Counter(missing["reason"].to_list()).most_common())


def _write_table(table: pl.DataFrame, path: Path) -> None:
    with atomic_file(path) as unfinished, writing(unfinished):
        table.write_parquet(unfinished, compression="zstd")


ALIGNED = 64  # bytes: vectors begin where memory of torch would, so that its products give the same bits
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8")}


def _stream_tensors(path: Path, offsets: np.ndarray, dim: int, blocks: Iterable[np.ndarray]) -> None:
    """`offsets` and the rows of `blocks` as one safetensors file. (The safetensors writer needs all in memory.)"""
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
                    raise ValueError(f"a block of {block.shape[1]}-d vectors among {dim}-d vectors")
                file.write(np.ascontiguousarray(block, "<f4").data)
            written += len(block)
        file.flush()
        os.fsync(file.fileno())
    if written != rows:
        raise ValueError(f"{written} rows were given, {rows} were announced")


def mapped_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, memory-mapped. (The loader of safetensors copies them.)

    The format: 8 bytes with the length of the header, the header as JSON, then the bytes of the arrays. A damaged file
    raises OSError, ValueError or KeyError.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size:
            raise ValueError(f"{path.name} is not a safetensors file")
        header = json.loads(file.read(length))
    arrays = {}
    for name, entry in header.items():
        shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
        dtype = _DTYPES[entry["dtype"]]
        if end - start != dtype.itemsize * int(np.prod(shape)) or 8 + length + end > size:
            raise ValueError(f"{path.name} is cut short")
        # An empty array has nothing to map. "c": changes stay in this process.
        mapped = start < end
        arrays[name] = np.memmap(path, dtype, "c", 8 + length + start, shape) if mapped else np.zeros(shape, dtype)
    return arrays
