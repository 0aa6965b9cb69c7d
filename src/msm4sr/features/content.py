"""The features of items that come later, by the same frozen encoders and settings as those of a run (equations 1, 2).

What extraction learned from the catalogue as a whole (the vocabulary of keywords, the map from pictures to texts) is
taken from the stores that it left; a new item changes none of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from msm4sr.errors import InputError
from msm4sr.features.extract import (
    Encoders,
    FeatureSettings,
    StoredWords,
    item_means,
    label_tagger,
    store_names,
)
from msm4sr.features.images import BrokenImage, decode_image
from msm4sr.features.store import load_features, read_manifest

if TYPE_CHECKING:
    from collections.abc import Callable

    from msm4sr.features.keywords import ImageTagger
    from msm4sr.features.visual import ImageEncoder


@dataclass(frozen=True)
class Content:
    """What an item is made of; whatever it lacks is left out.

    `pictures` are the bytes of image files. `vectors` are for modalities that come from vectors of the user's own:
    float [rows, D_in] each.
    """

    title: str | None = None
    text: str | None = None
    pictures: Sequence[bytes] = ()
    vectors: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Encoded:
    """An item's features: float32 [rows, D_in] for each modality of the run, no rows where it lacks one.

    `sentences` name the rows of the text, `keywords` those of the pictures (empty where pictures have none); `broken`
    says of pictures that cannot be used why, by their place.
    """

    rows: dict[str, np.ndarray]
    sentences: list[str] = field(default_factory=list)
    keywords: list[list[str]] = field(default_factory=list)
    broken: dict[int, str] = field(default_factory=dict)


class ContentEncoder:
    """Encodes new items as `extract_features` encoded those of the catalogue.

    On a thread of its own, one call at a time, whoever calls: what the encoders' libraries keep for each thread that
    uses them, they keep once.

    Args:
        folder: the run's features folder. Only keywords read it.
        settings: the run's.
        dims: the modalities of the run and the width of their rows.
        own: those of them that have vectors of the user's own.
        device: where the encoders run.
    """

    def __init__(
        self,
        folder: Path,
        settings: FeatureSettings,
        dims: Mapping[str, int],
        own: Collection[str] = (),
        device: str = "cpu",
    ) -> None:
        self.folder, self.settings, self.dims, self.own = folder, settings, dict(dims), frozenset(own)
        self._encoders = Encoders(settings, device)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder")
        self._tagging: tuple[Callable[[np.ndarray], np.ndarray], ImageTagger, list[str]] | None = None

    def warm(self) -> None:
        """Load the encoders, so that the first new item does not wait for them (some seconds)."""
        self._thread.submit(self._warm).result()

    def _warm(self) -> None:
        if self.encodes("text"):
            self._texts([["A word."]])
        if self.encodes("visual"):
            self._pictures([Image.new("RGB", (8, 8))])

    def encode(self, items: Sequence[Content]) -> list[Encoded]:
        """The features of `items`.

        Raises InputError for vectors of a modality that does not exist, is not made from vectors, or has another
        width; for features of keywords that are no longer there.
        """
        for item in items:
            self._check_vectors(item)
        found = [Encoded({name: np.zeros((0, dim), np.float32) for name, dim in self.dims.items()}) for _ in items]
        for item, encoded in zip(items, found, strict=True):
            encoded.rows.update({name: np.atleast_2d(rows).astype(np.float32) for name, rows in item.vectors.items()})
        self._thread.submit(self._add, items, found).result()
        return found

    def _add(self, items: Sequence[Content], found: Sequence[Encoded]) -> None:
        if self.encodes("text"):
            self._add_texts(items, found)
        if self.encodes("visual"):
            self._add_pictures(items, found)

    def encodes(self, modality: str) -> bool:
        """Whether this modality of the run comes from an encoder."""
        return modality in self.dims and modality not in self.own

    def _check_vectors(self, item: Content) -> None:
        for name, rows in item.vectors.items():
            if name not in self.own or name not in self.dims:
                there = ", ".join(sorted(self.own)) or "none"
                raise InputError(f"vectors for {name!r}: the run takes vectors of these modalities: {there}")
            array = np.atleast_2d(rows)
            if array.shape[1] != self.dims[name] or not np.isfinite(array).all():
                raise InputError(f"vectors for {name!r}: they should be {self.dims[name]} finite numbers a row")

    # -- texts

    def _add_texts(self, items: Sequence[Content], found: Sequence[Encoded]) -> None:
        from msm4sr.features.text import item_sentences

        chosen = self.settings.text
        for item, encoded in zip(items, found, strict=True):
            encoded.sentences.extend(item_sentences(item.title, item.text, chosen.max_sentences, chosen.max_characters))
        for encoded, rows in zip(found, self._texts([encoded.sentences for encoded in found]), strict=True):
            if len(rows):
                encoded.rows["text"] = rows

    def _texts(self, sentences: Sequence[Sequence[str]]) -> list[np.ndarray]:
        flat = [sentence for item in sentences for sentence in item]
        if not flat:
            return [np.zeros((0, 0), np.float32) for _ in sentences]
        vectors = self._encoders.sentences().encode(flat)
        return np.split(vectors, np.cumsum([len(item) for item in sentences])[:-1])

    # -- pictures

    def _add_pictures(self, items: Sequence[Content], found: Sequence[Encoded]) -> None:
        pictures: list[Image.Image] = []
        owners: list[Encoded] = []
        for item, encoded in zip(items, found, strict=True):
            for place, data in enumerate(item.pictures):
                try:
                    pictures.append(decode_image(data, self._network().size))
                    owners.append(encoded)
                except BrokenImage as error:
                    encoded.broken[place] = error.reason
        if not pictures:
            return
        rows, words = self._pictures(pictures)
        for place, owner in enumerate(owners):
            owner.rows["visual"] = np.concatenate([owner.rows["visual"], rows[place : place + 1]])
            owner.keywords.extend(words[place : place + 1])

    def _network(self) -> ImageEncoder:
        chosen = self.settings.visual
        clip = chosen.kind == "keywords" and chosen.tagger != "offline"
        return self._encoders.clip() if clip else self._encoders.network()

    def _pictures(self, pictures: Sequence[Image.Image]) -> tuple[np.ndarray, list[list[str]]]:
        """Vectors [pictures, D_in], and the words of each picture; none where they are not made from words."""
        pooled = self._network().encode(pictures)
        if self.settings.visual.kind == "pooled":
            return pooled, []
        from msm4sr.features.keywords import best_words

        if self._tagging is None:
            self._tagging = self._load_tagging()
        mapped, tagger, vocabulary = self._tagging
        words = best_words(tagger, mapped(pooled), vocabulary, self.settings.visual.num_keywords)
        return self._encoders.sentences().encode([" ".join(line) for line in words]), words

    def _load_tagging(self) -> tuple[Callable[[np.ndarray], np.ndarray], ImageTagger, list[str]]:
        """What takes pooled vectors to where words are compared, the tagger, and the vocabulary of the run."""
        from msm4sr.features.keywords import LabelTagger, TextSpaceTagger, fit_map

        names = store_names(self.settings)
        manifest = self._manifest(names["visual"])
        vocabulary: list[str] = manifest.get("vocabulary_words", [])
        if self.settings.visual.tagger != "offline":
            return _as_it_is, self._encoders.clip(), vocabulary
        if manifest.get("tagger") == LabelTagger.name:
            return _as_it_is, label_tagger(self._encoders), vocabulary
        text, pictures = (load_features(self.folder / names[kind]) for kind in ("text", "pictures"))
        stored = load_features(self.folder / names["words"])
        words = StoredWords(list(stored.item_ids), stored.vectors, self._manifest(names["words"])["encoder"])
        owners = np.repeat(np.arange(len(text.item_ids)), np.diff(pictures.offsets))
        means, has_text = item_means(text)[owners], (np.diff(text.offsets) > 0)[owners]
        fitted = fit_map(np.asarray(pictures.vectors), means, has_text, float(manifest["ridge"]))
        return fitted, TextSpaceTagger(words), list(stored.item_ids)

    def _manifest(self, name: str) -> dict[str, Any]:
        manifest = read_manifest(self.folder / name)
        if manifest is None:
            raise InputError(
                f"{self.folder / name}: the features that the run was trained on are gone, and without them no "
                "keywords can be found for a new picture; put them back, or add the item without a picture"
            )
        return manifest


def _as_it_is(pooled: np.ndarray) -> np.ndarray:
    return pooled
