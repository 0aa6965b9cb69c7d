from __future__ import annotations

import math

import numpy as np
import pytest

from msm4sr.evaluation.metrics import CUTOFFS, mean_metrics, metrics_per_user

RANKS = np.array([1.0, 2.0, 5.0, 5.5, 6.0, 10.0, 20.5, 50.0, 51.0, 400.0])


def test_metrics_are_reported_at_5_10_20_and_50() -> None:
    names = [f"{metric}@{k}" for metric in ("recall", "ndcg", "map", "precision") for k in (5, 10, 20, 50)]
    assert list(metrics_per_user(RANKS)) == [*names, "mrr"]
    assert list(mean_metrics(RANKS)) == [*names, "mrr"]


def test_metrics_are_those_of_one_relevant_item_user_by_user() -> None:
    metrics = metrics_per_user(RANKS)
    for user, rank in enumerate(RANKS):
        for k in CUTOFFS:
            assert metrics[f"recall@{k}"][user] == (1 if rank <= k else 0)
            gain = math.log(2) / math.log(rank + 1) if rank <= k else 0.0  # over the ideal gain, which is 1
            assert metrics[f"ndcg@{k}"][user] == pytest.approx(gain)
        assert metrics["mrr"][user] == pytest.approx(1 / rank)


def test_means_are_over_users() -> None:
    means = mean_metrics(RANKS)
    assert means["recall@5"] == pytest.approx(3 / 10)
    assert means["recall@50"] == pytest.approx(8 / 10)
    assert means["mrr"] == pytest.approx(sum(1 / rank for rank in RANKS) / 10)
    assert all(type(value) is float for value in means.values())


def test_the_best_rank_gives_the_highest_metrics() -> None:
    for name, value in mean_metrics(np.array([1.0, 1.0])).items():
        assert value == (1 / int(name.partition("@")[2]) if name.startswith("precision") else 1.0)
