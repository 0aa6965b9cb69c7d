"""Sentences through the frozen sentence encoder (equation 1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from msm4sr.digests import json_digest
from msm4sr.features.extract import EXTRACTORS, Encoders, Extraction, Extractor
from msm4sr.features.settings import store_names
from msm4sr.features.store_builder import Chunk, Missing, no_vectors
from msm4sr.features.text import item_sentences
from msm4sr.progress import Advance

NO_TEXT = "no title and no text"


@EXTRACTORS.register("sentences")
class SentenceExtractor(Extractor):
    """The title and the sentences of each item; a row per sentence."""

    title = "encoding sentences"

    def __init__(self, job: Extraction, modality: str = "text") -> None:
        super().__init__(job, modality)
        self.settings = job.settings.text
        self.folder = job.out / store_names(job.settings)["text"]
        encoder, settings = job.encoders.sentence_record(), self.settings.model_dump(exclude={"encoder"})
        self.manifest = {"modality": modality, "kind": "sentences", "encoder": encoder, "settings": settings}
        self._texts = job.dataset.items.select("title", "text")

    def content_hashes(self, items: range) -> list[str]:
        return [json_digest(*row) for row in self._texts.slice(items.start, len(items)).iter_rows()]

    def encode(self, items: Sequence[int], advance: Advance) -> Chunk:
        limits = self.settings.max_sentences, self.settings.max_characters
        sentences = [item_sentences(title, text, *limits) for title, text in self._texts[list(items)].iter_rows()]
        missing: list[Missing] = [(place, None, NO_TEXT) for place, item in enumerate(sentences) if not item]
        return encode_sentences(self.job.encoders, sentences, advance, missing)


def encode_sentences(
    encoders: Encoders, sentences: Sequence[Sequence[str]], advance: Advance, missing: Sequence[Missing] = ()
) -> Chunk:
    """Encode the sentences of some items, each distinct sentence once: catalogues repeat them ("Free shipping.")."""
    counts = np.array([len(item) for item in sentences], np.int64)
    flat = [sentence for item in sentences for sentence in item]
    if not flat:
        advance(len(sentences))
        return Chunk(counts, no_vectors(), missing=list(missing))
    place = {sentence: index for index, sentence in enumerate(dict.fromkeys(flat))}
    share = len(sentences) / len(place)
    vectors = encoders.sentences.encode(list(place), lambda n: advance(n * share))
    rows = vectors[[place[sentence] for sentence in flat]]
    return Chunk(counts, rows, missing=list(missing), backend=encoders.sentences.backend)
