"""The rank of each user's target, from which every metric follows: `users.parquet` in a run's folder.

One row per user and part:

    part           str      "validation" or "test"
    user_id        str
    item_id        str      the target
    rank           float64  1 is the best, ties at their mean
    rank_seen_excluded  float64  the same with seen items excluded
    item_count     int32    interactions of the target in the training part: its popularity
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import polars as pl

from msm4sr.data.dataset import Dataset, Targets, test_targets, training_counts, validation_targets
from msm4sr.evaluation.ranking import Ranks

Part = Literal["validation", "test"]

SCHEMA = {
    "part": pl.String(),
    "user_id": pl.String(),
    "item_id": pl.String(),
    "rank": pl.Float64(),
    "rank_seen_excluded": pl.Float64(),
    "item_count": pl.Int32(),
}


def targets_of(dataset: Dataset, part: Part) -> Targets:
    """What validation or test ranks."""
    return validation_targets(dataset) if part == "validation" else test_targets(dataset)


def users_table(dataset: Dataset, ranks: Mapping[Part, tuple[Ranks, Ranks]]) -> pl.DataFrame:
    """The table of this module.

    Args:
        dataset: the users and their targets.
        ranks: for each part the columns `rank` and `rank_seen_excluded`, float64 [users] each.
    """
    counts = training_counts(dataset)
    item_ids = np.array(dataset.item_ids, dtype=object)
    parts = []
    for part, (rank, seen_excluded) in ranks.items():
        targets = targets_of(dataset, part).targets
        columns = {
            "part": [part] * dataset.n_users,
            "user_id": dataset.user_ids,
            "item_id": item_ids[targets].tolist(),
            "rank": rank,
            "rank_seen_excluded": seen_excluded,
            "item_count": counts[targets].astype(np.int32),
        }
        parts.append(pl.DataFrame(columns, schema=SCHEMA))
    return pl.concat(parts)
