"""Precomputed embeddings in place of an encoder, for a modality of any name.

They come from a Parquet file with the columns `item_id` and `vector`: a list of numbers, or a list of such lists for an
item with several rows. A null vector, or no row at all, means that the item lacks the modality.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from msm4sr.data.schema import scan_parquet
from msm4sr.digests import array_digest, file_digest, json_digest
from msm4sr.errors import InputError
from msm4sr.features.extract import EXTRACTORS, Extraction, Extractor
from msm4sr.features.settings import store_names
from msm4sr.features.store import Features, find_current
from msm4sr.features.store_builder import Chunk, Missing, Shard
from msm4sr.progress import Advance
from msm4sr.ragged import Ragged

logger = logging.getLogger(__name__)

NO_EMBEDDING = "no embedding in the file"


@EXTRACTORS.register("precomputed")
class PrecomputedExtractor(Extractor):
    """Keeps the embeddings of a file in a store, in the order of the items; the file is read when it has changed."""

    title = "reading embeddings"

    def __init__(self, job: Extraction, modality: str) -> None:
        super().__init__(job, modality)
        self.file = job.precomputed[modality]
        self.folder = job.out / store_names(job.settings, [modality])[modality]
        encoder = {"name": self.file.name, "fingerprint": file_digest(self.file)}
        self.manifest = {"modality": modality, "kind": "precomputed", "encoder": encoder, "settings": {}}
        self.extra = {"made_of": json_digest(list(self.item_ids), encoder["fingerprint"])}
        self._rows: Ragged  # of each line, and an empty row for items without a line
        self._lines: np.ndarray  # of each item

    def extract_shard(self, shard: Shard) -> None:
        """Nothing is encoded."""

    def extract(self, merge: bool = False) -> Features:
        if (stored := find_current(self.folder, {**self.manifest, **self.extra})) is not None:
            return stored
        ids, embeddings = read_embeddings(self.file)
        place = {item_id: line for line, item_id in enumerate(ids)}
        self._lines = np.array([place.get(item_id, len(ids)) for item_id in self.item_ids], np.int64)
        unknown = len(ids) - int((self._lines < len(ids)).sum())
        if unknown == len(ids):
            raise InputError(
                f"{self.file}: none of its {len(ids):,} item_ids is in the data: they look like {ids[0]!r}, "
                f"those of the data like {self.item_ids[0]!r}"
            )
        if unknown:
            found_in = f"{unknown:,} of {len(ids):,} lines of {self.file}"
            logger.info("%s: %s name no item of the data and are ignored", self.modality, found_in)
        self._rows = Ragged(embeddings.values, np.append(embeddings.offsets, embeddings.offsets[-1]))
        return super().extract()

    def content_hashes(self, items: range) -> list[str]:
        return [array_digest(self._rows[line]) for line in self._lines[items]]

    def encode(self, items: Sequence[int], advance: Advance) -> Chunk:
        rows = self._rows.take(self._lines[items])
        advance(len(items))
        missing: list[Missing] = [(place, None, NO_EMBEDDING) for place in np.flatnonzero(rows.lengths == 0).tolist()]
        return Chunk(rows.lengths, rows.values, missing=missing)


def read_embeddings(file: Path) -> tuple[list[str], Ragged]:
    """The item id of each line of a file of embeddings, and its rows: float32 [rows, dim].

    Raises:
        InputError: the file is not Parquet or lacks a column; or, with its row, an id that is null or repeated, a
            vector of another length than the first, a number that is null, NaN, infinite or too large.
    """
    ids, column = _columns(file)

    def refuse(line: int, column: str, what: str) -> InputError:
        return InputError(f"{file}: column {column!r}, row {line + 1} (item {ids[line]!r}): {what}")

    if ids.null_count():
        raise InputError(f"{file}: column 'item_id', row {int(ids.is_null().arg_max() or 0) + 1}: null")
    repeated = ~ids.is_first_distinct()
    if repeated.any():
        line = int(repeated.arg_max() or 0)
        raise refuse(line, "item_id", f"row {int((ids == ids[line]).arg_max() or 0) + 1} has the same id")

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
    return ids.to_list(), Ragged.from_lengths(numbers.astype(np.float32, copy=False), counts)


def _columns(file: Path) -> tuple[pl.Series, pl.Series]:
    try:
        table = scan_parquet(file)
        names = table.collect_schema().names()
        if lacking := [name for name in ("item_id", "vector") if name not in names]:
            raise InputError(f"{file}: no column {lacking[0]!r}; the file has: {', '.join(names)}")
        frame = table.select("item_id", "vector").collect()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from None
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{file}: not a Parquet file ({str(error).splitlines()[0]})") from None
    ids = frame["item_id"]
    if ids.dtype != pl.String and not ids.dtype.is_integer():
        raise InputError(f"{file}: column 'item_id' holds {ids.dtype}; it should hold text")
    if frame.is_empty():
        raise InputError(f"{file}: no rows; it should have one per item")
    return ids.cast(pl.String), frame["vector"]


def _as_lists(column: pl.Series) -> pl.Series:
    return column.arr.to_list() if isinstance(column.dtype, pl.Array) else column
