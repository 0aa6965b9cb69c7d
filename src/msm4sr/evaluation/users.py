"""What evaluation keeps of each user: the rank of the target, of which every metric is a function.

A table of one row a user and part, `users.parquet` in a run's folder:

    part           str      "validation" or "test"
    user_id        str
    item_id        str      the target
    rank           float64  1 is the best, ties at their mean
    rank_seen_excluded  float64  the same where the items of the user's history are not ranked
    item_count     int32    interactions of the target in the training part: how well the item was known
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from msm4sr.data.dataset import Dataset, test_targets, training_histories, validation_targets

Part = Literal["validation", "test"]

SCHEMA = {
    "part": pl.String(),
    "user_id": pl.String(),
    "item_id": pl.String(),
    "rank": pl.Float64(),
    "rank_seen_excluded": pl.Float64(),
    "item_count": pl.Int32(),
}


Ranks = npt.NDArray[np.float64]
"""[users]."""


def users_table(dataset: Dataset, ranks: Mapping[Part, tuple[Ranks, Ranks]]) -> pl.DataFrame:
    """The table of this module; `ranks` holds those of each part, as `rank_users_both` gives them."""
    counts = np.bincount(training_histories(dataset).values, minlength=dataset.n_items)
    item_ids = np.array(dataset.item_ids, dtype=object)
    parts = []
    for part, (rank, left_out) in ranks.items():
        targets = (validation_targets(dataset) if part == "validation" else test_targets(dataset)).targets
        columns = {
            "part": [part] * dataset.n_users,
            "user_id": dataset.user_ids,
            "item_id": item_ids[targets].tolist(),
            "rank": rank,
            "rank_seen_excluded": left_out,
            "item_count": counts[targets].astype(np.int32),
        }
        parts.append(pl.DataFrame(columns, schema=SCHEMA))
    return pl.concat(parts)
