"""The rank of each target, from which every metric follows: `users.parquet` in a run's folder.

One row per target and part, those of a user next to each other:

    part           str      "validation" or "test"
    user_id        str
    item_id        str      the target
    rank           float64  1 is the best, ties at their mean; by the protocol of the settings
    rank_seen_excluded  float64  the same with seen items excluded; infinity for a seen target
    item_count     int32    interactions of the target in the training part: its popularity
    user_count     int32    interactions of the user before validation
    history_length int32    items of the history that the target is ranked after
    categories     list[str]  of the target
    user.COLUMN             each column of users.parquet of the data
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import polars as pl

from msm4sr.data.dataset import Dataset, Targets, test_targets, training_counts, user_counts, validation_targets
from msm4sr.evaluation.metrics import Ints
from msm4sr.evaluation.ranking import Ranks

Part = Literal["validation", "test"]

SCHEMA = {
    "part": pl.String(),
    "user_id": pl.String(),
    "item_id": pl.String(),
    "rank": pl.Float64(),
    "rank_seen_excluded": pl.Float64(),
    "item_count": pl.Int32(),
    "user_count": pl.Int32(),
    "history_length": pl.Int32(),
    "categories": pl.List(pl.String()),
}
OWN = "user."


def targets_of(dataset: Dataset, part: Part) -> Targets:
    """What validation or test ranks."""
    return validation_targets(dataset) if part == "validation" else test_targets(dataset)


def tested(table: pl.DataFrame) -> pl.DataFrame:
    """The test part of users.parquet, of users with training interactions: what the metrics on test are means over."""
    table = table.filter(pl.col("part") == "test")
    return table.filter(pl.col("user_count") > 0) if "user_count" in table.columns else table


def users_of(table: pl.DataFrame) -> Ints:
    """The number of the user of each row of a part of users.parquet, as `metrics_per_user` wants it."""
    return table["user_id"].rle_id().to_numpy()


def users_table(dataset: Dataset, ranks: Mapping[Part, tuple[Ranks, Ranks]]) -> pl.DataFrame:
    """The table of this module.

    Args:
        dataset: the users and their targets.
        ranks: for each part the columns `rank` and `rank_seen_excluded`, float64 [targets] each.
    """
    of_items, of_users = training_counts(dataset), user_counts(dataset)
    user_ids, item_ids = (np.array(ids, dtype=object) for ids in (dataset.user_ids, dataset.item_ids))
    no_categories = pl.Series([[]] * dataset.n_items, dtype=pl.List(pl.String))
    categories = dataset.items.get_column("categories", default=no_categories)
    parts = []
    for part, (rank, seen_excluded) in ranks.items():
        targets = targets_of(dataset, part)
        users = targets.target_users
        columns: dict[str, Any] = {
            "part": [part] * len(users),
            "user_id": user_ids[users].tolist(),
            "item_id": item_ids[targets.targets].tolist(),
            "rank": rank,
            "rank_seen_excluded": seen_excluded,
            "item_count": of_items[targets.targets].astype(np.int32),
            "user_count": of_users[users].astype(np.int32),
            "history_length": np.repeat(targets.histories.lengths, targets.counts).astype(np.int32),
            "categories": categories[targets.targets],
        }
        parts.append(pl.DataFrame(columns, schema=SCHEMA))
    table = pl.concat(parts)
    if dataset.users is None:
        return table
    own = dataset.users.rename({name: f"{OWN}{name}" for name in dataset.users.columns if name != "user_id"})
    return table.join(own, on="user_id", how="left", maintain_order="left")
