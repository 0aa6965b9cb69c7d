"""The real data sets load with the counts that their README states."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from msm4sr.data.dataset import load_dataset

pytestmark = pytest.mark.real


@pytest.mark.parametrize(
    ("name", "users", "items", "interactions", "shortest", "longest", "with_text", "with_image"),
    [
        ("ml-100k", 943, 1_682, 100_000, 20, 737, 1_190, 1_436),
        ("ml-1m", 6_040, 3_416, 999_611, 18, 2_277, 2_573, 3_239),
        ("scientific", 8_442, 4_385, 59_427, 5, 80, 4_385, 0),
        ("pantry-ids", 12_608, 4_926, 109_007, 5, 30, 0, 0),
    ],
)
def test_counts_equal_those_of_the_readme(
    real_data: Callable[[str], Path],
    name: str,
    users: int,
    items: int,
    interactions: int,
    shortest: int,
    longest: int,
    with_text: int,
    with_image: int,
) -> None:
    dataset = load_dataset(real_data(name))
    lengths = dataset.histories.lengths
    assert (dataset.n_users, dataset.n_items, dataset.n_interactions) == (users, items, interactions)
    assert (lengths.min(), lengths.max()) == (shortest, longest)
    assert (dataset.items["text"].count(), dataset.items["image"].count()) == (with_text, with_image)
    assert dataset.dropped == {}


def test_every_image_of_movielens_100k_is_where_the_catalogue_says(real_data: Callable[[str], Path]) -> None:
    dataset = load_dataset(real_data("ml-100k"))
    images = dataset.items["image"].drop_nulls().to_list()
    assert images
    assert all(len(paths) == 1 and (dataset.folder / paths[0]).is_file() for paths in images)
