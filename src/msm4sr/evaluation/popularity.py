"""Metrics by how well an item was known: users grouped by the training interactions of their target.

Buckets are 0 (the item was never trained on), 1 to 5, 6 to 10, 11 to 20, 21 to 50, and more than 50 interactions.
Each user belongs to the one bucket of the target; a bucket's metrics are means over its users.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from msm4sr.evaluation.metrics import mean_metrics
from msm4sr.evaluation.users import Part

BUCKETS = {"0": (0, 0), "1-5": (1, 5), "6-10": (6, 10), "11-20": (11, 20), "21-50": (21, 50), ">50": (51, None)}
"""Name to the lowest and the highest number of training interactions; None is no upper bound."""


class Bucket(NamedTuple):
    """A bucket's users and their metrics; no metrics where there are no users."""

    name: str
    users: int
    metrics: dict[str, float]


def metrics_by_item_count(users: pl.DataFrame, part: Part = "test") -> list[Bucket]:
    """The metrics of each bucket, from users.parquet (`evaluation.users`)."""
    own = users.filter(pl.col("part") == part)
    return bucket_metrics(own["rank"].to_numpy(), own["item_count"].to_numpy())


def bucket_metrics(ranks: npt.NDArray[np.float64], item_counts: npt.NDArray[np.int32]) -> list[Bucket]:
    """The same from the columns: float64 [users] and int32 [users]."""
    found = []
    for name, (low, high) in BUCKETS.items():
        inside = (item_counts >= low) & ((item_counts <= high) if high is not None else True)
        count = int(inside.sum())
        found.append(Bucket(name, count, mean_metrics(ranks[inside]) if count else {}))
    return found
