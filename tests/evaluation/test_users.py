"""users.parquet: a row per user and part, from which the metrics of the run follow."""

from __future__ import annotations

import numpy as np
import polars as pl
from builders import make_dataset, make_popularity, random_sequences

from msm4sr.evaluation.evaluate import EvaluationSettings, evaluate, rank_users
from msm4sr.evaluation.metrics import mean_metrics
from msm4sr.evaluation.users import SCHEMA, Part, users_table

DATASET = make_dataset(random_sequences(users=7, n_items=9, longest=8), n_items=9)
MODEL = make_popularity([3, 1, 4, 1, 5, 9, 2, 6, 5])
PARTS: tuple[Part, ...] = ("validation", "test")


def table() -> pl.DataFrame:
    ranks = {part: rank_users(MODEL, DATASET, part, ("seen_included", "seen_excluded")) for part in PARTS}
    return users_table(DATASET, {part: (both["seen_included"], both["seen_excluded"]) for part, both in ranks.items()})


def test_each_user_has_a_row_in_each_part_with_the_target_and_its_training_interactions() -> None:
    rows = table()
    assert dict(rows.schema) == SCHEMA
    assert len(rows) == 2 * DATASET.n_users
    trained = [DATASET.item_ids[i] for user in range(DATASET.n_users) for i in DATASET.histories[user][:-2]]
    expected = [(part, back) for part, back in (("validation", 2), ("test", 1)) for _ in range(DATASET.n_users)]
    for row, (part, back) in zip(rows.iter_rows(named=True), expected, strict=True):
        history = DATASET.histories[DATASET.user_ids.index(row["user_id"])]
        assert row["part"] == part
        assert row["item_id"] == DATASET.item_ids[history[-back]]
        assert row["item_count"] == trained.count(row["item_id"])
    assert rows["item_count"].n_unique() > 2


def test_the_metrics_follow_from_the_ranks() -> None:
    for part in PARTS:
        ranks = table().filter(pl.col("part") == part)["rank"].to_numpy()
        assert mean_metrics(ranks) == evaluate(MODEL, DATASET, part)
        excluded = table().filter(pl.col("part") == part)["rank_seen_excluded"].to_numpy()
        assert mean_metrics(excluded) == evaluate(MODEL, DATASET, part, EvaluationSettings(exclude_seen=True))
        assert (excluded <= ranks).any()
        assert not np.array_equal(ranks, np.sort(ranks))
