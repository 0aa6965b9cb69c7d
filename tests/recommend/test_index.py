"""What every index does, and recommendations through each."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from indexes import EFFORT, KINDS, SETTINGS, make_index, some_items
from services import make_catalogue, make_recommender, new_item

from msm4sr.errors import InputError
from msm4sr.experiments.loading import load_recommender
from msm4sr.recommend.index import ALL, IndexedItems, IndexSettings, VectorIndex, Within, top_k
from msm4sr.recommend.index.approximate import ApproximateIndex
from msm4sr.recommend.index.usearch_index import UsearchIndex
from msm4sr.recommend.recommender import Recommender
from msm4sr.recommend.rules import Rules

HALF = 2000  # rows among which the searches of the tests are small


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> IndexedItems:
    return some_items(tmp_path_factory.mktemp("items"))


@pytest.fixture(scope="module", params=KINDS)
def index(request: pytest.FixtureRequest, items: IndexedItems) -> VectorIndex:
    return make_index(request.param, items, EFFORT)


@given(st.lists(st.integers(-3, 3), max_size=40), st.integers(0, 45))
def test_top_k_agrees_with_a_stable_sort(scores: list[int], k: int) -> None:
    expected = sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:k]
    assert top_k(torch.tensor(scores, dtype=torch.float32), k).tolist() == expected


def test_top_k_excludes_minus_infinity() -> None:
    assert top_k(torch.tensor([-torch.inf, 1.0, -torch.inf, 2.0]), 4).tolist() == [3, 1]


def check_search(index: VectorIndex, items: IndexedItems, query: torch.Tensor, k: int, within: Within = ALL) -> int:
    """Check the rows and scores of a search; the number of the exact best that it did not find."""
    scores = items.vectors @ query
    allowed = torch.zeros(len(scores), dtype=torch.bool)
    allowed[slice(None) if within.among is None else within.among] = True
    allowed[within.excluded] = False
    found = index.search(query, k, within)
    assert len(found.rows) == min(k, int(allowed.sum()))
    assert len(found.rows.unique()) == len(found.rows)
    assert allowed[found.rows].all()
    torch.testing.assert_close(found.scores, scores[found.rows])
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    best = top_k(scores.masked_fill(~allowed, -torch.inf), k)
    return len({*best.tolist()} - {*found.rows.tolist()})


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_searches_of_several_queries_are_those_of_each(
    at_once: int, index: VectorIndex, items: IndexedItems, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msm4sr.recommend.index.base.SCORES_AT_ONCE", at_once * len(items.vectors))
    queries, some = items.queries()[:7], torch.arange(5, HALF, 3)
    for among in (None, some):
        within = [
            Within(among, excluded=top_k(items.vectors @ query, 2 * place)) for place, query in enumerate(queries)
        ]
        together = index.search_each(queries, 20, within)
        for query, one, found in zip(queries, within, together, strict=True):
            alone = index.search(query, 20, one)
            assert found.rows.tolist() == alone.rows.tolist()
            torch.testing.assert_close(found.scores, alone.scores)


def test_a_search_finds_the_best(index: VectorIndex, items: IndexedItems) -> None:
    for query in items.queries():
        for k in (1, 20, 200):
            assert check_search(index, items, query, k) == 0
    index.check()


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_search_finds_nearly_all_of_the_best_by_default(kind: str, items: IndexedItems) -> None:
    index = make_index(kind, items)
    missed = [check_search(index, items, query, 20) for query in items.queries()]
    assert index.recall == pytest.approx(1 - sum(missed) / (20 * len(missed)), abs=1e-4)
    assert index.recall > 0.95


def test_a_graph_of_several_threads_finds_nearly_all_of_the_best(
    items: IndexedItems, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msm4sr.recommend.index.usearch_index.ONE_THREAD", 0)
    monkeypatch.setattr("msm4sr.recommend.index.usearch_index.BLOCK", 700)
    index = UsearchIndex.open(replace(items, folder=tmp_path), SETTINGS)
    missed = [check_search(index, items, query, 20) for query in items.queries()]
    assert sum(missed) < 0.1 * 20 * len(missed), "which ones depends on the order in which the threads add items"


@given(
    seed=st.integers(0, 49),
    k=st.integers(1, 400),
    excluded=st.lists(st.integers(0, 2999), max_size=1500, unique=True),
    among=st.none() | st.lists(st.integers(0, 2999), max_size=300, unique=True),
)
def test_rows_are_excluded_and_searched_among(
    index: VectorIndex, items: IndexedItems, seed: int, k: int, excluded: list[int], among: list[int] | None
) -> None:
    rows = None if among is None else torch.tensor(sorted(among), dtype=torch.int64)
    within = Within(rows, excluded=torch.tensor(excluded, dtype=torch.int64))
    assert check_search(index, items, items.queries()[seed], k, within) == 0


@pytest.mark.parametrize("names", [["odd"], ["third"], ["third", "even"], ["missing"]])
def test_categories_are_searched(
    index: VectorIndex, items: IndexedItems, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msm4sr.recommend.index.approximate.FEW", 0)
    rows = [row for row, categories in enumerate(items.categories) if {*names} & {*categories}]
    among = torch.tensor(rows, dtype=torch.int64)
    excluded = top_k(items.vectors @ items.queries()[0], 100)
    for within in (Within(among, names), Within(among, names, excluded)):
        assert check_search(index, items, items.queries()[0], 20, within) == 0


def test_many_excluded_rows_are_no_results(index: VectorIndex, items: IndexedItems) -> None:
    """More than are sent with a search, and all of the best."""
    query = items.queries()[0]
    excluded = top_k(items.vectors @ query, HALF)
    assert check_search(index, items, query, 20, Within(excluded=excluded)) == 0


def through(kind: str, tmp_path: Path, **changes: Any) -> tuple[Recommender, Recommender]:
    """A recommender whose index is of this kind, and one that compares all items."""
    exact = make_recommender(**changes)
    catalogue = make_catalogue(exact.model)
    vectors, items = catalogue.tensors.item_vectors, catalogue.items
    indexed = IndexedItems(vectors, items.item_ids, items.categories, lambda: vectors, tmp_path)
    return Recommender(exact.model, catalogue, exact.encoder, index=make_index(kind, indexed)), exact


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Approximate indexes search catalogues of any size; what they were asked for."""
    monkeypatch.setattr("msm4sr.recommend.index.approximate.APPROXIMATE_SHARE", 1)
    search, asked = ApproximateIndex.search, list[int]()

    def counted(index: ApproximateIndex, query: torch.Tensor, k: int, within: Within = ALL) -> Any:
        asked.append(k)
        return search(index, query, k, within)

    monkeypatch.setattr(ApproximateIndex, "search", counted)
    return asked


@pytest.mark.parametrize("kind", KINDS)
def test_added_and_removed_items_need_no_new_index(kind: str, tmp_path: Path, asked: list[int]) -> None:
    indexed, exact = through(kind, tmp_path)
    for recommender in (exact, indexed):
        recommender.add_items([new_item("n0", image=b"x"), new_item("n1")])
        recommender.remove_items(["i4", "n1"])
    for more in (
        {},
        {"exclude_seen": False},
        {"rules": Rules(include_categories=["odd"])},
        {"rules": Rules(exclude_categories=["odd"], exclude_items=["i2"])},
        {"rules": Rules(candidates=["i1", "i4", "n0", "i7", "n1"])},
        {"rules": Rules(boost_categories={"odd": -1.0}, boost_items={"i5": 2.0, "i1": 3.0, "n0": -0.5})},
        {"rules": Rules(diversity=0.5)},
    ):
        for k in (1, 3, 20):
            found, expected = (one.recommend(["i3", "i1"], k, **more).items for one in (indexed, exact))  # type: ignore
            assert [one.item_id for one in found] == [one.item_id for one in expected]
            assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-5)
    assert bool(asked) is (kind != "exact")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [-20.0, 20.0])
def test_seen_items_are_found_or_not_as_the_model_scores_them(
    kind: str, bias: float, tmp_path: Path, asked: list[int]
) -> None:
    """The index has the products only; the model adds a bias to the seen items."""
    indexed, exact = through(kind, tmp_path, seen_item_bias=True)
    for recommender in (exact, indexed):
        recommender.model.seen_item_bias.data.fill_(bias)  # type: ignore[union-attr, operator]
        recommender.add_items([new_item("n0", image=b"x")])
    history = ["i3", "n0", "i1"]
    for k in (1, 3, 5):
        (found, expected) = (one.recommend(history, k, exclude_seen=False).items for one in (indexed, exact))
        assert [one.item_id for one in found] == [one.item_id for one in expected]
        assert ({one.item_id for one in found} <= set(history)) is (bias > 0 and k <= 3)


def test_a_run_stores_its_index_in_its_model_folder(run_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_folder, tmp_path / "copy")
    first = load_recommender(copy, SETTINGS)
    assert first.index.kind == "approximate"
    assert {"index.usearch", "index.json"} <= {path.name for path in (copy / "model").iterdir()}
    assert (first.index.recall or 0) > 0.9
    assert load_recommender(copy).index.kind == "exact"
    assert load_recommender(copy, IndexSettings(approximate_from=60)).index.kind == "approximate"


def test_the_recall_of_an_index_is_measured_without_histories_too(run_folder: Path, tmp_path: Path) -> None:
    other, log = tmp_path / "other", {"user_id": ["u"] * 3, "item_id": ["a", "b", "c"], "position": [0, 1, 2]}
    other.mkdir()
    pl.DataFrame(log).write_parquet(other / "interactions.parquet")
    for name, data in (("gone", tmp_path / "nowhere"), ("others", other)):
        recommender = load_recommender(shutil.copytree(run_folder, tmp_path / name), SETTINGS, data=data)
        assert (recommender.index.recall or 0) > 0.9


def test_an_unknown_kind_is_named_with_the_closest(run_folder: Path) -> None:
    with pytest.raises(
        InputError, match=r"--index: there is no vector index 'qdrnt', only .*; did you mean 'qdrant'\?"
    ):
        IndexSettings.parse("qdrnt=http://localhost:6333")
    with pytest.raises(InputError, match="there is no vector index 'faiss'"):
        load_recommender(run_folder, IndexSettings(kind="faiss"))
    assert IndexSettings.parse("qdrant=http://a:1").model_dump(include={"kind", "address"}) == {
        "kind": "qdrant",
        "address": "http://a:1",
    }
