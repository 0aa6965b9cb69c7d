"""Precomputed embeddings in place of an encoder, for a modality of any name."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import numpy as np
import polars as pl

from msm4sr.errors import InputError
from msm4sr.features.chunks import digest
from msm4sr.features.extractors.base import EXTRACTORS, Extraction, Extractor
from msm4sr.features.precomputed import file_hash, read_embeddings
from msm4sr.features.settings import store_names
from msm4sr.features.store import (
    MISSING,
    Features,
    StoreTables,
    cut_short,
    find_current,
    load_features,
    locked,
    read_manifest,
    recover,
    write_store,
)
from msm4sr.features.store_builder import Shard
from msm4sr.ragged import Ragged

logger = logging.getLogger(__name__)

BLOCK = 8192  # items that are written at a time
REASON = "no embedding in the file"


@EXTRACTORS.register("precomputed")
class PrecomputedExtractor(Extractor):
    """Reads the embeddings of a file once and keeps them in a store, in the order of the items."""

    def __init__(self, job: Extraction, modality: str) -> None:
        super().__init__(job, modality)
        self.file = job.precomputed[modality]
        self.item_ids = job.dataset.item_ids
        self.folder = job.out / store_names(job.settings, [modality])[modality]

    def extract_shard(self, shard: Shard) -> None:
        """Nothing is encoded."""

    def extract(self, merge: bool = False) -> Features:
        """See `Extractor.extract`; lines of items that are not in the data are counted in the log.

        Raises:
            InputError: whatever `read_embeddings` refuses, or no line fits any item.
        """
        encoder = {"name": self.file.name, "fingerprint": file_hash(self.file)}
        manifest = {"modality": self.modality, "kind": "precomputed", "encoder": encoder, "settings": {}}
        record = {**manifest, "content": digest(list(self.item_ids), encoder["fingerprint"])}
        found = find_current(self.folder, record)
        if found is not None and not cut_short(self.folder):
            return found
        ids, embeddings = read_embeddings(self.file)
        lines = self._lines(ids)
        with locked(self.folder):
            recover(self.folder)
            found = find_current(self.folder, record)  # another process may have made it meanwhile
            if found is not None:
                return found
            self._log_change(record)
            unknown = len(ids) - int((lines >= 0).sum())
            if unknown:
                found_in = f"{unknown:,} of {len(ids):,} lines of {self.file}"
                logger.info("%s: %s name no item of the data and are ignored", self.modality, found_in)
            self._write(record, lines, embeddings)
        logger.info("%s read from %s, kept in %s", self.folder.name, self.file, self.folder)
        return load_features(self.folder)

    def _lines(self, ids: list[str]) -> np.ndarray:
        """int64 [items], the line of each item, -1 if the file has none."""
        place = {item_id: line for line, item_id in enumerate(ids)}
        lines = np.array([place.get(item_id, -1) for item_id in self.item_ids], np.int64)
        if not (lines >= 0).any():
            raise InputError(
                f"{self.file}: none of its {len(ids):,} item_ids is in the data: they look like {ids[0]!r}, "
                f"those of the data like {self.item_ids[0]!r}"
            )
        return lines

    def _write(self, record: dict[str, Any], lines: np.ndarray, embeddings: Ragged) -> None:
        # Line -1 of an item without one becomes the empty row at the end.
        rows = Ragged(embeddings.values, np.append(embeddings.offsets, embeddings.offsets[-1]))
        counts = rows.lengths[lines]
        lacking = np.flatnonzero(counts == 0).tolist()
        missing = [(item, self.item_ids[item], None, REASON) for item in lacking]
        contents = [digest(hashlib.blake2b(rows[line % len(rows)].tobytes()).hexdigest()) for line in lines.tolist()]
        tables = StoreTables(self.item_ids, contents, counts, pl.DataFrame(missing, schema=MISSING, orient="row"))
        blocks = (rows.take(lines[start : start + BLOCK]).values for start in range(0, len(lines), BLOCK))
        write_store(self.folder, record, tables, blocks, rows.values.shape[1])

    def _log_change(self, record: dict[str, Any]) -> None:
        try:
            manifest = read_manifest(self.folder)
        except InputError as error:
            logger.info("%s; reading the file again", error)
            return
        if manifest is not None:
            what = "the file" if manifest.get("encoder") != record["encoder"] else "the items"
            logger.info("%s: %s changed since these embeddings were read; reading again", self.folder, what)
