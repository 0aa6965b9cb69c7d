"""A ridge regression from image vectors to the text space, out of fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from msm4sr.features.near_duplicates import blocks_of

if TYPE_CHECKING:
    from msm4sr.features.store import Features

# Ridges that are tried, as fractions of the mean variance of the pooled layer; see `map_images`. Product photos need
# little; film posters, which reveal little about the film, much.
RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


def map_images(
    pooled: np.ndarray,
    texts: np.ndarray,
    has_text: np.ndarray,
    folds: np.ndarray,
    ridges: Sequence[float] = RIDGES,
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

    Raises:
        ValueError: all texts are in one fold.
    """
    maps = _fit_folds(pooled, texts, has_text, folds)
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
        weights = fitted.axes @ fitted.weights(ridge)  # [p, d]
        for rows in blocks_of(np.flatnonzero(folds == fold)):
            mapped[rows] = (pooled[rows] - fitted.mean_x) @ weights
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


def _fit_folds(x: np.ndarray, y: np.ndarray, has_text: np.ndarray, folds: np.ndarray) -> dict[int, _FoldMap]:
    names = [int(fold) for fold in np.unique(folds)]
    moments = [_moments(x, y, np.flatnonzero(has_text & (folds == fold))) for fold in names]
    total = [sum(of_folds) for of_folds in zip(*moments, strict=True)]
    maps = {}
    for fold, inside in zip(names, moments, strict=True):
        outside = [a - b for a, b in zip(total, inside, strict=True)]
        if outside[0] == 0:
            raise ValueError("all texts are in one fold: nothing to fit on")
        maps[fold] = _fit(*outside)
    return maps


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
    fitted = _fit(*_moments(np.asarray(images.values), item_means(text)[owners], np.flatnonzero(has_text)))
    return RidgeMap(fitted.mean_x, fitted.axes @ fitted.weights(ridge))


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
