"""Metrics by the number of training interactions of the target."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm4sr.evaluation.metrics import mean_metrics
from msm4sr.evaluation.popularity import BUCKETS, bucket_metrics


def test_each_user_is_in_the_bucket_of_the_target() -> None:
    counts = [0, 1, 5, 6, 10, 11, 20, 21, 50, 51, 9000]
    found = bucket_metrics(np.arange(1.0, 12.0), np.array(counts, dtype=np.int32))
    assert [bucket.name for bucket in found] == ["0", "1-5", "6-10", "11-20", "21-50", ">50"]
    assert [bucket.users for bucket in found] == [1, 2, 2, 2, 2, 2]
    assert found[1].metrics == mean_metrics(np.array([2.0, 3.0]))
    assert found[5].metrics == mean_metrics(np.array([10.0, 11.0]))


def test_a_bucket_without_users_has_no_metrics() -> None:
    assert [bucket.metrics for bucket in bucket_metrics(np.array([]), np.array([], dtype=np.int32))] == [{}] * len(
        BUCKETS
    )


@given(st.lists(st.tuples(st.integers(1, 99), st.integers(0, 99)), min_size=1, max_size=40))
def test_the_mean_over_users_is_that_of_the_buckets_weighted_by_users(rows: list[tuple[int, int]]) -> None:
    ranks, counts = np.array([r for r, _ in rows], dtype=float), np.array([c for _, c in rows], dtype=np.int32)
    found = bucket_metrics(ranks, counts)
    assert sum(bucket.users for bucket in found) == len(rows)
    for name, value in mean_metrics(ranks).items():
        assert sum(b.users * b.metrics[name] for b in found if b.users) / len(rows) == pytest.approx(value)
