"""From images to the text space: a ridge regression, out of fold, with near-duplicate items in one fold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from msm4sr.features.visual import unit

if TYPE_CHECKING:
    from msm4sr.features.store import Features

# Beyond this number of distinct rows, they are compared through an index of neighbours: 50,000 rows (1,280-d), each
# with each, need about a minute of CPU time, ten times as many rows a hundred times as much.
EXACT_ROWS = 50_000
NEAR = 0.95  # cosine of near-duplicates
_NEIGHBOURS = 16
_TILE = 1024, 4096  # rows compared at once: 4 million cosines, whatever the catalogue's size
_MAX_PAIRS = 4_000_000  # pairs kept before they are merged into groups


def group_near_duplicates(
    views: Sequence[tuple[np.ndarray, np.ndarray]], n_items: int, exact_rows: int = EXACT_ROWS
) -> np.ndarray:
    """The group of each item, int [n_items]: items whose texts or images are almost alike share one.

    They are those whose vectors have a cosine of at least `NEAR` in any view (items int [rows], vectors [rows, dim]),
    transitively. Up to `exact_rows` distinct rows, each is compared with each; beyond, with its 16 nearest neighbours
    in an HNSW index (usearch) over a 128-d random projection, by the full vectors: no pair is joined wrongly, a few may
    be missed.
    """
    groups = np.arange(n_items)
    for items, vectors in views:
        rows = unit(vectors)
        # Equal vectors first: ten thousand items with one placeholder image would be 10^8 pairs.
        first: dict[bytes, int] = {}
        same = np.array([first.setdefault(row.tobytes(), place) for place, row in enumerate(rows)], np.int64)
        groups = _merge(groups, items, items[same])
        distinct = np.array(list(first.values()), np.int64)
        rows, items = rows[distinct], items[distinct]
        near = _near_by_index if len(rows) > exact_rows else _near_by_comparison
        pairs: list[np.ndarray] = [np.zeros((2, 0), np.int64)]
        for a, b in near(rows):
            pairs.append(np.stack([items[a], items[b]]))
            if sum(map(np.size, pairs)) > 2 * _MAX_PAIRS:
                groups = _merge(groups, *np.concatenate(pairs, axis=1))
                pairs = pairs[:1]
        groups = _merge(groups, *np.concatenate(pairs, axis=1))
    return groups


def _merge(groups: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The groups after those of the items `a[k]` and `b[k]` are joined."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(groups)
    graph = coo_array((np.ones(len(a), bool), (groups[a], groups[b])), shape=(n, n))
    names: np.ndarray = connected_components(graph, directed=False)[1][groups]
    return names


def _near_by_comparison(vectors: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    height, width = _TILE
    for top in range(0, len(vectors), height):
        for left in range(top, len(vectors), width):
            a, b = np.nonzero(vectors[top : top + height] @ vectors[left : left + width].T >= NEAR)
            yield top + a, left + b


def _near_by_index(vectors: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    from usearch.index import Index

    # One thread: with several, the index would depend on their timing.
    projection = np.random.default_rng(0).normal(size=(vectors.shape[1], 128)).astype(np.float32)
    index = Index(ndim=128, metric="cos", dtype="f16")
    for rows in blocks_of(np.arange(len(vectors))):
        index.add(rows, vectors[rows] @ projection, threads=1)
    for rows in blocks_of(np.arange(len(vectors))):
        found = index.search(vectors[rows] @ projection, _NEIGHBOURS, threads=1)
        a, b = np.repeat(rows, found.keys.shape[1]), found.keys.ravel().astype(np.int64)
        exact = np.concatenate(
            [np.einsum("ij,ij->i", vectors[a[k]], vectors[b[k]]) for k in blocks_of(np.arange(len(a)))]
        )
        yield a[exact >= NEAR], b[exact >= NEAR]


def assign_folds(groups: np.ndarray) -> np.ndarray:
    """A fold of five for each item, int [n_items]; groups are not split, and folds have about equal sizes."""
    names, sizes = np.unique(groups, return_counts=True)
    shuffled = np.random.default_rng(0).permutation(len(names))
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]  # large groups first, then at random
    load = np.zeros(5, np.int64)
    fold_of_group = np.zeros(len(names), np.int64)
    for group in order:
        fold_of_group[group] = fold = np.argmin(load)
        load[fold] += sizes[group]
    return fold_of_group[np.searchsorted(names, groups)]


def blocks_of(rows: np.ndarray, block: int = 8192) -> Iterator[np.ndarray]:
    """Consecutive slices of `rows`."""
    for start in range(0, len(rows), block):
        yield rows[start : start + block]


def map_to_text_space(images: Features, text: Features) -> tuple[np.ndarray, float, int] | None:
    """Map images to the text space out of fold; near-duplicate items share a fold.

    Returns:
        The mapped images, the ridge, and the number of groups of near-duplicates; None if these put all texts into one
        fold (one placeholder image everywhere, for example), so that nothing can be learned out of fold.
    """
    owners, has_text, means = images.row_numbers, text.lengths > 0, item_means(text)
    vectors = np.asarray(images.values)
    groups = group_near_duplicates([(np.flatnonzero(has_text), means[has_text]), (owners, vectors)], len(text.item_ids))
    # Folds are balanced over the items that the map is fitted or used on, which are those with images.
    with_images = np.unique(owners)
    folds = np.zeros(len(text.item_ids), np.int64)
    folds[with_images] = assign_folds(groups[with_images])
    if len(np.unique(folds[owners[has_text[owners]]])) < 2:
        return None
    mapped, ridge = map_images(vectors, means[owners], has_text[owners], folds[owners])
    return mapped, ridge, len(np.unique(groups[with_images]))


# Ridges that are tried, as fractions of the mean variance of the pooled layer; see `map_images`. Product photos need
# little; film posters, which reveal little about the film, much.
RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


def map_images(
    pooled: np.ndarray, texts: np.ndarray, has_text: np.ndarray, folds: np.ndarray, ridges: Sequence[float] = RIDGES
) -> tuple[np.ndarray, float]:
    """Map each image to the text space, as fitted on the images and texts of the other folds.

    For each fold: W = (X'X / n + r v I)^-1 X'Y / n with X, Y centred on the training rows, v the mean variance of the
    columns of X. Only X'X and X'Y are kept, summed fold by fold, so that memory does not depend on the catalogue.

    Args:
        pooled: float [images, p].
        texts: float [images, d], the text embedding of the item of each image (ignored where `has_text` is False).
        has_text: bool [images].
        folds: int [images].
        ridges: r, the candidates.

    Returns:
        float32 [images, d] relative to the mean of the training texts, and the ridge with the least squared error over
        the held-out texts.
    """
    names = np.unique(folds).tolist()
    moments = [_moments(pooled, texts, np.flatnonzero(has_text & (folds == fold))) for fold in names]
    total = [sum(of_folds) for of_folds in zip(*moments, strict=True)]
    if any(inside[0] == total[0] for inside in moments):
        raise ValueError("all texts are in one fold: nothing to fit on")
    maps = {
        fold: _fit(*(a - b for a, b in zip(total, inside, strict=True)))
        for fold, inside in zip(names, moments, strict=True)
    }
    error = np.zeros(len(ridges))
    for fold, fitted in maps.items():
        for rows in blocks_of(np.flatnonzero(has_text & (folds == fold))):
            rotated = (pooled[rows] - fitted.mean_x) @ fitted.axes
            wanted = texts[rows] - fitted.mean_y
            for index, ridge in enumerate(ridges):
                error[index] += float(((rotated @ fitted.weights(ridge) - wanted) ** 2).sum())
    ridge = ridges[int(np.argmin(error))]
    mapped = np.zeros((len(pooled), texts.shape[1]), np.float32)
    for fold, fitted in maps.items():
        chosen = fitted.map(ridge)
        for rows in blocks_of(np.flatnonzero(folds == fold)):
            mapped[rows] = chosen(pooled[rows])
    return mapped, ridge


@dataclass(frozen=True)
class _FoldMap:
    """The fit outside one fold, in the axes of X'X, where every ridge is a division."""

    mean_x: np.ndarray  # [p]
    mean_y: np.ndarray  # [d]
    axes: np.ndarray  # [p, p], eigenvectors in columns
    spread: np.ndarray  # [p], eigenvalues
    cross: np.ndarray  # [p, d], axes' X'Y / n

    def weights(self, ridge: float) -> np.ndarray:
        scaled = max(ridge * float(self.spread.mean()), 1e-12)
        weights: np.ndarray = self.cross / (self.spread + scaled)[:, None]
        return weights

    def map(self, ridge: float) -> RidgeMap:
        return RidgeMap(self.mean_x, self.axes @ self.weights(ridge))


def _fit(n: int, sum_x: np.ndarray, sum_y: np.ndarray, xx: np.ndarray, xy: np.ndarray) -> _FoldMap:
    mean_x, mean_y = sum_x / n, sum_y / n
    spread, axes = np.linalg.eigh(xx / n - np.outer(mean_x, mean_x))
    return _FoldMap(mean_x, mean_y, axes, spread.clip(min=0), axes.T @ (xy / n - np.outer(mean_x, mean_y)))


@dataclass(frozen=True, eq=False)
class RidgeMap:
    """A fitted map: (x - mean) weights, with mean [p] and weights [p, d]."""

    mean: np.ndarray
    weights: np.ndarray

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """float [images, p] -> float32 [images, d]."""
        mapped: np.ndarray = ((images - self.mean) @ self.weights).astype(np.float32)
        return mapped


def fit_map(images: Features, text: Features, ridge: float) -> RidgeMap:
    """As `map_images`, but fitted on all items: for the images of new items."""
    owners = images.row_numbers
    has_text = (text.lengths > 0)[owners]
    return _fit(*_moments(np.asarray(images.values), item_means(text)[owners], np.flatnonzero(has_text))).map(ridge)


def item_means(text: Features) -> np.ndarray:
    """float32 [items, dim]: the mean of the sentence vectors of each item, zeros if it has none."""
    sums = np.zeros((len(text), text.dim), np.float64)
    np.add.at(sums, text.row_numbers, np.asarray(text.values))
    means: np.ndarray = (sums / np.maximum(text.lengths, 1)[:, None]).astype(np.float32)
    return means


def _moments(x: np.ndarray, y: np.ndarray, rows: np.ndarray) -> list[Any]:
    """[n, sum of x, sum of y, x'x, x'y] over `rows`, in float64."""
    p, d = x.shape[1], y.shape[1]
    sums: list[Any] = [len(rows), np.zeros(p), np.zeros(d), np.zeros((p, p)), np.zeros((p, d))]
    for block in blocks_of(rows):
        a, b = x[block].astype(np.float64), y[block].astype(np.float64)
        for place, addend in enumerate((a.sum(axis=0), b.sum(axis=0), a.T @ a, a.T @ b), start=1):
            sums[place] += addend
    return sums
