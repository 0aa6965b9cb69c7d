"""Keywords of images through the sentence encoder (equation 2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from msm4sr.digests import json_digest
from msm4sr.errors import InputError
from msm4sr.features.efficientnet import EfficientNetLite0
from msm4sr.features.extract import EXTRACTORS, Encoders, Extraction, Extractor
from msm4sr.features.extractors.images import ImageExtractor
from msm4sr.features.extractors.sentences import SentenceExtractor, encode_sentences
from msm4sr.features.keywords import (
    ClipTagger,
    ImageTagger,
    LabelTagger,
    TextSpaceTagger,
    build_vocabulary,
    imagenet_labels,
    read_vocabulary,
    scored_words,
)
from msm4sr.features.settings import store_names
from msm4sr.features.store import Features, find_current, read_manifest, read_missing, read_rows
from msm4sr.features.store_builder import Chunk, Shard
from msm4sr.features.text_space import map_to_text_space
from msm4sr.progress import Advance
from msm4sr.ragged import Ragged


@EXTRACTORS.register("keywords")
class KeywordExtractor(Extractor):
    """Finds the keywords of each image and encodes them as a sentence; a row per readable image.

    The keywords depend on all items (the vocabulary, the map from images to texts): they are found again whenever a
    text or an image changes. Only keyword lists that are new are then encoded.
    """

    title = "encoding keywords"

    def __init__(self, job: Extraction, modality: str = "visual") -> None:
        super().__init__(job, modality)
        self.settings = job.settings.visual
        self.images, self.sentences = ImageExtractor(job, modality), SentenceExtractor(job)
        self.folder = job.out / store_names(job.settings)["visual"]
        text = self.sentences.manifest
        settings = {**self.settings.model_dump(), "text": text["settings"]}
        self.manifest = {"modality": modality, "kind": "keywords", "encoder": text["encoder"], "settings": settings}
        self._keywords: Ragged  # of each image of each item, joined

    def extract_shard(self, shard: Shard) -> None:
        self.images.extract_shard(shard)

    def extract(self, merge: bool = False) -> Features:
        images = self.images.extract(merge)
        self.extra = {"made_of": self._made_of()}
        if (stored := find_current(self.folder, {**self.manifest, **self.extra})) is not None:
            return stored
        # The texts teach the offline tagger, even if precomputed embeddings replace them in the model.
        text = self.sentences.extract(merge) if images.n_rows and not self.settings.uses_clip else None
        words, scores = self._tag(images, text)
        self._keywords = Ragged(np.array([" ".join(line) for line in words], object), images.offsets)
        rows = read_rows(self.images.folder)
        assert rows is not None
        self.rows = rows.with_columns(
            pl.Series("words", words, pl.List(pl.String)), pl.Series("scores", scores).cast(pl.List(pl.Float32))
        )
        self.missing = read_missing(self.images.folder)
        return super().extract()

    def find(self) -> Features | None:
        """See `Extractor.find`."""
        if self.images.find() is None:
            return None
        return find_current(self.folder, {**self.manifest, "made_of": self._made_of()})

    def content_hashes(self, items: range) -> list[str]:
        return [json_digest(self._keywords[item].tolist()) for item in items]

    def encode(self, items: Sequence[int], advance: Advance) -> Chunk:
        return encode_sentences(self.job.encoders, [self._keywords[item].tolist() for item in items], advance)

    def _made_of(self) -> str:
        """A hash of all images and texts, and of the vocabulary file."""
        images = read_manifest(self.images.folder) or {}
        texts = self.sentences.content_hashes(range(len(self.item_ids)))
        vocabulary = None if self.settings.vocabulary_file is None else self._vocabulary()
        return json_digest(images["encoder"], images["content"], texts, vocabulary)

    def _tag(self, images: Features, text: Features | None) -> tuple[list[list[str]], np.ndarray]:
        """The words of each image and their scores, float32 [images, N]; `extra` records how they were found."""
        if not images.n_rows:
            return [], np.zeros((0, self.settings.num_keywords), np.float32)
        with self.job.progress.task("learning to tag images"):
            tagger, vectors = self._find_tagger(images, text)
        with self.job.progress.task("tagging images", len(vectors), "images") as advance:
            number, executor = self.settings.num_keywords, self.job.executor
            found = scored_words(tagger, vectors, number, executor=executor, advance=advance)
        self.extra |= {"tagger": tagger.name, "vocabulary_words": list(tagger.vocabulary)}
        return found

    def _find_tagger(self, images: Features, text: Features | None) -> tuple[ImageTagger, np.ndarray]:
        """The tagger, and the image vectors that it ranks words for; `text` is for training the offline tagger."""
        vocabulary, vectors = self._vocabulary(), np.asarray(images.values)
        from_file = self.settings.vocabulary_file is not None
        self.extra["vocabulary"] = "word file" if from_file else "catalogue"
        if from_file or len(vocabulary) >= self.settings.num_keywords:
            if text is None:
                return ClipTagger(self.job.encoders.clip, vocabulary), vectors
            mapped = self._map_images(images, text)
            if mapped is not None:
                words = VocabularyExtractor(self.job, vocabulary).extract()
                return TextSpaceTagger(vocabulary, words.values), mapped
        self.extra["vocabulary"] = LabelTagger.name
        if text is None:
            return ClipTagger(self.job.encoders.clip, list(dict.fromkeys(imagenet_labels()))), vectors
        return label_tagger(self.job.encoders), vectors

    def _map_images(self, images: Features, text: Features) -> np.ndarray | None:
        """The images in the text space, out of fold; None if there are too few texts to learn from."""
        has_both = int(np.count_nonzero((text.lengths > 0) & (images.lengths > 0)))
        mapped = map_to_text_space(images, text) if has_both >= self.settings.min_texts else None
        if mapped is not None:
            vectors, ridge, groups = mapped
            self.extra |= {"ridge": ridge, "near_duplicate_groups": groups, "fitted_on_items": has_both}
            return vectors
        if self.settings.vocabulary_file is not None:
            if has_both >= self.settings.min_texts:
                raise InputError(
                    "features.visual.vocabulary_file: the offline tagger learns nothing from images that are almost "
                    "all the same; set features.visual.tagger to a CLIP model"
                )
            raise InputError(
                "features.visual.vocabulary_file: the offline tagger learns keywords from at least "
                f"{self.settings.min_texts} items with text and image (features.visual.min_texts), but there are "
                f"{has_both}; set features.visual.tagger to a CLIP model"
            )
        return None

    def _vocabulary(self) -> list[str]:
        """The words of the vocabulary file, or those of the texts of the catalogue."""
        visual, longest = self.settings, self.job.settings.text.max_characters
        if visual.vocabulary_file is not None:
            return read_vocabulary(visual.vocabulary_file)
        rows = self.job.dataset.items.select("title", "text").iter_rows()
        texts = (f"{(title or '')[:longest]} {(text or '')[:longest]}" for title, text in rows)
        most, size = visual.vocabulary_max_fraction, visual.vocabulary_size
        return build_vocabulary(texts, visual.vocabulary_min_items, most, size)


class VocabularyExtractor(Extractor):
    """The words of a vocabulary through the sentence encoder; a row per word."""

    title = "encoding words"

    def __init__(self, job: Extraction, vocabulary: Sequence[str]) -> None:
        super().__init__(job, "words")
        self.item_ids = vocabulary
        self.folder = job.out / store_names(job.settings)["vocabulary"]
        encoder, settings = job.encoders.sentence_record(), {"max_tokens": job.settings.text.max_tokens}
        self.manifest = {"modality": "words", "kind": "vocabulary", "encoder": encoder, "settings": settings}

    def content_hashes(self, items: range) -> list[str]:
        return [json_digest(self.item_ids[word]) for word in items]

    def encode(self, items: Sequence[int], advance: Advance) -> Chunk:
        return encode_sentences(self.job.encoders, [[self.item_ids[word]] for word in items], advance)


def label_tagger(encoders: Encoders) -> LabelTagger:
    """The labels of ImageNet as keywords. Raises InputError if the pooled layer is that of another network."""
    network = encoders.images
    if not isinstance(network, EfficientNetLite0):
        raise InputError(
            f"features.visual.network={network.name}: the catalogue has too few texts to learn keywords from, and "
            f"ImageNet labels need {EfficientNetLite0.name}; name that network, a CLIP model as "
            "features.visual.tagger, or features.visual.kind=pooled"
        )
    return LabelTagger(*network.label_weights())
