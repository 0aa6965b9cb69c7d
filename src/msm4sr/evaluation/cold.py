"""Users and items without training interactions, which a temporal split leaves in validation and test.

Main metrics are of the users with training interactions. The others are reported apart: a model ranks for them by what
they interacted with since, or, if it reads no history (Popularity), without. After an empty history, and for new items
whose content it does not read, a model gives equal scores, which rank at their mean.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from msm4sr.evaluation.metrics import mean_metrics
from msm4sr.evaluation.users import users_of

COLD_USERS, COLD_ITEMS = "users", "items"


def cold_metrics(part: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """The metrics of what is cold in a part of users.parquet.

    Returns:
        "users": of the users without training interactions, all their targets. "items": of the targets without training
        interactions of the other users. Each with the numbers of "users", "targets" and distinct "items" among the
        targets, and "metrics", empty without users.
    """
    cold_user, cold_item = pl.col("user_count") == 0, pl.col("item_count") == 0
    return {COLD_USERS: _group(part.filter(cold_user)), COLD_ITEMS: _group(part.filter(~cold_user & cold_item))}


def _group(rows: pl.DataFrame) -> dict[str, Any]:
    metrics = mean_metrics(rows["rank"].to_numpy(), users_of(rows)) if len(rows) else {}
    counts = {"users": rows["user_id"].n_unique(), "targets": len(rows), "items": rows["item_id"].n_unique()}
    return {**counts, "metrics": metrics}
