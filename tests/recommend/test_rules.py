"""Rules: filters, boosts and diversity, against a slow reference."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from indexes import KINDS, make_index
from services import make_recommender, new_item
from test_recommended_order import RunningMean, integers

from msm4sr.data.items import Items
from msm4sr.errors import InputError
from msm4sr.recommend.catalogue import Catalogue
from msm4sr.recommend.diversity import diversify, pool_size
from msm4sr.recommend.index import IndexedItems
from msm4sr.recommend.recommender import Recommender
from msm4sr.recommend.rules import Rules
from msm4sr.recommend.scoring import make_queries, score_all

CATEGORIES = {
    "even": {row for row in range(12) if row % 2 == 0},
    "third": {row for row in range(12) if row % 3 == 0},
    "small": {0, 1, 2, 3},
}
COUNTS = [(7 * row) % 5 for row in range(12)]


def shop(model: str) -> Recommender:
    """Twelve items with overlapping categories; item 11 was added, item 10 removed."""
    made = make_recommender(model)
    names = [tuple(name for name, rows in CATEGORIES.items() if row in rows) for row in range(12)]
    items = made.catalogue.items
    items = Items(items.item_ids, items.titles, items.texts, names, items.images)
    recommender = Recommender(made.model, Catalogue.of_model(made.model, items, COUNTS), made.encoder)
    recommender.remove_items(["i10"])
    if made.encoder is not None:
        recommender.add_items([new_item("n0", image=b"x", categories=["even", "new"])])
    return recommender


SHOPS = {model: shop(model) for model in ("msm4sr", "itemknn")}
IDS = [*(f"i{row}" for row in range(12)), "n0", "gone"]
names = st.lists(st.sampled_from([*CATEGORIES, "new", "none"]), max_size=3)
ids = st.lists(st.sampled_from(IDS), max_size=8)
boosts = st.floats(-3, 3, allow_subnormal=False)
some_rules = st.builds(
    Rules,
    include_categories=st.none() | names,
    exclude_categories=names,
    candidates=st.none() | ids,
    exclude_items=ids,
    boost_categories=st.dictionaries(st.sampled_from([*CATEGORIES, "new", "none"]), boosts, max_size=3),
    boost_items=st.dictionaries(st.sampled_from(IDS), boosts, max_size=3),
    diversity=st.just(0.0) | st.floats(0, 1),
)
histories = st.sampled_from([[], ["gone"], ["i3", "i1", "i5"], ["i3", "i10", "n0"], ["i0"]])


def fits(rules: Rules, item_id: str, categories: Sequence[str]) -> bool:
    return (
        (rules.include_categories is None or bool({*categories} & {*rules.include_categories}))
        and not {*categories} & {*rules.exclude_categories}
        and (rules.candidates is None or item_id in rules.candidates)
        and item_id not in rules.exclude_items
    )


def slow_scores(recommender: Recommender, history: list[str], rules: Rules) -> dict[str, float]:
    """Id to score of the unseen items that fit, computed from the scores without rules."""
    catalogue = recommender.catalogue
    (query,) = make_queries(recommender.model, catalogue, [catalogue.known_rows(history)[0]])
    # as if nothing were removed
    every = score_all(recommender.model, replace(catalogue, removed=frozenset()), query).tolist()
    deviation = statistics.pstdev(every[:12])
    found = {}
    for one in recommender.recommend(history, 100).items:
        categories = recommender.item(one.item_id).categories
        if fits(rules, one.item_id, categories):
            boost = rules.boost_items.get(one.item_id, 0)
            boost += sum(rules.boost_categories.get(name, 0) for name in categories)
            found[one.item_id] = one.score + deviation * boost
    return found


@given(model=st.sampled_from([*SHOPS]), history=histories, rules=some_rules, k=st.integers(1, 15))
def test_all_and_only_the_items_that_fit_are_ranked_by_their_boosted_scores(
    model: str, history: list[str], rules: Rules, k: int
) -> None:
    recommender = SHOPS[model]
    with torch.inference_mode():
        expected = slow_scores(recommender, history, rules)
    found = recommender.recommend(history, k, rules=rules).items
    assert len({one.item_id for one in found}) == len(found) == min(k, len(expected))
    for one in found:
        assert one.score == pytest.approx(expected[one.item_id], abs=1e-4)
    if not rules.diversity:
        best = sorted(expected.values(), reverse=True)[:k]
        assert [one.score for one in found] == pytest.approx(best, abs=1e-4)
    elif found:
        assert found[0].score == pytest.approx(max(expected.values()), abs=1e-4)


@given(model=st.sampled_from([*SHOPS]), history=histories, k=st.integers(1, 15))
def test_without_rules_and_with_rules_that_change_nothing_the_result_is_the_same(
    model: str, history: list[str], k: int
) -> None:
    plain = SHOPS[model].recommend(history, k).items
    neutral = Rules(exclude_categories=["none"], exclude_items=["gone"], boost_categories={"none": 5}, diversity=0)
    for rules in (Rules(), neutral, Rules(candidates=IDS), Rules(boost_items={"gone": 1.0})):
        ruled = SHOPS[model].recommend(history, k, rules=rules).items
        assert [one.item_id for one in ruled] == [one.item_id for one in plain]
        assert [one.score for one in ruled] == pytest.approx([one.score for one in plain], abs=1e-5)


def test_boosts_of_an_item_add_up_in_units_of_the_standard_deviation() -> None:
    """Scores 0, 2, 4, 6: mean 3, standard deviation sqrt(5)."""
    vectors = torch.tensor([[0.0, 1.0], [2.0, 0.0], [4.0, 0.0], [6.0, 0.0], [1.0, 0.0]])[:, :1]
    recommender = of_vectors("exact", vectors, [("a",), ("a", "b"), ("b",), (), ()], Path())
    rules = Rules(boost_categories={"a": 1, "b": 0.5}, boost_items={"i1": -0.25, "i3": -3})
    deviation = statistics.pstdev([0, 2, 4, 6, 1])
    found = recommender.recommend(["i4"], rules=rules).items
    assert {one.item_id: one.score for one in found} == pytest.approx(
        {"i1": 2 + 1.25 * deviation, "i2": 4 + 0.5 * deviation, "i0": deviation, "i3": 6 - 3 * deviation}, abs=1e-5
    )
    assert [one.rank for one in found] == [1, 2, 3, 4]


@pytest.mark.parametrize("by", ["text", "visual"])
def test_boosts_of_scores_by_one_modality_are_in_units_of_these_scores(by: str) -> None:
    """With mean scores, an item with both modalities has half of its product in each."""
    recommender = make_recommender("msm4sr", modality_scores="mean")
    seen = ["i3", "i1", "i5"]
    (query,) = make_queries(recommender.model, recommender.catalogue, [[3, 1, 5]], by)
    with torch.inference_mode():
        scores = score_all(recommender.model, recommender.catalogue, query).tolist()
    deviation = statistics.pstdev([score for score in scores if math.isfinite(score)])
    worst = recommender.recommend(seen, by=by).items[-1]
    (found,) = recommender.recommend(seen, 1, by=by, rules=Rules(boost_items={worst.item_id: 5})).items
    assert (found.item_id, found.score) == (worst.item_id, pytest.approx(worst.score + 5 * deviation, abs=1e-4))


def test_boosts_order_items_of_equal_scores() -> None:
    recommender = of_vectors("exact", torch.ones(4, 2), [(), ("a",), (), ()], Path())
    rules = Rules(boost_categories={"a": 0.1}, boost_items={"i3": 0.2})
    for history in ([], ["i0"]):
        found = recommender.recommend(history, 2, rules=rules).items
        assert [one.item_id for one in found] == ["i3", "i1"]


def test_an_added_item_with_the_id_of_a_removed_one_has_its_own_categories() -> None:
    recommender = make_recommender()
    recommender.remove_items(["i2"])
    even, odd = Rules(include_categories=["even"]), Rules(include_categories=["odd"])
    assert "i2" not in {one.item_id for one in recommender.recommend(["i1"], 20, rules=even).items}
    recommender.add_items([new_item("i2", image=b"x", categories=["odd", "odd"])])
    assert "i2" not in {one.item_id for one in recommender.recommend(["i1"], 20, rules=even).items}
    assert "i2" in {one.item_id for one in recommender.recommend(["i1"], 20, rules=odd).items}
    recommender.remove_items(["i2"])
    assert "i2" not in {one.item_id for one in recommender.recommend(["i1"], 20, rules=odd).items}
    assert recommender.catalogue.categories == ["even", "odd"]


# -- an approximate index


def of_vectors(kind: str, vectors: torch.Tensor, categories: list[tuple[str, ...]], folder: Path) -> Recommender:
    """Over items i0, i1, ... with these vectors; through an index of this kind."""
    n = len(vectors)
    model = RunningMean(vectors).eval()
    items = Items([f"i{row}" for row in range(n)], [None] * n, [None] * n, categories, [()] * n)
    index = make_index(kind, IndexedItems(vectors, items.item_ids, categories, lambda: vectors[:20], folder))
    return Recommender(model, Catalogue.of_model(model, items, [0] * n), index=index)


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize(
    "rules",
    [
        Rules(include_categories=["rare"]),
        Rules(include_categories=["half"]),
        Rules(include_categories=["half"], exclude_categories=["rare", "tenth"]),
        Rules(exclude_items=[f"i{row}" for row in range(0, 4000, 2)]),
        Rules(candidates=[f"i{row}" for row in range(0, 4000, 7)]),
        Rules(boost_categories={"rare": 2.0}),
        Rules(boost_categories={"half": 0.5, "tenth": 1.0}),
        Rules(boost_categories={"half": -2.0}),
        Rules(include_categories=["half"], boost_categories={"tenth": -1.0}, boost_items={"i7": 4.0}),
        Rules(boost_categories={"half": -1.0}, diversity=0.5),
    ],
    ids=str,
)
def test_an_index_and_all_scores_give_the_same_items(
    rules: Rules, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Boosts may rank items high that the index does not find, and low those that it finds."""
    monkeypatch.setattr("msm4sr.recommend.index.approximate.FEW", 100)  # so that the index searches by category
    n = 4000
    vectors = torch.randn(n, 8, generator=torch.Generator().manual_seed(1))
    categories = [
        tuple(name for name, every in (("half", 2), ("tenth", 10), ("rare", 200)) if row % every == 0)
        for row in range(n)
    ]
    exact, through = (of_vectors(one, vectors, categories, tmp_path) for one in ("exact", kind))
    histories = [[f"i{row}", f"i{3 * row}"] for row in range(20)]
    same = 0
    all_scores, by_index = (made.recommend_batch(histories, 10, rules=rules) for made in (exact, through))
    for one, other in zip(all_scores, by_index, strict=True):
        assert len(one.items) == len(other.items) == 10
        same += len({item.item_id for item in one.items} & {item.item_id for item in other.items})
    assert same >= 0.98 * 200


# -- diversity


def slow_values(
    scores: Sequence[float], vectors: Sequence[Sequence[float]], chosen: list[int], d: float
) -> list[float]:
    """The value of maximal marginal relevance of each item, -inf for those that are chosen."""

    def cosine(one: Sequence[float], other: Sequence[float]) -> float:
        lengths = math.hypot(*one) * math.hypot(*other)
        return sum(a * b for a, b in zip(one, other, strict=True)) / lengths if lengths else 0.0

    spread = max(scores) - min(scores)
    values = []
    for i, score in enumerate(scores):
        relevance = (score - min(scores)) / spread if spread else 0.0
        closest = max((cosine(vectors[i], vectors[j]) for j in chosen), default=0.0)
        values.append(-math.inf if i in chosen else (1 - d) * relevance - d * closest)
    return values


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(2, 30),
    k=st.integers(1, 12),
    diversity=st.floats(0.01, 1),
    popular=st.booleans(),
)
def test_each_item_has_the_highest_marginal_relevance(
    seed: int, n: int, k: int, diversity: float, popular: bool
) -> None:
    """Against the formula, written as loops. Several items may have the highest value."""
    vectors, history = integers(n, 4, seed), [] if popular else [f"i{seed % n}"]
    recommender = of_vectors("exact", vectors, [()] * n, Path())
    ranked = recommender.recommend(history, 1000).items
    found = recommender.recommend(history, k, rules=Rules(diversity=diversity)).items
    assert len(found) == min(k, len(ranked))
    pool = ranked[: pool_size(k)]
    rows = [int(one.item_id[1:]) for one in pool]
    chosen: list[int] = []
    for one in found:
        place = rows.index(int(one.item_id[1:]))
        values = slow_values([one.score for one in pool], vectors[rows].tolist(), chosen, diversity)
        assert values[place] >= max(values) - 1e-5
        assert one.score == pool[place].score
        chosen.append(place)


def test_more_diversity_means_less_similar_items() -> None:
    vectors = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    recommender = of_vectors("exact", vectors, [()] * 300, Path())
    histories, means = [[f"i{row}"] for row in range(20)], []
    for diversity in (0.0, 0.5, 1.0):
        lists = recommender.recommend_batch(histories, 10, rules=Rules(diversity=diversity))
        rows = torch.tensor([[int(one.item_id[1:]) for one in found.items] for found in lists])
        unit = torch.nn.functional.normalize(vectors[rows], dim=2)  # [lists, 10, 8]
        means.append(float((unit @ unit.mT).mean()))
    assert means[0] > means[1] > means[2]


def test_of_equal_items_the_order_of_the_pool_decides() -> None:
    assert diversify(np.ones(5), lambda place: np.ones(5), 4, 0.5) == [0, 1, 2, 3]
    assert diversify(np.zeros(0), lambda place: np.zeros(0), 4, 0.5) == []


def test_the_pool_is_bounded() -> None:
    assert [pool_size(k) for k in (1, 10, 100, 200, 5000)] == [10, 100, 1000, 1000, 5000]


# -- wrong input


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"include_categories": "Toys"}, r"include_categories is the text 'Toys': give a list, such as \['Toys'\]"),
        ({"exclude_items": "i1"}, "exclude_items is the text 'i1'"),
        ({"boost_categories": {"a": 101}}, "boost_categories: 'a' has the boost 101: give a number from -100 to 100"),
        ({"boost_items": {"i1": math.nan}}, "boost_items: 'i1' has the boost nan"),
        ({"diversity": 1.5}, "diversity is 1.5: give a number from 0 to 1"),
        ({"diversity": math.nan}, "diversity is nan"),
    ],
)
def test_a_rule_out_of_range_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Rules(**wrong)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (Rules(include_categories=["EVENS"]), "no category 'EVENS' in the catalogue: did you mean 'even'"),
        (Rules(boost_categories={"x": 1}), "no category 'x' in the catalogue: did you mean 'even', 'odd'"),
        (Rules(exclude_items=["i99"]), "no item 'i99' in the catalogue of 12: did you mean 'i9'"),
    ],
)
def test_a_strict_recommender_names_what_the_catalogue_lacks(rules: Rules, message: str) -> None:
    recommender = make_recommender()
    assert recommender.recommend(["i1"], 3, rules=rules) is not None
    recommender.strict = True
    with pytest.raises(InputError, match=message):
        recommender.recommend(["i1"], rules=rules)
