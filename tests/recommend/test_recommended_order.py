"""The ranking of a history, against a slow reference; ids and titles that are misspelt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from msm4sr.data.dataset import Dataset, training_counts
from msm4sr.data.items import Items
from msm4sr.errors import InputError
from msm4sr.models.base import FactorizedModel, Inputs
from msm4sr.ragged import Ragged
from msm4sr.recommend.catalogue import Catalogue, UnknownItem
from msm4sr.recommend.recommender import Recommendation, Recommender


class NoSettings(BaseModel):
    pass


class RunningMean(FactorizedModel):
    """A history's vector at position l is the mean of its first l + 1 items."""

    def __init__(self, vectors: Tensor, max_history: int = 50) -> None:
        super().__init__(NoSettings(), Inputs(len(vectors)))
        self.vectors = vectors
        self.max_history = max_history
        self.dropout = nn.Dropout(0.9)
        self.item_passes = 0

    def encode_items(self) -> Tensor:
        self.item_passes += 1
        return self.dropout(self.vectors).unsqueeze(1)

    def scoring_vectors(self, catalogue: Tensor) -> Tensor:
        return catalogue.squeeze(1)

    def encode_histories(self, items: Tensor, encoded: Tensor) -> Tensor:
        lengths = torch.arange(1, items.shape[1] + 1)[:, None]
        return encoded.squeeze(1)[items].cumsum(1) / lengths


def items_of(item_ids: list[str], titles: list[str | None]) -> Items:
    n = len(item_ids)
    return Items(item_ids, titles, [None] * n, [()] * n, [()] * n)


def numbered(n: int) -> Items:
    return items_of([f"i{row}" for row in range(n)], [f"Title {row}" for row in range(n)])


def kitchen() -> Items:
    titles = ["Red cup", "Blue cup", "Tea pot", "Frying pan", "Jam jar", None]
    return items_of(["cup-1", "cup-2", "pot-1", "pan-1", "jar-1", "x"], titles)


def recommender(model: RunningMean, items: Items | None = None, strict: bool = True) -> Recommender:
    model.eval()
    catalogue = Catalogue.of_model(model, items or numbered(model.n_items), [0] * model.n_items)
    return Recommender(model, catalogue, strict=strict)


def rank(model: RunningMean, history: list[str], k: int = 10, exclude_seen: bool = True) -> list[Recommendation]:
    return recommender(model).recommend(history, k, exclude_seen=exclude_seen).items


def integers(n: int, d: int, seed: int) -> Tensor:
    """Integers, so that dot products are exact and ties are common."""
    return torch.randint(-2, 3, (n, d), generator=torch.Generator().manual_seed(seed)).float()


def slow_ranking(vectors: Tensor, history: list[int], hidden: set[int]) -> list[str]:
    mean = [sum(float(vectors[item, c]) for item in history) / len(history) for c in range(vectors.shape[1])]
    score = {i: sum(m * float(v) for m, v in zip(mean, vectors[i], strict=True)) for i in range(len(vectors))}
    rows = sorted((i for i in score if i not in hidden), key=lambda i: (-round(score[i], 5), i))
    return [f"i{row}" for row in rows]


def ids(found: list[Recommendation]) -> list[str]:
    return [one.item_id for one in found]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("exclude", [True, False])
def test_ranking_agrees_with_a_slow_reference(seed: int, exclude: bool) -> None:
    vectors, history = integers(40, 8, seed), [3, 17, 5, 3]
    found = rank(RunningMean(vectors), [f"i{i}" for i in history], k=12, exclude_seen=exclude)
    assert ids(found) == slow_ranking(vectors, history, set(history) if exclude else set())[:12]
    assert [one.rank for one in found] == list(range(1, 13))
    assert all(one.title == f"Title {one.item_id[1:]}" for one in found)


def test_the_score_is_the_dot_product() -> None:
    vectors = torch.tensor([[1.0, 0.0], [3.0, 4.0], [2.0, -1.0]])
    found = rank(RunningMean(vectors), ["i0"], k=2)
    assert [(one.item_id, one.score) for one in found] == [("i1", 3.0), ("i2", 2.0)]


def test_equal_scores_rank_by_row() -> None:
    found = rank(RunningMean(torch.ones(200, 4)), ["i5"], k=100)
    assert ids(found) == [f"i{row}" for row in [*range(5), *range(6, 101)]]


def test_seen_items_that_the_model_no_longer_reads_are_excluded_too() -> None:
    assert ids(rank(RunningMean(torch.ones(5, 2), max_history=1), ["i0", "i1", "i2"])) == ["i3", "i4"]


def test_the_model_reads_the_latest_items() -> None:
    found = rank(RunningMean(torch.eye(3), max_history=1), ["i0", "i2"], k=1, exclude_seen=False)
    assert (found[0].item_id, found[0].score) == ("i2", 1.0)


def test_items_are_encoded_once_for_many_histories() -> None:
    model = RunningMean(integers(30, 8, 0))
    one = recommender(model)
    for history in (["i1"], ["i2", "i3"], ["i1"]):
        one.recommend(history)
    assert model.item_passes == 1


def test_a_model_of_another_catalogue_is_refused() -> None:
    with pytest.raises(InputError, match="the model has 7 items, the list of items 6"):
        recommender(RunningMean(torch.ones(7, 2)), kitchen())


def test_scores_that_are_not_finite_are_refused() -> None:
    vectors = torch.ones(6, 2)
    vectors[3] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        recommender(RunningMean(vectors), kitchen())


def test_k_beyond_the_catalogue_gives_all_unseen_items() -> None:
    assert len(recommender(RunningMean(torch.ones(6, 2)), kitchen()).recommend(["x"], k=100).items) == 5


# -- unknown ids


def refused(history: list[str], **options: int) -> str:
    with pytest.raises(InputError) as caught:
        recommender(RunningMean(torch.ones(6, 2)), kitchen()).recommend(history, **options)
    return str(caught.value)


def test_a_strict_recommender_names_the_closest_ids() -> None:
    message = refused(["cup-1", "cup-9"])
    assert "no item 'cup-9' in the catalogue of 6: did you mean" in message
    assert "'cup-1' (Red cup)" in message
    assert "'cup-2' (Blue cup)" in message


def test_a_title_in_place_of_an_id_gets_the_id() -> None:
    assert "no item 'frying pan' in the catalogue of 6: did you mean 'pan-1' (Frying pan)?" in refused(["frying pan"])


def test_every_unknown_id_is_named() -> None:
    first, second = refused(["qqqq", "x", "zzzz"]).splitlines()
    assert first == "no item 'qqqq' in the catalogue of 6: ids look like 'cup-1'"
    assert "no item 'zzzz'" in second


def test_a_recommender_that_is_not_strict_reports_unknown_ids() -> None:
    found = recommender(RunningMean(torch.ones(6, 2)), kitchen(), strict=False).recommend(["qqqq", "x", "zzzz"])
    assert found.unknown == ["qqqq", "zzzz"]
    assert len(found.items) == 5


def test_the_closest_ids_are_found_in_a_large_catalogue() -> None:
    items = items_of([f"sku-{row:06d}" for row in range(20_000)], [str(row) for row in range(20_000)])
    with pytest.raises(UnknownItem, match=r"did you mean .*'sku-012345'"):
        recommender(RunningMean(torch.ones(20_000, 1)), items).recommend(["SKU-012345"])


def test_fewer_than_one_recommendation_is_refused() -> None:
    assert "k is 0" in refused(["x"], k=0)


# -- a data set


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    items = pl.DataFrame(
        {
            "item_id": ["a", "b", "c"],
            "title": ["Apple", None, " "],
            "text": [None, None, None],
            "categories": [None, None, None],
            "image": [["images/a.jpg", "images/a2.jpg"], None, []],
        },
        schema_overrides={"image": pl.List(pl.String)},
    )
    return Dataset(
        folder=tmp_path,
        user_ids=["alice", "bob"],
        item_ids=["a", "b", "c"],
        histories=Ragged(np.array([0, 1, 2, 2, 0, 1, 2], dtype=np.int32), np.array([0, 3, 7])),
        items=items,
        dropped={},
    )


def test_an_item_without_a_title_is_shown_by_its_id(dataset: Dataset) -> None:
    items = Items.from_frame(dataset.items)
    assert [items.name(row) for row in range(3)] == ["Apple", "b", "c"]
    assert items.images == [("images/a.jpg", "images/a2.jpg"), (), ()]
    assert items[0].name == "Apple"
    assert (items[2].item_id, items[2].name, len(items)) == ("c", "c", 3)


def test_a_model_in_training_is_evaluated_without_dropout(dataset: Dataset) -> None:
    vectors = integers(3, 8, 0)
    one = Recommender.from_dataset(RunningMean(vectors).train(), dataset)
    assert [item.score for item in one.recommend([]).items] == sorted(training_counts(dataset).tolist(), reverse=True)
    found = one.recommend(["b"], exclude_seen=False).items
    assert [dataset.item_ids.index(one.item_id) for one in found] == [
        int(item_id[1:]) for item_id in slow_ranking(vectors, [1], set())
    ]
