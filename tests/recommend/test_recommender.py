from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn

from msm4sr.data.dataset import Dataset
from msm4sr.errors import InputError
from msm4sr.models.base import ProductScorer
from msm4sr.recommend.recommender import ItemTable, recommend, user_history


class RunningMean(ProductScorer):
    """A history's vector at position l is the mean of its first l + 1 items."""

    def __init__(self, vectors: Tensor, max_history: int = 50) -> None:
        super().__init__()
        self.vectors = vectors
        self.max_history = max_history
        self.dropout = nn.Dropout(0.9)
        self.item_passes = 0

    def encode_items(self) -> Tensor:
        self.item_passes += 1
        return self.dropout(self.vectors)

    def scoring_vectors(self, catalogue: Tensor) -> Tensor:
        return catalogue

    def encode_histories(self, items: Tensor, encoded: Tensor) -> Tensor:
        lengths = torch.arange(1, items.shape[1] + 1)[:, None]
        return encoded[items].cumsum(1) / lengths


def catalogue(n: int) -> ItemTable:
    return ItemTable([f"i{row}" for row in range(n)], [f"Title {row}" for row in range(n)])


def whole(n: int, d: int, seed: int) -> Tensor:
    """Whole numbers, so that dot products are exact and ties are common."""
    return torch.randint(-2, 3, (n, d), generator=torch.Generator().manual_seed(seed)).float()


def slow_ranking(vectors: Tensor, history: list[int], hidden: set[int]) -> list[int]:
    mean = [sum(float(vectors[item, c]) for item in history) / len(history) for c in range(vectors.shape[1])]
    score = {i: sum(m * float(v) for m, v in zip(mean, vectors[i], strict=True)) for i in range(len(vectors))}
    return sorted((i for i in score if i not in hidden), key=lambda i: (-round(score[i], 5), i))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("exclude", [True, False])
def test_ranking_agrees_with_a_slow_reference(seed: int, exclude: bool) -> None:
    vectors, history = whole(40, 8, seed), [3, 17, 5, 3]
    found = recommend(RunningMean(vectors), catalogue(40), [f"i{i}" for i in history], k=12, exclude_seen=exclude)
    assert [one.item for one in found] == slow_ranking(vectors, history, set(history) if exclude else set())[:12]
    assert [one.rank for one in found] == list(range(1, 13))
    assert all(one.item_id == f"i{one.item}" and one.title == f"Title {one.item}" for one in found)


def test_the_score_is_the_dot_product() -> None:
    vectors = torch.tensor([[1.0, 0.0], [3.0, 4.0], [2.0, -1.0]])
    found = recommend(RunningMean(vectors), catalogue(3), ["i0"], k=2)
    assert [(one.item, one.score) for one in found] == [(1, 3.0), (2, 2.0)]


def test_equal_scores_rank_by_item_row() -> None:
    found = recommend(RunningMean(torch.ones(200, 4)), catalogue(200), ["i5"], k=100)
    assert [one.item for one in found] == [*range(5), *range(6, 101)]


def test_items_of_the_history_that_the_model_no_longer_reads_are_left_out_too() -> None:
    model = RunningMean(torch.ones(5, 2), max_history=1)
    assert [one.item for one in recommend(model, catalogue(5), ["i0", "i1", "i2"])] == [3, 4]


def test_the_model_reads_the_newest_items() -> None:
    vectors = torch.eye(3)
    model = RunningMean(vectors, max_history=1)
    found = recommend(model, catalogue(3), ["i0", "i2"], k=1, exclude_seen=False)
    assert (found[0].item, found[0].score) == (2, 1.0)


def test_a_model_in_training_recommends_without_dropout_and_is_left_in_training() -> None:
    vectors = whole(30, 8, 0)
    model = RunningMean(vectors).train()
    expected = slow_ranking(vectors, [1], {1})[:10]
    assert [one.item for one in recommend(model, catalogue(30), ["i1"])] == expected
    assert model.training


def test_items_encoded_once_serve_many_histories() -> None:
    model = RunningMean(whole(30, 8, 0)).eval()
    alone = recommend(model, catalogue(30), ["i1"])
    passes = model.item_passes
    assert recommend(model, catalogue(30), ["i1"], catalogue=model.vectors) == alone
    assert model.item_passes == passes


def test_an_unknown_item_is_named_with_the_nearest_ids(shop: ItemTable) -> None:
    with pytest.raises(InputError, match=r"no item 'cup-9'.*did you mean .*'cup-[12]' \((Red|Blue) cup\)"):
        recommend(RunningMean(torch.ones(6, 2)), shop, ["cup-1", "cup-9"])


def test_a_title_given_for_an_id_is_answered_with_its_id(shop: ItemTable) -> None:
    with pytest.raises(InputError, match=r"no item 'frying pan'.*'pan-1' \(Frying pan\)"):
        recommend(RunningMean(torch.ones(6, 2)), shop, ["frying pan"])


def test_every_unknown_item_is_named(shop: ItemTable) -> None:
    with pytest.raises(InputError, match=r"(?s)no item 'qqqq'.*ids look like 'cup-1'.*no item 'zzzz'"):
        recommend(RunningMean(torch.ones(6, 2)), shop, ["qqqq", "zzzz"])


def test_nearest_ids_are_found_in_a_large_catalogue() -> None:
    items = ItemTable([f"sku-{row:06d}" for row in range(20_000)], [str(row) for row in range(20_000)])
    with pytest.raises(InputError, match=r"did you mean .*'sku-012345'"):
        recommend(RunningMean(torch.ones(20_000, 1)), items, ["SKU-012345"])


def test_an_empty_history_is_refused(shop: ItemTable) -> None:
    with pytest.raises(InputError, match="history is empty"):
        recommend(RunningMean(torch.ones(6, 2)), shop, [])


def test_fewer_than_one_recommendation_is_refused(shop: ItemTable) -> None:
    with pytest.raises(InputError, match="k is 0"):
        recommend(RunningMean(torch.ones(6, 2)), shop, ["x"], k=0)


def test_a_model_of_another_catalogue_is_refused(shop: ItemTable) -> None:
    with pytest.raises(InputError, match="knows 7 items, the item table has 6"):
        recommend(RunningMean(torch.ones(7, 2)), shop, ["x"])


def test_scores_that_are_not_finite_are_refused(shop: ItemTable) -> None:
    vectors = torch.ones(6, 2)
    vectors[3] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        recommend(RunningMean(vectors), shop, ["x"])


def test_no_more_items_than_the_catalogue_has_come_back(shop: ItemTable) -> None:
    assert len(recommend(RunningMean(torch.ones(6, 2)), shop, ["x"], k=100)) == 5


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
        offsets=np.array([0, 3, 7]),
        values=np.array([0, 1, 2, 2, 0, 1, 2], dtype=np.int32),
        items=items,
        dropped={},
    )


def test_an_item_without_a_title_goes_by_its_id(dataset: Dataset) -> None:
    table = ItemTable.from_dataset(dataset)
    assert table.titles == ["Apple", "b", "c"]
    assert table.images == [["images/a.jpg", "images/a2.jpg"], [], []]
    assert (table.folder, len(table)) == (dataset.folder, 3)


def test_a_users_history_is_oldest_first(dataset: Dataset) -> None:
    assert user_history(dataset, "bob") == ["c", "a", "b", "c"]


def test_an_unknown_user_is_named_with_the_nearest_ids(dataset: Dataset) -> None:
    with pytest.raises(InputError, match=r"no user 'Alise' among the 2 users of .*did you mean 'alice'"):
        user_history(dataset, "Alise")
