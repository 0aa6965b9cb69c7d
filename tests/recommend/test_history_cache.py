"""`HistoryCache`: a history that was read before, or continues one that was, is answered as if it had not been."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from services import make_recommender, new_item

from msm4sr.models.base import FactorizedModel
from msm4sr.recommend.history_cache import LOOK_BACK, HistoryCache
from msm4sr.recommend.recommender import Recommender

CACHED = ["msm4sr", "sasrec", "sasrecm", "s3rec", "mvrnn", "lightgcn"]
Histories = list[list[int]]

RECOMMENDERS = {name: make_recommender(name, max_history=16) for name in CACHED}
ROWS = st.integers(0, 11)


def encode(cache: HistoryCache, recommender: Recommender, history: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return cache.encode(history, partial(recommender.catalogue.gather, "embeddings"))


def encode_alone(recommender: Recommender, history: list[int]) -> torch.Tensor:
    model = recommender.model
    assert isinstance(model, FactorizedModel)
    with torch.inference_mode():
        items, length = torch.tensor([history]), torch.tensor([len(history)])
        return model.encode_last(items, length, recommender.catalogue.tensors.embeddings)


def cache_of(recommender: Recommender, **options: int) -> tuple[HistoryCache, list[bool]]:
    """A cache, and a list of whether each lookup has found something."""
    assert isinstance(recommender.model, FactorizedModel)
    cache, found = HistoryCache(recommender.model, **options), list[bool]()
    cache.on_lookup = found.append
    return cache, found


@pytest.mark.parametrize("name", CACHED)
@given(parts=st.lists(st.lists(ROWS, min_size=1, max_size=4), min_size=1, max_size=8), cut=st.integers(0, 15))
def test_histories_that_grow_or_branch_have_the_vectors_of_an_empty_cache(
    name: str, parts: Histories, cut: int
) -> None:
    recommender = RECOMMENDERS[name]
    cache, _ = cache_of(recommender)
    history = list[int]()
    for part in parts:
        history = (history + part)[-recommender.model.max_history :]
        for read in (history, history[: cut + 1], history[cut:] or history):
            torch.testing.assert_close(
                encode(cache, recommender, read), encode_alone(recommender, read), rtol=1e-4, atol=1e-5
            )


def test_what_is_found() -> None:
    recommender = RECOMMENDERS["msm4sr"]
    cache, found = cache_of(recommender)
    lookups = {
        (1, 2): False,
        (1, 2, 3): True,
        (1, 2, 3, *[6] * LOOK_BACK): True,
        (1, 2, 4): False,  # (1, 2) was continued before: only its vector is left
        (1,): False,
        (2,): False,
        (3, 3, 3): False,
    }
    for history in lookups:
        encode(cache, recommender, list(history))
    assert found == list(lookups.values())
    for history in lookups:
        encode(cache, recommender, list(history))
    assert all(found[len(lookups) :])


def test_a_history_as_long_as_the_model_reads_is_found_but_not_continued() -> None:
    recommender = RECOMMENDERS["sasrec"]
    longest = recommender.model.max_history
    cache, found = cache_of(recommender)
    history = [n % 12 for n in range(longest + 1)]
    for read in (history[:-1], history[:-1], history[1:]):
        torch.testing.assert_close(
            encode(cache, recommender, read), encode_alone(recommender, read), rtol=1e-4, atol=1e-5
        )
    assert found == [False, True, False]


def test_the_latest_histories_are_kept() -> None:
    recommender = RECOMMENDERS["msm4sr"]
    cache, found = cache_of(recommender, largest=8_000)
    for row in range(12):
        encode(cache, recommender, [row])
    encode(cache, recommender, [11])
    encode(cache, recommender, [0])
    assert found == [False] * 12 + [True, False]
    assert 4_000 < cache.size <= 8_000


def test_an_entry_larger_than_the_cache_is_not_kept() -> None:
    recommender = RECOMMENDERS["msm4sr"]
    cache, found = cache_of(recommender, largest=1)
    for _ in range(2):
        encode(cache, recommender, [1, 2])
    assert found == [False, False]
    assert cache.size == 0


def test_threads_share_a_cache() -> None:
    recommender = RECOMMENDERS["msm4sr"]
    cache, found = cache_of(recommender, largest=100_000)
    histories = [[n % 12, n % 5, *range(n % 7)] for n in [*range(60), *reversed(range(60))]]
    expected = [encode_alone(recommender, history) for history in histories]
    with ThreadPoolExecutor(8) as threads:
        for _ in range(5):
            vectors = list(threads.map(partial(encode, cache, recommender), histories))
            for vector, right in zip(vectors, expected, strict=True):
                torch.testing.assert_close(vector, right, rtol=1e-4, atol=1e-5)
    assert len(found) == 600
    assert any(found)
    assert cache.size <= 100_000


@pytest.mark.parametrize("name", CACHED)
def test_changed_items_are_answered_as_without_a_cache(name: str) -> None:
    cached, plain = make_recommender(name), make_recommender(name)
    plain.cache = None
    assert cached.cache is not None
    histories = [["i3"], ["i3", "i1"], ["i3", "i1", "i5"], ["i3", "i1"]]

    def check(*more: list[str]) -> None:
        for history in (*histories, *more):
            answers = [one.recommend(history, k=8).items for one in (cached, plain)]
            assert [item.item_id for item in answers[0]] == [item.item_id for item in answers[1]]
            assert [item.score for item in answers[0]] == pytest.approx([item.score for item in answers[1]], abs=1e-5)

    check()
    for recommender in (cached, plain):
        recommender.remove_items(["i1", "i7"])
    check()
    if name == "msm4sr":  # the others have no content of items
        for recommender in (cached, plain):
            recommender.add_items([new_item("n1")])
        check(["i3", "n1"], ["i3", "n1", "i5"])
