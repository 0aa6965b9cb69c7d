"""Metrics by item popularity: targets grouped by their training interactions.

Buckets are 0 (an item without training data), 1 to 5, 6 to 10, 11 to 20, 21 to 50, and more than 50 interactions. A
bucket's metrics are means over the users with a target in it, of these targets.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from msm4sr.evaluation.metrics import mean_metrics

BUCKETS = {"0": (0, 0), "1-5": (1, 5), "6-10": (6, 10), "11-20": (11, 20), "21-50": (21, 50), ">50": (51, None)}
"""From name to the lowest and the highest number of training interactions; None: no upper bound."""


class Bucket(NamedTuple):
    """A bucket, the number of users with a target in it and their metrics; no metrics without users."""

    name: str
    users: int
    metrics: dict[str, float]


def bucket_metrics(
    ranks: npt.NDArray[np.float64], item_counts: npt.NDArray[np.int32], users: npt.NDArray[Any] | None = None
) -> list[Bucket]:
    """The metrics of each bucket.

    Args:
        ranks: float64 [targets].
        item_counts: int32 [targets], training interactions of each target.
        users: as for `metrics_per_user`.
    """
    found = []
    for name, (low, high) in BUCKETS.items():
        inside = (item_counts >= low) & ((item_counts <= high) if high is not None else True)
        own = np.flatnonzero(inside) if users is None else users[inside]
        found.append(Bucket(name, len(np.unique(own)), mean_metrics(ranks[inside], own) if len(own) else {}))
    return found
