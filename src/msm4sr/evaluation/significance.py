"""Whether one system is better than another: a paired bootstrap over users, and Holm's correction.

Two systems rank the same users, so each user's *difference* of a metric is resampled: draw as many users as there are,
with replacement, and take the mean, many times. The spread of these means is the uncertainty that comes from the
sample of users.

With several seeds the metric of a user is first averaged over the seeds of each system (`mean_over_seeds`). The
interval is then about the average over these seeds, not about a further seed; the deviation over seeds shows that.

Efron and Tibshirani, An Introduction to the Bootstrap, 1993 (percentile intervals); Holm, A Simple Sequentially
Rejective Multiple Test Procedure, Scandinavian Journal of Statistics, 1979.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 10_000
COUNTS_AT_ONCE = 1 << 22  # 32 MiB of float64: how often each user is in each resample of a chunk
NOTHING = 1e-12  # a mean closer to 0 than this is 0 up to rounding


@dataclass(frozen=True)
class Difference:
    """How much more the first system has than the second, in the mean over users."""

    mean: float
    low: float
    high: float
    """The interval holds the true difference in about `confidence` of all samples of users."""
    p: float
    """Two-sided, of "there is no difference"; at least 2 / (resamples + 1), at most 1."""


def mean_over_seeds(values: Sequence[Floats]) -> Floats:
    """A metric of each user, float64 [users] from each seed, averaged over the seeds: float64 [users]."""
    mean: Floats = np.mean(np.stack(values), axis=0)
    return mean


def paired_bootstrap(
    first: Floats, second: Floats, *, resamples: int = RESAMPLES, confidence: float = 0.95, seed: int = 0
) -> list[Difference]:
    """The differences of T pairs of systems (or metrics), all with the same resamples of the users.

    Args:
        first: float64 [users, T], the first system of each pair.
        second: float64 [users, T], the second; row u is the same user in both.
        resamples: how many; the smallest p is 2 / (resamples + 1).
        confidence: of the percentile interval.
        seed: of the draws; `numpy.random.default_rng(seed)` draws them in order, however they are chunked.

    Raises:
        ValueError: other shapes; no users; a value that is no number.
    """
    if first.shape != second.shape or first.ndim != 2 or not len(first):
        raise ValueError(f"two tables [users, T] of one shape are compared, not {first.shape} and {second.shape}")
    differences = first - second
    if not np.isfinite(differences).all():
        raise ValueError("a metric that is compared is not a number")
    means = bootstrap_means(differences, resamples, seed)  # [resamples, T]
    means[np.abs(means) < NOTHING] = 0.0
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    # The share of resamples on the far side of 0, twice for two sides; the sample itself is counted, so that no p is 0.
    tail = np.minimum((means <= 0).sum(axis=0), (means >= 0).sum(axis=0))
    p = np.minimum(2 * (tail + 1) / (resamples + 1), 1.0)
    columns = (differences.mean(axis=0), low, high, p)
    return [Difference(*(float(value) for value in test)) for test in zip(*columns, strict=True)]


def bootstrap_means(values: Floats, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Means of `values` [users, T] over resampled users: float64 [resamples, T].

    A resample is how often each user is in it, so that all T means of a chunk of resamples are one product. Memory is
    that of a chunk, whatever the number of users and resamples.
    """
    users = len(values)
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, values.shape[1]))
    at_once = max(1, COUNTS_AT_ONCE // users)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = rng.integers(0, users, (rows, users))
        drawn += np.arange(rows)[:, None] * users
        counts = np.bincount(drawn.ravel(), minlength=rows * users).reshape(rows, users)
        means[start : start + rows] = counts @ values / users
    return means


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values of a family of tests, in its order: reject where they are at most the level wanted.

    The smallest of m is multiplied by m, the next by m - 1, ...; none is smaller than one before it, none above 1. The
    chance of any false rejection in the family is then at most the level, however the tests depend on each other.

        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    raised = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(raised, 1.0)
    return [float(value) for value in adjusted]
