"""Features of new items, from the frozen encoders and settings of a run (equations 1, 2).

What extraction learned from the catalogue (the vocabulary, the map from images to texts) is read from the feature
stores of the run; a new item does not change it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from msm4sr.data.images import BrokenImage
from msm4sr.data.items import Item
from msm4sr.digests import json_digest
from msm4sr.errors import InputError
from msm4sr.features.extract import Encoders
from msm4sr.features.extractors.keywords import label_tagger
from msm4sr.features.images import decode_image
from msm4sr.features.keywords import ClipTagger, ImageTagger, LabelTagger, TextSpaceTagger, scored_words
from msm4sr.features.settings import FeatureSettings, store_names
from msm4sr.features.store import load_features, read_manifest, readable
from msm4sr.features.store_builder import no_vectors
from msm4sr.features.text import item_sentences
from msm4sr.features.text_space import fit_map

BATCH = 16  # images that are encoded at a time: each takes about 9 MiB


class ContentEncoder:
    """Encodes new items as `extract_features` encoded those of the catalogue.

    Safe under threads: all calls are run by one thread, since the libraries of the encoders keep memory for each thread
    that uses them.

    Args:
        folder: the features folder of the run; only keywords read it.
        settings: those of the run.
        dims: the modalities of the run, and the embedding dimension of each.
        precomputed: the modalities with precomputed embeddings.
        keywords_of: the `keywords_digest` of the folder when the run was made; None: not checked.
        device: see `Extraction`.
    """

    def __init__(
        self,
        folder: Path,
        settings: FeatureSettings,
        dims: Mapping[str, int],
        precomputed: Collection[str] = (),
        keywords_of: str | None = None,
        device: str = "cpu",
    ) -> None:
        self.folder, self.settings, self.dims = folder, settings, dict(dims)
        self.precomputed, self.keywords_of = frozenset(precomputed), keywords_of
        self._encoders = Encoders(settings, device)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder")

    def warm(self) -> None:
        """Load the encoders now (some seconds), so that the first new item does not wait for them."""
        self._thread.submit(self._warm).result()

    def _warm(self) -> None:
        if self.encodes("text"):
            self._encode_sentences([["A word."]])
        if self.encodes("visual"):
            self._encode_images([[Image.new("RGB", (8, 8))]])

    def encodes(self, modality: str) -> bool:
        """Whether this modality of the run comes from an encoder."""
        return modality in self.dims and modality not in self.precomputed

    def encode(self, items: Sequence[Item]) -> list[Item]:
        """New items with features, sentences and keywords: float32 [rows, dim] for every modality of the run.

        Args:
            items: each with the bytes of its image files, and with precomputed embeddings in `features`.

        Raises:
            InputError: an image that cannot be used; precomputed embeddings of a modality that does not exist or is
                encoded, or of another dimension; the keywords of the run are missing.
        """
        for name, rows in (given for item in items for given in item.features.items()):
            if name not in self.precomputed or name not in self.dims:
                known = ", ".join(sorted(self.precomputed)) or "none"
                raise InputError(f"embeddings for {name!r}: the run has precomputed embeddings of: {known}")
            array = np.atleast_2d(rows)
            if array.shape[1] != self.dims[name] or not np.isfinite(array).all():
                raise InputError(f"embeddings for {name!r}: they must be {self.dims[name]}-d and finite")
        return self._thread.submit(self._encode, items).result()

    def _encode(self, items: Sequence[Item]) -> list[Item]:
        sentences: list[list[str]] = [[] for _ in items]
        keywords: list[list[list[str]]] = [[] for _ in items]
        encoded: dict[str, list[np.ndarray]] = {}
        if self.encodes("visual"):
            encoded["visual"], keywords = self._encode_images([self._decode(item) for item in items])
        if self.encodes("text"):
            text = self.settings.text
            limits = text.max_sentences, text.max_characters
            sentences = [item_sentences(item.title, item.text, *limits) for item in items]
            encoded["text"] = self._encode_sentences(sentences)
        found = []
        for place, item in enumerate(items):
            features = {name: np.zeros((0, dim), np.float32) for name, dim in self.dims.items()}
            features |= {name: np.atleast_2d(rows).astype(np.float32) for name, rows in item.features.items()}
            features |= {name: rows[place] for name, rows in encoded.items() if len(rows[place])}
            found.append(replace(item, features=features, sentences=sentences[place], keywords=keywords[place]))
        return found

    def _encode_sentences(self, sentences: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """float32 [sentences, dim] of each item."""
        flat = [sentence for item in sentences for sentence in item]
        vectors = self._encoders.sentences.encode(flat) if flat else no_vectors()
        return np.split(vectors, np.cumsum([len(item) for item in sentences])[:-1])

    def _decode(self, item: Item) -> list[Image.Image]:
        images = []
        for number, data in enumerate(item.images, start=1):
            try:
                if isinstance(data, str):
                    raise BrokenImage(f"give the bytes of the file, not its path {data!r}")
                images.append(decode_image(data, self._encoders.images.size))
            except BrokenImage as error:
                raise InputError(f"item {item.item_id!r}: image {number} cannot be used: {error.reason}") from error
        return images

    def _encode_images(self, images: Sequence[Sequence[Image.Image]]) -> tuple[list[np.ndarray], list[list[list[str]]]]:
        """float32 [images, dim] of each item, and the keywords of each image (none for pooled features)."""
        bounds = np.cumsum([0, *map(len, images)]).tolist()
        flat = [image for item in images for image in item]
        keywords: list[list[str]] = []
        batches = [flat[start : start + BATCH] for start in range(0, len(flat), BATCH)]
        vectors = np.concatenate(list(map(self._encoders.images.encode, batches))) if flat else no_vectors()
        if flat and self.settings.visual.kind == "keywords":
            keywords = scored_words(self._tagger, vectors, self.settings.visual.num_keywords)[0]
            vectors = self._encoders.sentences.encode([" ".join(words) for words in keywords])
        places = list(pairwise(bounds))
        return [vectors[a:b] for a, b in places], [keywords[a:b] for a, b in places]

    @cached_property
    def _tagger(self) -> ImageTagger:
        """The tagger of the run, with what it learned from the catalogue."""
        names = store_names(self.settings)
        folder = self.folder / names["visual"]
        manifest = read_manifest(folder)
        if manifest is None or self.keywords_of not in (None, keywords_digest(self.folder, self.settings)):
            problem = "are gone" if manifest is None else "were replaced by those of other items or settings"
            raise InputError(
                f"{folder}: the features that the run was trained on {problem}, and keywords of a new image need them; "
                "restore the folder, or add the item without an image"
            )
        if self.settings.visual.uses_clip:
            return ClipTagger(self._encoders.clip, manifest.get("vocabulary_words", []))
        if manifest.get("tagger") == LabelTagger.name:
            return label_tagger(self._encoders)
        images, text, words = (load_features(self.folder / names[kind]) for kind in ("images", "text", "vocabulary"))
        with readable(folder):
            ridge = float(manifest["ridge"])
        return TextSpaceTagger(words.item_ids, words.values, fit_map(images, text, ridge))


def keywords_digest(folder: Path, settings: FeatureSettings) -> str | None:
    """A digest of how keywords are found, and of what they were learned from; None for a folder without keywords."""
    names = store_names(settings)
    visual = read_manifest(folder / names["visual"])
    if visual is None:
        return None
    learned_from = ("images", "text", "vocabulary") if "ridge" in visual else ()
    manifests = [visual, *(read_manifest(folder / names[kind]) or {} for kind in learned_from)]
    return json_digest([[one.get(key) for key in ("encoder", "settings", "content", "made_of")] for one in manifests])
