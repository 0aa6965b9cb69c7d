"""Full ranking against a loop over users and items."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from builders import make_dataset, make_model, make_msm4sr, make_popularity, make_sasrec, ragged, random_sequences
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from msm4sr.data.dataset import Targets, test_targets, validation_targets
from msm4sr.evaluation import ranking
from msm4sr.evaluation.evaluate import EvaluationSettings, evaluate
from msm4sr.evaluation.metrics import mean_metrics
from msm4sr.evaluation.ranking import Protocol, Ranks, rank_targets, ranks_of
from msm4sr.models.base import FactorizedScorer, Scorer
from msm4sr.models.baselines.s3rec import S3Rec
from msm4sr.models.msm4sr import MSM4SR

N_ITEMS = 12
DATASET = make_dataset(random_sequences(30, N_ITEMS, longest=11), N_ITEMS)


def rank_slowly(scores: list[float], target: int) -> float:
    """The mean of the places that the items with the target's score take; infinity if it is not ranked."""
    if scores[target] == -np.inf:
        return np.inf
    ordered = sorted(scores, reverse=True)
    places = [place for place, score in enumerate(ordered, start=1) if score == scores[target]]
    return sum(places) / len(places)


def ranks_slowly(model: Any, targets: Targets, exclude_seen: bool = False) -> list[float]:
    """One user at a time, the history cut to the model's longest, unpadded."""
    ranks = []
    with torch.no_grad():
        embeddings = model.encode_items()
        item_vectors = model.scoring_vectors(embeddings)
        for user, target in enumerate(targets.targets):
            history = [int(item) for item in targets.histories[user]]
            latest = torch.tensor([history[-model.max_history :]])
            scores = (item_vectors @ model.encode_histories(latest, embeddings)[0, -1]).tolist()
            for item in history if exclude_seen else []:
                scores[item] = -float("inf")
            ranks.append(rank_slowly(scores, int(target)))
    return ranks


class Scores(FactorizedScorer):
    """A model that gives every history the same scores, and none longer than `max_history`."""

    def __init__(self, scores: list[float], max_history: int = 4) -> None:
        super().__init__()
        self.scores = torch.tensor(scores)
        self.max_history = max_history
        self.longest_seen = 0

    def encode_items(self) -> Tensor:
        return self.scores[:, None, None]

    def encode_histories(self, histories: Tensor, catalogue: Tensor) -> Tensor:
        self.longest_seen = max(self.longest_seen, histories.shape[1])
        return torch.ones(*histories.shape, 1)

    def scoring_vectors(self, catalogue: Tensor) -> Tensor:
        return catalogue.squeeze(1)


class Table(Scorer):
    """A model with a row of scores for each user."""

    max_history = 5

    def __init__(self, table: list[list[float]]) -> None:
        super().__init__()
        self.table = torch.tensor(table)
        self.ranks_seen_items = True

    def encode_items(self) -> Tensor:
        return self.table.new_zeros(self.table.shape[1], 1, 1)

    def score(
        self, histories: Tensor, lengths: Tensor, embeddings: Tensor, item_vectors: Tensor, users: Tensor | None = None
    ) -> Tensor:
        assert users is not None
        return self.table[users]


def included(model: Any, targets: Targets) -> Ranks:
    return rank_targets(model, targets)["seen_included"]


def excluded(model: Any, targets: Targets) -> Ranks:
    return rank_targets(model, targets, ("seen_excluded",))["seen_excluded"]


# One row of scores


def test_a_rank_is_one_plus_the_items_that_score_higher() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7], [0.1, 0.9, 0.5, 0.7]])
    assert ranks_of(scores, torch.tensor([1, 0])).tolist() == [1.0, 4.0]


def test_ties_rank_at_their_mean() -> None:
    scores = torch.tensor([[1.0, 2.0, 1.0, 1.0, 0.0]] * 5)
    assert ranks_of(scores, torch.arange(5)).tolist() == [3.0, 1.0, 3.0, 3.0, 5.0]
    assert ranks_of(torch.zeros(1, 9), torch.tensor([4])).tolist() == [5.0]  # a constant model is no good model


def test_ranks_agree_with_sorting_on_scores_full_of_ties() -> None:
    scores = torch.randint(0, 4, (50, 9), generator=torch.Generator().manual_seed(0)).float()
    targets = torch.arange(50) % 9
    expected = [rank_slowly(row.tolist(), int(t)) for row, t in zip(scores, targets, strict=True)]
    assert ranks_of(scores, targets).tolist() == expected


def test_a_score_that_is_not_a_number_is_an_error_not_the_best_rank() -> None:
    scores = torch.tensor([[0.1, float("nan"), 0.5]])
    for target in (0, 1):
        with pytest.raises(FloatingPointError, match="not a number"):
            ranks_of(scores, torch.tensor([target]))


# All users


@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("make", [make_sasrec, make_msm4sr, lambda: make_popularity([i // 3 for i in range(N_ITEMS)])])
@pytest.mark.parametrize("part", [validation_targets, test_targets])
def test_ranks_are_those_of_a_loop_over_users(make: Any, part: Any, exclude_seen: bool) -> None:
    model, targets = make().eval(), part(DATASET)
    protocol: Protocol = "seen_excluded" if exclude_seen else "seen_included"
    expected = ranks_slowly(model, targets, exclude_seen)
    assert rank_targets(model, targets, (protocol,))[protocol].tolist() == expected
    both = rank_targets(model, targets, ("seen_excluded", "seen_included"))
    assert both[protocol].tolist() == expected
    (other,) = both.keys() - {protocol}
    assert both[other].tolist() == ranks_slowly(model, targets, not exclude_seen)


@pytest.mark.parametrize(
    ("sizes", "largest"),
    [
        ({"SCORES_IN_CACHE": 1, "USERS_AT_ONCE": 1}, 1),
        ({"SCORES_IN_CACHE": 7 * N_ITEMS, "USERS_AT_ONCE": 1}, 7),
        ({"SCORES_IN_CACHE": 7 * N_ITEMS, "USERS_AT_ONCE": 9}, 9),
        ({"TOKENS_AT_ONCE": 20}, 20 // 6),
    ],
)
def test_chunks_are_limited_and_do_not_change_ranks(
    sizes: dict[str, int], largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, targets = make_sasrec().eval(), test_targets(DATASET)
    at_once = included(model, targets)
    for name, value in sizes.items():
        monkeypatch.setattr(ranking, name, value)
    progress: list[float] = []
    chunked = rank_targets(model, targets, advance=progress.append)["seen_included"]
    assert max(progress) == largest
    assert sum(progress) == DATASET.n_users
    assert chunked.tolist() == at_once.tolist()


@given(st.data())
def test_ranks_are_those_of_sorted_lists_whatever_ties_and_seen_items(data: st.DataObject) -> None:
    n_items, n_users = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 6))
    item, scores = st.integers(0, n_items - 1), st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 1.0, 1.0 + 2**-23, np.inf])
    table = data.draw(
        st.lists(st.lists(scores, min_size=n_items, max_size=n_items), min_size=n_users, max_size=n_users)
    )
    histories = data.draw(st.lists(st.lists(item, min_size=1, max_size=12), min_size=n_users, max_size=n_users))
    targets = data.draw(st.lists(item, min_size=n_users, max_size=n_users))
    among = data.draw(st.none() | st.sets(item).map(lambda items: np.isin(np.arange(n_items), [*items, *targets])))
    model = Table(table)
    model.ranks_seen_items = data.draw(st.booleans())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "SCORES_IN_CACHE", data.draw(st.sampled_from([1, 2 * n_items, 1 << 21])))
        patch.setattr(ranking, "USERS_AT_ONCE", data.draw(st.sampled_from([1, 4])))
        found = rank_targets(
            model, Targets(ragged(histories), np.array(targets)), ("seen_included", "seen_excluded"), among=among
        )
    for protocol, ranks in found.items():
        exclude = protocol == "seen_excluded" or not model.ranks_seen_items
        for rank, row, history, target in zip(ranks, table, histories, targets, strict=True):
            last = {*(history if exclude else ()), *(() if among is None else np.flatnonzero(~among))}
            assert rank == rank_slowly([-np.inf if i in last else score for i, score in enumerate(row)], target)


@given(st.data())
def test_a_score_that_is_not_a_number_is_found_in_any_place(data: st.DataObject) -> None:
    n_items, n_users = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 6))
    scores = torch.full((n_users, n_items), data.draw(st.sampled_from([-torch.inf, 0.0, torch.inf])))
    scores[data.draw(st.integers(0, n_users - 1)), data.draw(st.integers(0, n_items - 1))] = torch.nan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "SCORES_IN_CACHE", data.draw(st.sampled_from([1, 2 * n_users, 1 << 21])))
        with pytest.raises(FloatingPointError, match="not a number"):
            ranks_of(scores, torch.zeros(n_users, dtype=torch.int64))


def test_an_item_of_the_history_is_not_ranked_when_histories_are_excluded() -> None:
    targets = Targets(ragged([[0, 2, 0], [1]]), np.array([1, 3]))
    model = Scores([9.0, 1.0, 8.0, 2.0])
    assert included(model, targets).tolist() == [4.0, 3.0]
    assert excluded(model, targets).tolist() == [2.0, 3.0]
    repeated = Targets(ragged([[0, 2, 0]]), np.array([2]))
    assert excluded(model, repeated).tolist() == [np.inf]
    assert set(mean_metrics(excluded(model, repeated)).values()) == {0.0}, "a miss, however few items there are"


def test_items_before_the_longest_history_are_excluded_too() -> None:
    targets = Targets(ragged([[0, 1, 1, 1, 1, 1]]), np.array([2]))
    assert excluded(Scores([9.0, 8.0, 1.0], max_history=2), targets).tolist() == [1.0]


def test_the_model_is_given_no_more_than_its_longest_history() -> None:
    model = Scores([0.0] * N_ITEMS, max_history=3)
    rank_targets(model, test_targets(DATASET))
    assert model.longest_seen == 3


def test_only_the_latest_items_count_when_a_history_is_too_long() -> None:
    model = make_sasrec().eval()  # reads 6 items
    long, cut = ragged([[1, 2, 3, 4, 5, 6, 7, 8]]), ragged([[3, 4, 5, 6, 7, 8]])
    other = ragged([[1, 2, 3, 4, 5, 6, 7, 9]])
    ranks = [[included(model, Targets(h, np.array([t]))).item() for t in range(N_ITEMS)] for h in (long, cut, other)]
    assert ranks[0] == ranks[1]
    assert ranks[0] != ranks[2]


def test_a_diverged_model_is_an_error() -> None:
    with pytest.raises(FloatingPointError):
        rank_targets(Scores([0.0] * 11 + [float("nan")]), test_targets(DATASET))


# The metrics of a data set


@pytest.mark.parametrize("part", ["validation", "test"])
def test_validation_and_test_rank_their_own_item_given_all_before_it(part: str) -> None:
    model = make_sasrec().eval()
    back = 2 if part == "validation" else 1
    histories, targets = [], []
    for user in range(DATASET.n_users):
        history = DATASET.histories[user].tolist()
        histories.append(history[:-back])
        targets.append(history[-back])
    expected = ranks_slowly(model, Targets(ragged(histories), np.array(targets)))
    metrics = evaluate(model, DATASET, part)
    assert metrics == pytest.approx(mean_metrics(np.array(expected)))


def test_evaluation_takes_place_without_dropout_and_leaves_the_mode_as_it_was() -> None:
    model = make_sasrec(dropout=0.5)
    for mode in (True, False):
        model.train(mode)
        assert evaluate(model, DATASET, "test") == evaluate(model, DATASET, "test")
        assert model.training is mode


@pytest.mark.parametrize("name", ["msm4sr", "s3rec"])
def test_evaluating_what_wraps_a_model_leaves_its_mode_too(name: str) -> None:
    model = make_model(name).eval()
    assert isinstance(model, MSM4SR | S3Rec)
    evaluate(model.pretrained_scorer(), DATASET, "test")
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("users", [1, 2, 33])
def test_equal_items_tie_however_many_users_are_ranked_at_once(users: int) -> None:
    """A product of one row can round the scores of equal items differently: seen with 17,033 64-d items."""
    model = make_sasrec(17_033, dim=64, dropout=0.0).eval()
    with torch.no_grad():
        model.item_embedding.weight[1::2] = model.item_embedding.weight[1]
    targets = Targets(ragged([[1, 2]] * users), np.full(users, 3))
    expected = rank_targets(model, Targets(ragged([[1, 2]] * 64), np.full(64, 3)))["seen_included"][0]
    assert rank_targets(model, targets)["seen_included"].tolist() == [expected] * users


def test_histories_are_ranked_unless_excluded() -> None:
    model = make_popularity(list(range(N_ITEMS)))
    protocols = [evaluate(model, DATASET, "test", EvaluationSettings(exclude_seen=e)) for e in (False, True)]
    assert protocols[0] != protocols[1]
