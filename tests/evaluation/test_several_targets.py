"""Metrics and ranks of users with several targets, against implementations that walk through one list at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from builders import make_itemknn, make_lightgcn, make_popularity, make_sasrec, ragged
from hypothesis import given
from hypothesis import strategies as st

from msm4sr.data.dataset import Targets
from msm4sr.evaluation import ranking
from msm4sr.evaluation.metrics import CUTOFFS, METRICS, chance, mean_metrics, metrics_per_user
from msm4sr.evaluation.ranking import rank_targets, ranks_of


def slow_metrics(ranked: Sequence[int], relevant: set[int]) -> dict[str, float]:
    """The metrics of one list of items, best first, as textbooks define them."""
    found = {"mrr": next(1 / place for place, item in enumerate(ranked, start=1) if item in relevant)}
    for k in CUTOFFS:
        hits, precisions, gain = 0, 0.0, 0.0
        for place, item in enumerate(ranked[:k], start=1):
            if item in relevant:
                hits += 1
                precisions += hits / place
                gain += 1 / math.log2(place + 1)
        most = min(k, len(relevant))
        found |= {
            f"recall@{k}": hits / len(relevant),
            f"precision@{k}": hits / k,
            f"map@{k}": precisions / most,
            f"ndcg@{k}": gain / sum(1 / math.log2(place + 1) for place in range(1, most + 1)),
        }
    return found


USER = st.integers(1, 70).flatmap(
    lambda n: st.tuples(st.permutations(range(n)), st.sets(st.integers(0, n - 1), min_size=1))
)


@given(st.lists(USER, min_size=1, max_size=5))
def test_metrics_are_those_of_a_walk_through_each_list(users: list[tuple[list[int], set[int]]]) -> None:
    ranks = [ranked.index(item) + 1.0 for ranked, relevant in users for item in relevant]
    numbers = [user for user, (_, relevant) in enumerate(users) for _ in relevant]
    found = metrics_per_user(np.array(ranks), np.array(numbers))
    assert tuple(found) == METRICS
    for user, (ranked, relevant) in enumerate(users):
        for name, value in slow_metrics(ranked, relevant).items():
            assert found[name][user] == pytest.approx(value, rel=1e-9, abs=1e-12), name


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.data())
def test_targets_that_tie_only_with_each_other_count_as_if_they_did_not(scores: list[int], data: st.DataObject) -> None:
    """Items that are not relevant have distinct scores, between those of the targets."""
    others = data.draw(st.lists(st.floats(-0.9, 3.9).filter(lambda x: x != int(x)), unique=True, max_size=20))
    row = torch.tensor([*map(float, scores), *others], dtype=torch.float32)
    others_distinct = len(set(row[len(scores) :].tolist())) == len(others)
    if not others_distinct or set(row[len(scores) :].tolist()) & set(map(float, scores)):
        return
    targets = torch.arange(len(scores))
    ranks = ranks_of(row.expand(len(scores), -1), targets).numpy()
    found = metrics_per_user(ranks, np.zeros(len(scores), dtype=np.int64))
    ranked = torch.argsort(row, descending=True, stable=True).tolist()
    for name, value in slow_metrics(ranked, set(range(len(scores)))).items():
        assert found[name][0] == pytest.approx(value, rel=1e-9), name


def test_with_one_target_each_the_users_may_be_named_or_not() -> None:
    ranks = np.array([3.0, 1.5, 60.0])
    with_users = metrics_per_user(ranks, np.array([7, 2, 5]))
    for name, values in metrics_per_user(ranks).items():
        assert values.tolist() == with_users[name].tolist()


@pytest.mark.parametrize(("n", "r"), [(1, 1), (4, 1), (5, 2), (6, 3), (7, 7)])
def test_chance_is_the_mean_over_all_orders(n: int, r: int) -> None:
    orders = [slow_metrics(order, set(range(r))) for order in itertools.permutations(range(n))]
    for name, value in chance(n, np.array([r])).items():
        assert value == pytest.approx(np.mean([found[name] for found in orders]), rel=1e-9), name


def test_chance_is_averaged_over_users() -> None:
    one, three = (chance(30, np.array([r])) for r in (1, 3))
    for name, value in chance(30, np.array([1, 3, 3])).items():
        assert value == pytest.approx((one[name] + 2 * three[name]) / 3)


@pytest.mark.parametrize("at_once", [1, 2, 1 << 21])
def test_several_targets_rank_as_each_of_them_alone(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "SCORES_IN_CACHE", at_once)
    monkeypatch.setattr(ranking, "USERS_AT_ONCE", at_once)
    histories, wanted = [[1, 5, 0], [3], [2, 2, 4, 6, 7]], [[4, 1], [0, 7, 11, 3], [9]]
    model = make_sasrec().eval()
    rows = np.repeat(np.arange(3), [2, 4, 1])
    targets = Targets(ragged(histories), np.concatenate(wanted), rows=rows)
    protocols = ("seen_included", "seen_excluded")
    found = rank_targets(model, targets, protocols)
    for protocol in protocols:
        alone = [
            rank_targets(model, Targets(ragged([history]), np.array([item])), protocols)[protocol].item()
            for history, items in zip(histories, wanted, strict=True)
            for item in items
        ]
        assert found[protocol].tolist() == alone
    some = targets.take(np.array([2, 1]))
    assert some.targets.tolist() == [9, 0, 7, 11, 3]
    assert some.target_users.tolist() == [2, 1, 1, 1, 1]
    assert rank_targets(model, some)["seen_included"].tolist() == found["seen_included"][[6, 2, 3, 4, 5]].tolist()


def test_after_an_empty_history_only_a_model_that_reads_none_ranks() -> None:
    targets = Targets(ragged([[], [1, 2]]), np.array([3, 3]), users=np.array([4, 0]))
    for model in (make_sasrec().eval(), make_itemknn(), make_lightgcn().eval()):
        assert rank_targets(model, targets)["seen_included"][0] == (1 + 12) / 2, "all twelve items tie"
    popular = make_popularity([5, 4, 3, 9, 1])
    assert rank_targets(popular, targets)["seen_included"][0] == 1.0


def test_means_are_over_users_and_not_over_targets() -> None:
    ranks, users = np.array([1.0, 2.0, 3.0, 100.0]), np.array([0, 0, 0, 1])
    assert mean_metrics(ranks, users)["recall@5"] == 0.5
