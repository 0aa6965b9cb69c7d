"""Metrics beyond accuracy against loops over users, items and pairs of items."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from builders import make_dataset, make_popularity, make_sasrec, ragged, random_sequences
from hypothesis import given
from hypothesis import strategies as st
from parity.environment import RECTOOLS, ensure_environment

from msm4sr.data import remaining
from msm4sr.data.dataset import Dataset, Targets, item_categories, test_targets, training_histories
from msm4sr.evaluation import beyond_accuracy
from msm4sr.evaluation.beyond_accuracy import BeyondAccuracy, ItemFacts, gini
from msm4sr.evaluation.evaluate import rank_users
from msm4sr.evaluation.metrics import CUTOFFS
from msm4sr.evaluation.ranking import LIST_LENGTH, NO_ITEM, Lists, Protocol, best_items, rank_targets

N_ITEMS = 70


def described_dataset(n_users: int = 40, seed: int = 0) -> Dataset:
    """Users with repeats in their histories; items with no, one or several categories."""
    rng = np.random.default_rng(seed)
    sequences = [rng.integers(0, N_ITEMS // 2, rng.integers(3, 12)).tolist() for _ in range(n_users)]
    categories = [[f"c{c}" for c in rng.integers(0, 6, rng.integers(0, 4))] for _ in range(N_ITEMS)]
    dataset = make_dataset(sequences, N_ITEMS)
    items = dataset.items.with_columns(pl.Series("categories", categories, pl.List(pl.String)))
    return Dataset(dataset.folder, dataset.user_ids, dataset.item_ids, dataset.histories, items, {})


def some_content(seed: int = 0) -> np.ndarray:
    """A vector of each item; every fifth item has none."""
    content = np.random.default_rng(seed).normal(1, 1, (N_ITEMS, 8)).astype(np.float32)
    content[::5] = 0
    return content


def as_lists(rows: Sequence[Sequence[int]]) -> Lists:
    lists = np.full((len(rows), LIST_LENGTH), NO_ITEM, dtype=np.int64)
    for row, items in enumerate(rows):
        lists[row, : len(items)] = items
    return lists


def random_lists(n: int, seed: int = 0, shortest: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.permutation(N_ITEMS)[: rng.integers(shortest, LIST_LENGTH + 1)].tolist() for _ in range(n)]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def mean_distance(items: Sequence[int], vectors: dict[int, np.ndarray]) -> float | None:
    pairs = list(itertools.combinations([item for item in items if item in vectors], 2))
    cosines = [
        float(vectors[a] @ vectors[b]) / math.sqrt(float(vectors[a] @ vectors[a]) * float(vectors[b] @ vectors[b]))
        for a, b in pairs
    ]
    return mean([1 - cosine for cosine in cosines]) if pairs else None


def slowly(dataset: Dataset, content: np.ndarray, rows: Sequence[Sequence[int]]) -> dict[str, float]:
    """The definitions of the module, one list, item and pair at a time."""
    histories = [row.tolist() for row in training_histories(dataset)]
    interactions = [sum(history.count(item) for history in histories) for item in range(N_ITEMS)]
    users = [sum(item in history for history in histories) for item in range(N_ITEMS)]
    n_users = sum(len(history) > 0 for history in histories)
    names = sorted({name for names in dataset.items["categories"].to_list() for name in names or ()})
    vectors = {"content": {i: v.astype(float) for i, v in enumerate(content) if v.any()}, "categories": {}}
    for item, own in enumerate(dataset.items["categories"].to_list()):
        if own:
            vectors["categories"][item] = np.array([float(name in own) for name in names])
    found = {}
    for k in CUTOFFS:
        lists = [row[:k] for row in rows]
        listed = [sum(item in row for row in lists) for item in range(N_ITEMS)]
        found[f"coverage@{k}"] = sum(count > 0 for count in listed) / N_ITEMS
        differences = sum(abs(a - b) for a in listed for b in listed)
        found[f"gini@{k}"] = differences / (2 * N_ITEMS * sum(listed))
        filled = [row for row in lists if row]
        novelty = [mean([math.log2(n_users / max(1, users[item])) for item in row]) for row in filled]
        found[f"novelty@{k}"] = mean(novelty)
        found[f"popularity@{k}"] = mean([mean([interactions[item] for item in row]) for row in filled])
        found[f"cold@{k}"] = mean([mean([float(interactions[item] == 0) for item in row]) for row in filled])
        for name, of_items in vectors.items():
            distances = [mean_distance(row, of_items) for row in lists]
            found[f"diversity_{name}@{k}"] = mean([value for value in distances if value is not None])
    return found


def measured(dataset: Dataset, content: np.ndarray | None, *chunks: Lists) -> dict[str, float]:
    sums = BeyondAccuracy(ItemFacts.of(dataset, content))
    for lists in chunks:
        sums.add(lists)
    return sums.metrics()


@pytest.mark.parametrize("seed", range(5))
def test_metrics_are_those_of_loops_over_lists_items_and_pairs(seed: int) -> None:
    dataset, content, rows = described_dataset(seed=seed), some_content(seed), random_lists(60, seed)
    assert measured(dataset, content, as_lists(rows)) == pytest.approx(slowly(dataset, content, rows), abs=1e-12)


def test_chunks_of_lists_and_of_interactions_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, content, lists = described_dataset(), some_content(), as_lists(random_lists(50))
    at_once = measured(dataset, content, lists)
    monkeypatch.setattr(beyond_accuracy, "LISTS_AT_ONCE", 7)
    for size in (1, 3, 8):
        monkeypatch.setattr(remaining, "CHUNK", size)
        chunks = [lists[start : start + 9] for start in range(0, len(lists), 9)]
        assert measured(dataset, content, *chunks) == pytest.approx(at_once, abs=1e-12)


def test_users_who_are_not_trained_on_make_nothing_popular() -> None:
    dataset = described_dataset()
    trained_on = np.arange(dataset.n_users) < 10
    part = Dataset(
        dataset.folder, dataset.user_ids, dataset.item_ids, dataset.histories, dataset.items, {}, (), trained_on
    )
    rows = random_lists(20, shortest=2)
    assert measured(part, some_content(), as_lists(rows)) == pytest.approx(slowly(part, some_content(), rows))


def test_without_content_or_categories_there_is_no_diversity_by_them() -> None:
    plain, lists = make_dataset(random_sequences(20, N_ITEMS, longest=9), N_ITEMS), as_lists(random_lists(5))
    for content in (None, np.zeros((N_ITEMS, 4), np.float32)):
        names = {name.partition("@")[0] for name in measured(plain, content, lists)}
        assert names == {"coverage", "gini", "novelty", "popularity", "cold"}


def test_lists_without_a_pair_of_described_items_have_no_diversity() -> None:
    dataset, content = described_dataset(), some_content()
    alone = as_lists([[0, 1], [5, 10, 2], [3]])  # 0, 5, 10 have no content
    assert "diversity_content@10" not in measured(dataset, content, alone)
    pair = as_lists([[1, 2], [0, 1]])
    expected = mean_distance([1, 2], {i: content[i].astype(float) for i in (1, 2)})
    assert measured(dataset, content, pair)["diversity_content@10"] == pytest.approx(expected)


def test_the_same_list_for_everybody_has_the_least_coverage_and_the_highest_gini() -> None:
    dataset, content = described_dataset(), some_content()
    same = measured(dataset, content, as_lists([list(range(LIST_LENGTH))] * 30))
    others = measured(dataset, content, as_lists(random_lists(30, shortest=LIST_LENGTH)))
    for k in CUTOFFS:
        assert same[f"coverage@{k}"] == k / N_ITEMS < others[f"coverage@{k}"]
        assert same[f"gini@{k}"] == pytest.approx(1 - k / N_ITEMS)
        assert same[f"gini@{k}"] > others[f"gini@{k}"]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30))
def test_gini_is_the_mean_absolute_difference_over_twice_the_mean(counts: list[int]) -> None:
    n, total = len(counts), sum(counts)
    expected = sum(abs(a - b) for a in counts for b in counts) / (2 * n * total) if total else 0.0
    assert gini(np.array(counts)) == pytest.approx(expected)


# The lists


@given(st.data())
def test_lists_are_the_first_of_a_stable_sort_without_minus_infinity(data: st.DataObject) -> None:
    value = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 1.0, np.inf])
    n = data.draw(st.integers(1, 12))
    table = data.draw(st.lists(st.lists(value, min_size=n, max_size=n), min_size=1, max_size=5))
    k = data.draw(st.integers(1, 14))
    for row, scores in zip(best_items(torch.tensor(table), k).tolist(), table, strict=True):
        order = sorted((i for i in range(n) if scores[i] > -np.inf), key=lambda i: -scores[i])[:k]
        assert row == order + [NO_ITEM] * (k - len(order))


def lists_of(model: Any, dataset: Dataset) -> dict[Protocol, Lists]:
    """The lists of the test part, by protocol."""
    found: dict[Protocol, list[Lists]] = {"seen_included": [], "seen_excluded": []}
    rank_users(model, dataset, "test", tuple(found), on_lists=lambda protocol, _, lists: found[protocol].append(lists))
    return {protocol: np.concatenate(lists) for protocol, lists in found.items()}


@pytest.mark.parametrize(
    "make", [lambda: make_sasrec(n_items=N_ITEMS), lambda: make_popularity([i // 9 for i in range(N_ITEMS)])]
)
def test_each_user_has_the_best_items_of_each_protocol(make: Callable[[], Any]) -> None:
    dataset, model = described_dataset(), make().eval()
    together, targets = lists_of(model, dataset), test_targets(dataset)
    for protocol, lists in together.items():
        one_by_one = []
        for user in range(dataset.n_users):
            alone = Targets(targets.histories.take(np.array([user])), targets.targets[[user]], np.array([user]))
            own: list[Lists] = []
            rank_targets(model, alone, (protocol,), on_lists=lambda *chunk, own=own: own.append(chunk[2]))
            (row,) = own[0].tolist()
            one_by_one.append(row)
            if protocol == "seen_excluded":
                assert not {*row} & {*targets.histories[user].tolist()}
        assert sorted(lists.tolist()) == sorted(one_by_one)


def test_a_list_is_shorter_where_most_items_are_seen() -> None:
    history = list(range(N_ITEMS - 3))
    targets = Targets(ragged([history]), np.array([N_ITEMS - 1]))
    own: list[list[int]] = []
    model = make_popularity(list(range(N_ITEMS)))
    rank_targets(model, targets, ("seen_excluded",), on_lists=lambda *chunk: own.extend(chunk[2].tolist()))
    assert own == [[N_ITEMS - 1, N_ITEMS - 2, N_ITEMS - 3] + [NO_ITEM] * (LIST_LENGTH - 3)]


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["seen_included", "seen_excluded"])
def test_metrics_are_those_of_rectools(protocol: Protocol, tmp_path: Path) -> None:
    """RecTools has an environment of its own, created on first use; the Gini index is PySAL's."""
    python = ensure_environment(Path(__file__).parents[2] / ".venv-rectools", RECTOOLS)
    dataset, content = described_dataset(200), some_content()
    lists = lists_of(make_sasrec(n_items=N_ITEMS), dataset)[protocol]
    assert (lists != NO_ITEM).all()
    rows, names = item_categories(dataset)
    categories = np.zeros((N_ITEMS, len(names)))
    categories[rows.row_numbers, rows.values] = 1
    np.save(tmp_path / "content.npy", content)
    np.save(tmp_path / "categories.npy", categories)
    histories = training_histories(dataset)
    interactions = np.stack([histories.row_numbers, histories.values], axis=1).tolist()
    job = {"k": CUTOFFS, "lists": lists.tolist(), "interactions": interactions}
    (tmp_path / "lists.json").write_text(json.dumps(job))
    subprocess.run([python, "-W", "ignore", RECTOOLS.with_name("rectools_metrics.py"), tmp_path], check=True, env={})
    theirs = json.loads((tmp_path / "metrics.json").read_text())
    assert measured(dataset, content, lists) == pytest.approx(theirs, rel=0, abs=1e-9)
