from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from builders import wrong_modes
from hypothesis import given
from hypothesis import strategies as st
from services import make_catalogue, make_recommender, new_item

from msm4sr.digests import file_digest
from msm4sr.experiments.loading import load_recommender
from msm4sr.recommend.index import ApproximateIndex, IndexSettings, top_k
from msm4sr.recommend.recommender import Recommender
from msm4sr.recommend.rules import Rules

SETTINGS = IndexSettings(kind="approximate")


@given(st.lists(st.integers(-3, 3), max_size=40), st.integers(0, 45))
def test_top_k_agrees_with_a_stable_sort(scores: list[int], k: int) -> None:
    expected = sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:k]
    assert top_k(torch.tensor(scores, dtype=torch.float32), k) == expected


def test_top_k_excludes_minus_infinity() -> None:
    assert top_k(torch.tensor([-torch.inf, 1.0, -torch.inf, 2.0]), 4) == [3, 1]


def some_vectors(n: int = 3000, q: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Item vectors of very different lengths, so that the best by cosine are not the best by product; and queries."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(n, q, generator=generator) * torch.rand(n, 1, generator=generator) * 5
    return vectors, torch.randn(50, q, generator=generator)


def test_an_index_finds_nearly_all_of_the_best_and_records_its_recall(tmp_path: Path, umask: None) -> None:
    vectors, queries = some_vectors()
    index = ApproximateIndex.open(tmp_path, vectors, queries, SETTINGS)
    shares = [
        len(set(index.search(query, 20).tolist()) & set(torch.topk(vectors @ query, 20).indices.tolist())) / 20
        for query in queries
    ]
    assert index.recall == pytest.approx(sum(shares) / len(shares), abs=1e-4)
    assert index.recall > 0.95
    assert not wrong_modes(tmp_path)
    about = json.loads((tmp_path / "index.json").read_text())
    assert (about["recall@20"], about["items"], about["queries"]) == (index.recall, 3000, 50)


def test_an_index_is_opened_again_and_finds_the_same(tmp_path: Path) -> None:
    vectors, queries = some_vectors()
    first = ApproximateIndex.open(tmp_path, vectors, queries, SETTINGS)
    written = (tmp_path / "index.usearch").stat().st_mtime_ns
    again = ApproximateIndex.open(tmp_path, vectors, queries, SETTINGS)
    assert (tmp_path / "index.usearch").stat().st_mtime_ns == written
    assert again.about == first.about
    for query in queries:
        assert sorted(again.search(query, 20).tolist()) == sorted(first.search(query, 20).tolist())


@pytest.mark.parametrize("what", ["other vectors", "other settings", "cut short", "a byte", "no json"])
def test_an_index_that_does_not_fit_is_built_again(tmp_path: Path, what: str) -> None:
    vectors, queries = some_vectors(500)
    ApproximateIndex.open(tmp_path, vectors, queries, SETTINGS)
    settings = SETTINGS
    if what == "other vectors":
        vectors, queries = some_vectors(500, seed=1)
    elif what == "other settings":
        settings = IndexSettings(kind="approximate", connectivity=8)
    elif what in ("cut short", "a byte"):
        data = (tmp_path / "index.usearch").read_bytes()
        changed = data[: len(data) // 2] if what == "cut short" else data[:-99] + bytes([data[-99] ^ 1]) + data[-98:]
        (tmp_path / "index.usearch").write_bytes(changed)
    else:
        (tmp_path / "index.json").write_text("{")
    index = ApproximateIndex.open(tmp_path, vectors, queries, settings)
    assert index.recall > 0.9
    assert json.loads((tmp_path / "index.json").read_text()) == index.about
    assert index.about["checksum"] == file_digest(tmp_path / "index.usearch")


def approximate(tmp_path: Path, **changes: object) -> tuple[Recommender, Recommender]:
    """An exact and an approximate recommender of the same items."""
    exact = make_recommender(**changes)
    catalogue = make_catalogue(exact.model)
    vectors = catalogue.tensors.item_vectors
    index = ApproximateIndex.open(tmp_path, vectors, vectors, SETTINGS)
    return exact, Recommender(exact.model, catalogue, exact.encoder, index=index)


def test_added_and_removed_items_need_no_new_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msm4sr.recommend.scoring.APPROXIMATE_SHARE", 1)
    exact, through = approximate(tmp_path)
    asked: list[int] = []
    search = ApproximateIndex.search

    def counted(index: ApproximateIndex, query: torch.Tensor, k: int) -> torch.Tensor:
        asked.append(k)
        return search(index, query, k)

    monkeypatch.setattr(ApproximateIndex, "search", counted)
    for recommender in (exact, through):
        recommender.add_items([new_item("n0", image=b"x"), new_item("n1")])
        recommender.remove_items(["i4", "n1"])
    for k in (1, 3, 20):
        found = through.recommend(["i3", "i1"], k)
        assert [o.item_id for o in found.items] == [o.item_id for o in exact.recommend(["i3", "i1"], k).items]
        scores = [o.score for o in exact.recommend(["i3", "i1"], k).items]
        assert [o.score for o in found.items] == pytest.approx(scores, abs=1e-5)
    odd = Rules(include_categories=["odd"])
    filtered = [[o.item_id for o in one.recommend(["i3"], 20, rules=odd).items] for one in (exact, through)]
    assert filtered[0] == filtered[1]
    assert asked


@pytest.mark.parametrize("bias", [-20.0, 20.0])
def test_seen_items_are_found_or_not_as_the_model_scores_them(
    bias: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index has the products only; the model adds a bias to the seen items."""
    monkeypatch.setattr("msm4sr.recommend.scoring.APPROXIMATE_SHARE", 1)
    exact, through = approximate(tmp_path, seen_item_bias=True)
    for recommender in (exact, through):
        recommender.model.seen_item_bias.data.fill_(bias)  # type: ignore[union-attr, operator]
        recommender.add_items([new_item("n0", image=b"x")])
    history = ["i3", "n0", "i1"]
    for k in (1, 3, 5):
        (found, expected) = (one.recommend(history, k, exclude_seen=False).items for one in (through, exact))
        assert [one.item_id for one in found] == [one.item_id for one in expected]
        assert ({one.item_id for one in found} <= set(history)) is (bias > 0 and k <= 3)


def test_a_run_stores_its_index_in_its_model_folder(run_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_folder, tmp_path / "copy")
    first = load_recommender(copy, SETTINGS)
    assert first.index is not None
    assert {"index.usearch", "index.json"} <= {path.name for path in (copy / "model").iterdir()}
    assert first.index.recall > 0.9
    assert load_recommender(copy).index is None
    assert load_recommender(copy, IndexSettings(approximate_from=60)).index is not None
