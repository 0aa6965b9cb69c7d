"""Recall, NDCG, MAP, precision and MRR of each user's relevant items, from their ranks among all items.

With r relevant items at the ranks p_1 < p_2 < ... < p_r, of which h are at most k:

    recall@k     h / r
    ndcg@k       sum over the h of 1 / log2(p_j + 1), divided by the same sum for p_j = j, j up to min(k, r)
    map@k        sum over the h of j / p_j, divided by min(k, r): the mean of the average precision
    precision@k  h / k
    mrr          1 / p_1

With one relevant item recall@k is the hit rate, and map@k is 1 / p_1 where p_1 <= k (Manning, Raghavan and Schütze,
Introduction to Information Retrieval, 2008, chapter 8; Järvelin and Kekäläinen 2002, doi 10.1145/582415.582418).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[Any]

CUTOFFS = (5, 10, 20, 50)
MEASURES = ("recall", "ndcg", "map", "precision")
METRICS = (*(f"{measure}@{k}" for measure in MEASURES for k in CUTOFFS), "mrr")
"""All metrics in reading order."""


def metrics_per_user(ranks: Floats, users: Ints | None = None) -> dict[str, Floats]:
    """Each of `METRICS` for each user.

    Args:
        ranks: float64 [targets], 1 is the best; a target that ties with others ranks at the mean of their places, one
            that is not ranked at infinity.
        users: [targets], the user of each target, those of a user next to each other; None: one target per user.

    Returns:
        Metric to its value for each user: float64 [users], in the order of `users`.
    """
    places, nth, starts = _places(ranks, users)
    counts = np.diff(starts, append=len(ranks))  # [users]

    def total(values: Floats) -> Floats:
        return np.add.reduceat(values, starts) if len(starts) else np.zeros(0)

    gain = 1 / np.log2(places + 1)
    ideal = np.cumsum(1 / np.log2(np.arange(2, max(CUTOFFS) + 2)))
    values = {"mrr": 1 / places[starts]}
    for k in CUTOFFS:
        found = places <= k
        hits, best = total(found.astype(np.float64)), np.minimum(counts, k)
        values[f"recall@{k}"] = hits / counts
        values[f"ndcg@{k}"] = total(np.where(found, gain, 0.0)) / ideal[best - 1]
        values[f"map@{k}"] = total(np.where(found, nth / places, 0.0)) / best
        values[f"precision@{k}"] = hits / k
    return {name: values[name] for name in METRICS}


def _places(ranks: Floats, users: Ints | None) -> tuple[Floats, Ints, Ints]:
    """The places of each user's targets, ascending; their numbers 1, 2, ... within the user; where each user starts.

    Targets that tie with each other have the same rank, the mean of the places that all tied items share. They take
    different places around it, one apart, so that any order of the tied targets gives the same metrics.
    """
    if users is None:
        return ranks, np.ones(len(ranks), dtype=np.int64), np.arange(len(ranks))
    starts = np.flatnonzero(np.concatenate([[True], users[1:] != users[:-1]]))
    user = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(ranks)))
    order = np.lexsort((ranks, user))
    ranks = ranks[order]
    apart = np.concatenate([[True], (user[1:] != user[:-1]) | (ranks[1:] != ranks[:-1])])
    first = np.flatnonzero(apart)  # of the targets that tie
    tied = np.diff(first, append=len(ranks))
    within = np.arange(len(ranks)) - np.repeat(first, tied)
    nth = np.arange(1, len(ranks) + 1) - starts[user]
    return ranks + within - (np.repeat(tied, tied) - 1) / 2, nth, starts


def mean_metrics(ranks: Floats, users: Ints | None = None) -> dict[str, float]:
    """The means over users of `metrics_per_user`."""
    return {name: float(values.mean()) for name, values in metrics_per_user(ranks, users).items()}


def chance(n_items: int, targets: Ints | None = None) -> dict[str, float]:
    """The expected metrics of a random ranking of so many items.

    Args:
        n_items: the items that are ranked.
        targets: int [users], the number of targets of each user; None: one.
    """
    counts = np.ones(1, dtype=np.int64) if targets is None else targets
    sizes, users = np.unique(counts, return_counts=True)
    means = [_chance(n_items, int(size)) for size in sizes]
    return {name: float(np.average([mean[name] for mean in means], weights=users)) for name in METRICS}


def _chance(n: int, r: int) -> dict[str, float]:
    """The expected metrics of `r` targets among `n` items in random order."""
    place = np.arange(1, n + 1)
    gain, ideal = 1 / np.log2(place + 1), np.cumsum(1 / np.log2(place + 1))
    # with a target at place i, each of the i - 1 places before it has a target with probability (r - 1) / (n - 1)
    precision = (1 + (place - 1) * (r - 1) / max(1, n - 1)) / place
    none_before = np.cumprod(np.concatenate([[1.0], (n - r - place[:-1] + 1).clip(0) / (n - place[:-1] + 1)]))
    first = none_before * r / (n - place + 1)  # probability that the first target is at this place
    found: dict[str, float] = {"mrr": float((first.clip(0, 1) / place).sum())}
    for k in CUTOFFS:
        top, best = slice(min(k, n)), min(k, r)
        share = r / n
        found |= {
            f"recall@{k}": min(k, n) / n,
            f"ndcg@{k}": share * float(gain[top].sum()) / float(ideal[best - 1]),
            f"map@{k}": share * float(precision[top].sum()) / best,
            f"precision@{k}": share * min(k, n) / k,
        }
    return found
