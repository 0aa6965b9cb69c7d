"""Precomputed embeddings in place of an encoder, for a modality of any name."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

import numpy as np

from msm4sr.errors import InputError
from msm4sr.features.chunks import Chunk, Missing, digest
from msm4sr.features.extractors.base import EXTRACTORS, Extraction, Extractor
from msm4sr.features.precomputed import file_hash, read_embeddings
from msm4sr.features.settings import store_names
from msm4sr.features.store import Features, find_current
from msm4sr.features.store_builder import Shard
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
        encoder = {"name": self.file.name, "fingerprint": file_hash(self.file)}
        self.manifest = {"modality": modality, "kind": "precomputed", "encoder": encoder, "settings": {}}
        self.extra = {"made_of": digest(list(self.item_ids), encoder["fingerprint"])}
        self._rows: Ragged  # of each line, and an empty row for items without a line
        self._lines: np.ndarray  # of each item

    def extract_shard(self, shard: Shard) -> None:
        """Nothing is encoded."""

    def extract(self, merge: bool = False) -> Features:
        """See `Extractor.extract`; lines of items that are not in the data are counted in the log.

        Raises:
            InputError: whatever `read_embeddings` refuses, or no line fits any item.
        """
        stored = find_current(self.folder, {**self.manifest, **self.extra})
        if stored is not None:
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
        return [digest(hashlib.blake2b(self._rows[line].tobytes()).hexdigest()) for line in self._lines[items]]

    def encode(self, items: Sequence[int], advance: Advance) -> Chunk:
        rows = self._rows.take(self._lines[items])
        advance(len(items))
        missing: list[Missing] = [(place, None, NO_EMBEDDING) for place in np.flatnonzero(rows.lengths == 0).tolist()]
        return Chunk(rows.lengths, rows.values, missing=missing)
