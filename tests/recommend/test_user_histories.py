"""The histories of a run's users: from a data set in memory, and from the data folder of a run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from builders import make_dataset
from test_recommended_order import RunningMean, integers

from msm4sr.data.dataset import Dataset, load_dataset
from msm4sr.errors import InputError
from msm4sr.experiments.loading import load_recommender
from msm4sr.recommend import users as users_module
from msm4sr.recommend.recommender import Recommender
from msm4sr.recommend.rules import Rules
from msm4sr.recommend.users import UnknownUser, UserHistories


def counted(dataset: Dataset) -> tuple[UserHistories, list[int]]:
    """The histories of a data set, and a list with an entry for each time it was read."""
    reads: list[int] = []

    def load() -> Dataset:
        reads.append(1)
        return dataset

    return UserHistories(load, dataset.item_ids), reads


def recommender_of(sequences: list[list[int]], n_items: int) -> Recommender:
    dataset = make_dataset(sequences, n_items)
    texts, lists = pl.lit(None, pl.String), pl.lit(None, pl.List(pl.String))
    items = dataset.items.with_columns(title=texts, text=texts, categories=lists, image=lists)
    return Recommender.from_dataset(RunningMean(integers(n_items, 6, 0)), replace(dataset, items=items))


def test_a_users_history_is_oldest_first_and_the_data_is_read_once_at_the_first_use() -> None:
    histories, reads = counted(make_dataset([[0, 1, 2], [2, 0, 1, 2]], 3))
    assert not histories.are_read
    assert reads == []
    assert histories.history("u1") == ["i2", "i0", "i1", "i2"]
    assert histories.history("u0") == ["i0", "i1", "i2"]
    assert histories.are_read
    assert reads == [1]


def test_an_unknown_user_is_named_and_strictly_with_the_closest_ids() -> None:
    histories, _ = counted(make_dataset([[0, 1, 2]] * 30, 3))
    with pytest.raises(UnknownUser, match=r"no user 'U17' among the 30 users of the run's data: did you mean 'u17'"):
        histories.history("U17", strict=True)
    with pytest.raises(UnknownUser, match=r"no user 'U17' among the 30 users of the run's data$"):
        histories.history("U17")


def test_data_with_other_items_is_refused_and_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, reads = make_dataset([[0, 1, 2]], 3), 0

    def load() -> Dataset:
        nonlocal reads
        reads += 1
        return dataset

    histories = UserHistories(load, ["i0", "i1", "i3"])
    message = r"needs the data of the run: nowhere: the items are no longer those .* \(3 then, 3 now, or in another"
    for _ in range(3):
        with pytest.raises(InputError, match=message):
            histories.history("u0")
    assert reads == 1
    dataset = make_dataset([[0, 1, 2]], 3)
    dataset.item_ids[2] = "i3"
    monkeypatch.setattr(users_module.time, "monotonic", lambda: 1e12)
    assert histories.history("u0") == ["i0", "i1", "i3"]


def test_recommendations_for_a_user_are_those_for_the_users_history() -> None:
    recommender = recommender_of([[0, 1, 2, 9], [8, 2, 7]], 20)
    rules = Rules(exclude_items=["i3"], diversity=0.2)
    found = recommender.recommend_for_user("u1", 5, rules=rules, exclude_seen=False)
    assert found == recommender.recommend(["i8", "i2", "i7"], 5, rules=rules, exclude_seen=False)
    assert {one.item_id for one in recommender.recommend_for_user("u1", 20).items}.isdisjoint({"i8", "i2", "i7"})


def test_a_recommender_without_data_says_so() -> None:
    recommender = recommender_of([[0, 1, 2]], 5)
    alone = Recommender(recommender.model, recommender.catalogue)
    with pytest.raises(InputError, match="no data with users; give a history"):
        alone.recommend_for_user("u0")


def test_a_run_knows_the_users_of_its_data(run_folder: Path, toyshop: Path) -> None:
    dataset, recommender = load_dataset(toyshop), load_recommender(run_folder)
    for user in (0, 41):
        expected = [dataset.item_ids[item] for item in dataset.histories[user]]
        assert recommender.user_history(dataset.user_ids[user]) == expected
    with pytest.raises(UnknownUser, match="no user 'user-99999'"):
        recommender.user_history("user-99999")


@pytest.mark.parametrize("what", ["gone", "reordered", "damaged"])
def test_a_run_without_its_data_recommends_for_histories_only(
    run_folder: Path, toyshop: Path, tmp_path: Path, what: str
) -> None:
    data = Path(shutil.copytree(toyshop, tmp_path / "data"))
    if what == "gone":
        shutil.rmtree(data)
    elif what == "reordered":
        pl.read_parquet(data / "items.parquet").reverse().write_parquet(data / "items.parquet")
    else:
        (data / "interactions.parquet").write_bytes(b"PAR1")
    recommender = load_recommender(run_folder, data=data)
    with pytest.raises(InputError, match=f"the history of a user needs the data of the run: {data}"):
        recommender.user_history("user-00007")
    assert recommender.recommend(["toy-0001"], 3).items
