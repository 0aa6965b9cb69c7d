"""Items that are almost alike, and folds that keep them together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from msm4sr.features.visual import unit

# Beyond this number of distinct rows, they are compared through an index of neighbours: 50,000 rows (1,280-d), each
# with each, need about a minute of CPU time, ten times as many rows a hundred times as much.
EXACT_ROWS = 50_000
_NEIGHBOURS = 16
_TILE = 1024, 4096  # rows compared at once: 4 million cosines, whatever the catalogue's size
_MAX_PAIRS = 4_000_000  # pairs kept before they are merged into groups


def group_near_duplicates(
    views: Sequence[tuple[np.ndarray, np.ndarray]], n_items: int, threshold: float = 0.95, exact_rows: int = EXACT_ROWS
) -> np.ndarray:
    """Group the items whose texts or images are almost alike.

    Two items whose vectors have a cosine of `threshold` or more in any view share a group, transitively. Up to
    `exact_rows` distinct rows, each is compared with each; beyond, with its 16 nearest neighbours in an HNSW index
    (usearch) over a 128-d random projection, by the full vectors: no pair is joined wrongly, a few may be missed.

    Args:
        views: (items int [rows], vectors [rows, dim]) each.
        n_items: of the catalogue.
        threshold: a cosine.
        exact_rows: distinct rows that are compared exactly.

    Returns:
        int [n_items], the group of each item.
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
        left: list[np.ndarray] = []
        right: list[np.ndarray] = []
        for a, b in near(rows, threshold):
            left.append(items[a])
            right.append(items[b])
            if sum(map(len, left)) > _MAX_PAIRS:
                groups = _merge(groups, np.concatenate(left), np.concatenate(right))
                left, right = [], []
        if left:
            groups = _merge(groups, np.concatenate(left), np.concatenate(right))
    return groups


def _merge(groups: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The groups after those of the items `a[k]` and `b[k]` are joined."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(groups)
    graph = coo_array((np.ones(len(a), bool), (groups[a], groups[b])), shape=(n, n))
    names: np.ndarray = connected_components(graph, directed=False)[1][groups]
    return names


def _near_by_comparison(vectors: np.ndarray, threshold: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    height, width = _TILE
    for top in range(0, len(vectors), height):
        for left in range(top, len(vectors), width):
            close = vectors[top : top + height] @ vectors[left : left + width].T >= threshold
            a, b = np.nonzero(close)
            yield top + a, left + b


def _near_by_index(vectors: np.ndarray, threshold: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
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
        yield a[exact >= threshold], b[exact >= threshold]


def assign_folds(groups: np.ndarray, n_folds: int = 5, seed: int = 0) -> np.ndarray:
    """A fold for each item, int [n_items]; groups are not split, and folds have about equal sizes."""
    names, sizes = np.unique(groups, return_counts=True)
    shuffled = np.random.default_rng(seed).permutation(len(names))
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]  # large groups first, then at random
    load = np.zeros(n_folds, np.int64)
    fold_of_group = np.zeros(len(names), np.int64)
    for group in order:
        fold = int(np.argmin(load))
        fold_of_group[group] = fold
        load[fold] += sizes[group]
    return fold_of_group[np.searchsorted(names, groups)]


def blocks_of(rows: np.ndarray, block: int = 8192) -> Iterator[np.ndarray]:
    """Consecutive slices of `rows`."""
    for start in range(0, len(rows), block):
        yield rows[start : start + block]
