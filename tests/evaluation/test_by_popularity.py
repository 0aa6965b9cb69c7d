"""Metrics by the number of training interactions of the target."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm4sr.evaluation.metrics import mean_metrics
from msm4sr.evaluation.popularity import BUCKETS, bucket_metrics, metrics_by_item_count


def table(rows: list[tuple[str, float, int]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"part": pl.String, "rank": pl.Float64, "item_count": pl.Int32}, orient="row")


def test_each_user_is_in_the_bucket_of_the_target() -> None:
    counts = [0, 1, 5, 6, 10, 11, 20, 21, 50, 51, 9000]
    found = metrics_by_item_count(table([("test", float(1 + n), count) for n, count in enumerate(counts)]))
    assert [bucket.name for bucket in found] == ["0", "1-5", "6-10", "11-20", "21-50", ">50"]
    assert [bucket.users for bucket in found] == [1, 2, 2, 2, 2, 2]
    assert found[1].metrics == mean_metrics(np.array([2.0, 3.0]))
    assert found[5].metrics == mean_metrics(np.array([10.0, 11.0]))


def test_only_the_part_that_is_asked_for_counts() -> None:
    rows = table([("validation", 1.0, 0), ("test", 3.0, 0), ("test", 5.0, 0)])
    assert metrics_by_item_count(rows)[0].users == 2
    assert metrics_by_item_count(rows, "validation")[0].metrics["mrr"] == 1


def test_a_bucket_without_users_has_no_metrics() -> None:
    assert [bucket.metrics for bucket in metrics_by_item_count(table([]))] == [{}] * len(BUCKETS)


@given(st.lists(st.tuples(st.integers(1, 99), st.integers(0, 99)), min_size=1, max_size=40))
def test_the_whole_is_the_mean_of_its_buckets_weighted_by_users(rows: list[tuple[int, int]]) -> None:
    ranks, counts = np.array([r for r, _ in rows], dtype=float), np.array([c for _, c in rows], dtype=np.int32)
    found = bucket_metrics(ranks, counts)
    assert sum(bucket.users for bucket in found) == len(rows)
    for name, value in mean_metrics(ranks).items():
        assert sum(b.users * b.metrics[name] for b in found if b.users) / len(rows) == pytest.approx(value)
