"""Vectors that were made elsewhere, in place of an encoder, for a modality of any name.

A Parquet file with the columns `item_id` and `vector`: a list of numbers, or a list of such lists where an item has
several rows. A null vector, or no line at all, means that the item lacks the modality. The file is read into memory
once; its vectors are then kept in a store like those of any encoder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from msm4sr.errors import InputError
from msm4sr.features.chunks import current, digest
from msm4sr.features.progress import say
from msm4sr.features.store import (
    MISSING,
    Features,
    cut_short,
    load_features,
    locked,
    read_manifest,
    recover,
    write_store,
)

if TYPE_CHECKING:
    from rich.progress import Progress

BLOCK = 8192  # items written at a time
REASON = "no vector in the file"


def precomputed_folder(out: Path, modality: str) -> Path:
    """Where a modality's own vectors are kept under a features folder."""
    return out / f"{modality}-own"


def file_hash(file: Path) -> str:
    """sha256 of a file's bytes. Raises `InputError` when it cannot be read."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); it should hold vectors, in Parquet") from None


def precomputed_features(
    item_ids: Sequence[str], modality: str, file: Path, folder: Path, progress: Progress | None = None
) -> Features:
    """The vectors of `file` for these items, in their order, kept in `folder`.

    Lines with an id that is not among the items are counted and told. Raises `InputError`, which names file and row,
    for whatever `read_embeddings` refuses, and when no line fits any item.
    """
    encoder = {"name": file.name, "fingerprint": file_hash(file)}
    about = {"modality": modality, "kind": "own vectors", "encoder": encoder, "settings": {}}
    record: dict[str, Any] = {**about, "content": digest(list(item_ids), encoder["fingerprint"])}
    found = current(folder, record)
    if found is not None and not cut_short(folder):
        return found
    ids, counts, vectors = read_embeddings(file)
    place = {item_id: line for line, item_id in enumerate(ids)}
    lines = np.array([place.get(item_id, -1) for item_id in item_ids], np.int64)  # [items]
    known = lines >= 0
    if not known.any():
        raise InputError(
            f"{file}: none of its {len(ids):,} item_ids is in the data: they look like {ids[0]!r}, "
            f"the data's like {item_ids[0]!r}"
        )
    with locked(folder, lambda: say(progress, f"{folder}: another process is at it; waiting")):
        recover(folder)
        found = current(folder, record)  # made by the other process
        if found is not None:
            return found
        _tell_change(folder, record, progress)
        unknown = len(ids) - int(known.sum())
        if unknown:
            say(progress, f"{modality}: {unknown:,} of {len(ids):,} lines of {file} name no item of the data; left out")
        here = np.where(known, counts[lines], 0)
        first = np.where(known, (np.cumsum(counts) - counts)[lines], 0)
        lacking = np.flatnonzero(here == 0)
        missing = pl.DataFrame(
            {
                "item": lacking,
                "item_id": [item_ids[item] for item in lacking.tolist()],
                "image": [None] * len(lacking),
                "reason": [REASON] * len(lacking),
            },
            schema=MISSING,
        )
        contents = [
            digest(hashlib.blake2b(vectors[start : start + n].tobytes()).hexdigest())
            for start, n in zip(first.tolist(), here.tolist(), strict=True)
        ]
        blocks = _blocks(vectors, first, here)
        write_store(folder, record, item_ids, contents, here, blocks, missing, dim=vectors.shape[1])
    say(progress, f"{folder.name} read from {file}, kept in {folder}")
    return load_features(folder)


def _blocks(vectors: np.ndarray, first: np.ndarray, counts: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(counts), BLOCK):
        begin, n = first[start : start + BLOCK], counts[start : start + BLOCK]
        within = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
        yield vectors[np.repeat(begin, n) + within]


def _tell_change(folder: Path, record: dict[str, Any], progress: Progress | None) -> None:
    try:
        manifest = read_manifest(folder)
    except InputError as error:
        say(progress, f"{error}; reading the vectors again")
        return
    if manifest is not None:
        what = "the file" if manifest.get("encoder") != record["encoder"] else "the items"
        say(progress, f"{folder}: {what} changed since these vectors were read; reading again")


def read_embeddings(file: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(item ids [lines], rows of each line int64 [lines], float32 [rows, dim]).

    Raises `InputError` for a file that is not Parquet or lacks a column, and, with the row, for an id that is null
    or repeated, a vector of another length than the first, numbers that are null, NaN, infinite or too large.
    """
    ids, column = _columns(file)

    def refuse(line: int, column: str, what: str) -> InputError:
        return InputError(f"{file}: column {column!r}, row {line + 1} (item {ids[line]!r}): {what}")

    if ids.null_count():
        raise InputError(f"{file}: column 'item_id', row {int(ids.is_null().arg_max() or 0) + 1}: null")
    repeated = ~ids.is_first_distinct()
    if repeated.any():
        line = int(repeated.arg_max() or 0)
        raise refuse(line, "item_id", f"stands in row {int((ids == ids[line]).arg_max() or 0) + 1} already")

    column = _as_lists(column)
    if isinstance(column.dtype, pl.List) and isinstance(column.dtype.inner, pl.List | pl.Array):
        counts = column.list.len().fill_null(0).to_numpy().astype(np.int64)
        rows = _as_lists(column.filter(counts > 0).explode())
    else:
        counts = column.is_not_null().to_numpy().astype(np.int64)
        rows = column.drop_nulls()
    lines = np.repeat(np.arange(len(ids)), counts)  # the line of each row
    if not isinstance(rows.dtype, pl.List) or not rows.dtype.inner.is_numeric():
        raise InputError(
            f"{file}: column 'vector' holds {column.dtype}; it should hold a list of numbers, or a list of such lists"
        )
    if rows.null_count():
        raise refuse(int(lines[rows.is_null().arg_max() or 0]), "vector", "one of its vectors is null")
    lengths = rows.list.len().to_numpy()
    dim = int(lengths[0]) if len(lengths) else 0
    wrong = np.flatnonzero((lengths != dim) | (lengths == 0))
    if len(wrong):
        row = int(wrong[0])
        expected = f"that of row {int(lines[0]) + 1} is {dim}" if dim else "a vector has at least one number"
        raise refuse(int(lines[row]), "vector", f"its length is {int(lengths[row])}, but {expected}")
    flat = rows.explode().cast(pl.Float32, strict=False).fill_null(np.nan).to_numpy()
    numbers = flat.reshape(len(rows), dim)
    bad = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
    if len(bad):
        raise refuse(int(lines[bad[0]]), "vector", "a number is null, NaN, infinite, or too large for float32")
    return ids.to_list(), counts, numbers.astype(np.float32, copy=False)


def _columns(file: Path) -> tuple[pl.Series, pl.Series]:
    try:
        names = list(pl.read_parquet_schema(file))
        lacking = [name for name in ("item_id", "vector") if name not in names]
        if lacking:
            raise InputError(f"{file}: no column {lacking[0]!r}; the file has: {', '.join(names)}")
        frame = pl.read_parquet(file, columns=["item_id", "vector"])
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from None
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{file}: not a Parquet file ({str(error).splitlines()[0]})") from None
    ids = frame["item_id"]
    if ids.dtype != pl.String and not ids.dtype.is_integer():
        raise InputError(f"{file}: column 'item_id' holds {ids.dtype}; it should hold text")
    if frame.is_empty():
        raise InputError(f"{file}: no rows; it should have one an item")
    return ids.cast(pl.String), frame["vector"]


def _as_lists(column: pl.Series) -> pl.Series:
    return column.arr.to_list() if isinstance(column.dtype, pl.Array) else column
