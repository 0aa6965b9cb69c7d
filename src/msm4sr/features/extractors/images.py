"""Images through a frozen image encoder: the pooled layer of a vision network, or the image encoder of a CLIP."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import polars as pl

from msm4sr.data.images import BrokenImage
from msm4sr.digests import json_digest
from msm4sr.errors import InputError
from msm4sr.features.extract import EXTRACTORS, Extraction, Extractor
from msm4sr.features.images import ImageFiles
from msm4sr.features.settings import store_names
from msm4sr.features.store import Features, read_missing
from msm4sr.features.store_builder import Chunk, Missing, no_vectors
from msm4sr.features.visual import encode_images
from msm4sr.progress import Advance

logger = logging.getLogger(__name__)

NO_IMAGE = "no image"
SHOWN_IMAGES = 5  # of those that cannot be used


@EXTRACTORS.register("pooled")
class ImageExtractor(Extractor):
    """A row per readable image; the others are reported and listed in missing.parquet."""

    title = "encoding images"

    def __init__(self, job: Extraction, modality: str = "visual") -> None:
        super().__init__(job, modality)
        names, kind = store_names(job.settings), "clip" if job.settings.visual.uses_clip else "pooled"
        self.folder = job.out / names.get("images", names["visual"])
        encoder = job.encoders.image_record()
        self.manifest = {"modality": modality, "kind": kind, "encoder": encoder, "settings": {}}
        self._files = ImageFiles(job.dataset.folder)
        self._paths = job.dataset.items["image"]

    def content_hashes(self, items: range) -> list[str]:
        self._files.forget()
        paths = self._paths.slice(items.start, len(items)).to_list()
        return [json_digest([(path, *self._files.hash(path)) for path in of_item or ()]) for of_item in paths]

    def encode(self, items: Sequence[int], advance: Advance) -> Chunk:
        paths: list[list[str]] = [of_item or [] for of_item in self._paths[list(items)].to_list()]
        results, backend = self._encode_files(paths, advance)
        counts = np.zeros(len(items), np.int64)
        vectors: list[np.ndarray] = []
        images: list[str] = []
        missing: list[Missing] = []
        for place, of_item in enumerate(paths):
            if not of_item:
                missing.append((place, None, NO_IMAGE))
            for path in of_item:
                content, refused = self._files.hash(path)
                result = BrokenImage(refused) if refused is not None else results[content]
                if isinstance(result, BrokenImage):
                    missing.append((place, path, result.reason))
                else:
                    counts[place] += 1
                    vectors.append(result)
                    images.append(path)
        return Chunk(counts, np.stack(vectors) if vectors else no_vectors(), images, missing, backend)

    def _encode_files(
        self, paths: Sequence[Sequence[str]], advance: Advance
    ) -> tuple[dict[str, np.ndarray | BrokenImage], str | None]:
        """The vector of each distinct file by its hash, and the backend of the encoder."""
        distinct: dict[str, str] = {}  # hash -> the first path with that content
        for path in (path for of_item in paths for path in of_item):
            content, refused = self._files.hash(path)
            if refused is None:
                distinct.setdefault(content, path)
        if not distinct:
            advance(len(paths))
            return {}, None
        encoder = self.job.encoders.images
        decoded = self._files.decode_all(list(distinct.values()), encoder.size)
        share = len(paths) / len(distinct)
        vectors = encode_images(encoder, decoded, advance=lambda n: advance(n * share))
        return dict(zip(distinct, vectors, strict=True)), encoder.backend

    def check(self, chunk: Chunk, items: Sequence[int]) -> None:
        for place, path, reason in chunk.missing:
            if self.job.strict and path is not None:
                raise self._unusable(self.item_ids[items[place]], path, reason)

    def _unusable(self, item_id: str, path: str, reason: str) -> InputError:
        return InputError(
            f"{self.job.dataset.folder / path}: image of item {item_id!r}: {reason}; repair it, remove it from "
            "items.parquet, or run without --strict (encoded items are kept)"
        )

    def extract(self, merge: bool = False) -> Features:
        """See `Extractor.extract`; logs how many images could not be used, and the first reasons."""
        features = super().extract(merge)
        broken = read_missing(self.folder).filter(pl.col("image").is_not_null())
        rows = broken.select("item_id", "image", "reason").rows()
        if rows and self.job.strict:
            raise self._unusable(*rows[0])
        if rows:
            what = "%s: %s images cannot be used; their items have no vector of them"
            logger.warning(what, self.modality, f"{len(rows):,}")
        for item_id, image, reason in rows[:SHOWN_IMAGES]:
            logger.warning("  %s of item %r: %s", image, item_id, reason)
        if (more := len(rows) - SHOWN_IMAGES) > 0:
            logger.warning("  and %s more, listed in %s", f"{more:,}", self.folder / "missing.parquet")
        return features
