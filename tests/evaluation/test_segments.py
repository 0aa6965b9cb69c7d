"""Segments of the users against a loop over the rows of users.parquet."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from builders import make_dataset
from hypothesis import given
from hypothesis import strategies as st

from msm4sr.data.dataset import Dataset
from msm4sr.evaluation.metrics import mean_metrics
from msm4sr.evaluation.segments import MOST, groups_of, segments
from msm4sr.evaluation.users import users_table


def table(**columns: Any) -> pl.DataFrame:
    """Rows of one part; ranks 1, 2, ..."""
    (n,) = {len(values) for values in columns.values()}
    ids = [f"u{row}" for row in range(n)]
    return pl.DataFrame(
        {"user_id": ids, "rank": np.arange(1.0, n + 1), "rank_seen_excluded": np.arange(1.0, n + 1) * 2, **columns}
    )


def rows_of(frame: pl.DataFrame, kind: str) -> dict[str, list[int]]:
    """The rows of each segment that has any."""
    return {name: np.flatnonzero(rows).tolist() for name, rows in groups_of(frame)[kind].items() if rows.any()}


def test_history_length_and_popularity_are_in_buckets() -> None:
    counts = [0, 1, 5, 6, 10, 11, 20, 21, 50, 51, 9000]
    frame = table(history_length=counts, item_count=counts[::-1])
    rows = {"0": [0], "1-5": [1, 2], "6-10": [3, 4], "11-20": [5, 6], "21-50": [7, 8], ">50": [9, 10]}
    assert rows_of(frame, "history length") == rows
    mirrored = {name: sorted(10 - row for row in own) for name, own in rows.items()}
    assert rows_of(frame, "popularity of the target") == mirrored


@given(st.lists(st.tuples(st.integers(1, 99), st.integers(0, 99)), min_size=1, max_size=40))
def test_the_mean_over_users_is_that_of_the_segments_weighted_by_users(rows: list[tuple[int, int]]) -> None:
    ranks = np.array([rank for rank, _ in rows], dtype=float)
    frame = table(item_count=[count for _, count in rows]).with_columns(rank=pl.Series(ranks))
    for found in segments(frame).values():
        assert sum(segment.users for segment in found) == len(rows)
        for name, value in mean_metrics(ranks).items():
            assert sum(one.users * one.metrics[name] for one in found) / len(rows) == pytest.approx(value)


def test_a_target_is_in_the_segment_of_each_of_its_most_frequent_categories() -> None:
    many = [[f"c{number:02}"] for number in range(MOST + 2) for _ in range(3 - (number > MOST - 1))]
    lists = [*many, ["c00", "rare"], ["rare"], [], None]
    found = rows_of(table(categories=pl.Series(lists, dtype=pl.List(pl.String))), "category")
    assert list(found) == [*(f"c{number:02}" for number in range(MOST)), "others", "none"]
    n = len(many)
    assert found["c00"] == [0, 1, 2, n]
    assert found["others"] == [n - 4, n - 3, n - 2, n - 1, n + 1]
    assert found["none"] == [n + 2, n + 3]


def test_each_value_of_a_column_is_a_segment_and_a_user_without_one_is_unknown() -> None:
    frame = table(
        **{"user.plan": ["b", "a", None, "b"], "user.new": [True, False, True, None], "user.age": [3, 1, 1, 3]}
    )
    assert rows_of(frame, "plan") == {"a": [1], "b": [0, 3], "unknown": [2]}
    assert rows_of(frame, "new") == {"False": [1], "True": [0, 2], "unknown": [3]}
    assert rows_of(frame, "age") == {"1": [1, 2], "3": [0, 3]}


def test_many_numbers_are_divided_by_quartile_and_every_user_is_in_one() -> None:
    ages = [*range(20, 60), None, float("nan")]
    series = pl.Series(ages, dtype=pl.Float64, strict=False).fill_nan(None)
    found = rows_of(table(**{"user.age": series}), "age")
    assert list(found) == ["20 to 29", "over 29 to 39", "over 39 to 49", "over 49 to 59", "unknown"]
    assert [len(rows) for rows in found.values()] == [10, 10, 10, 10, 2]
    skewed = rows_of(table(**{"user.spent": [0.0] * 50 + [float(v) for v in range(1, 21)]}), "spent")
    assert sorted(row for rows in skewed.values() for row in rows) == list(range(70))


def test_large_numbers_are_named_by_all_their_digits() -> None:
    days = [1_700_000_000 + 10 * row for row in range(40)]
    found = rows_of(table(**{"user.signup": days}), "signup")
    assert next(iter(found)) == "1700000000 to 1700000090"
    assert sorted(len(rows) for rows in found.values()) == [10, 10, 10, 10]


def test_a_column_with_the_name_of_another_kind_stays_apart() -> None:
    found = groups_of(table(categories=[["x"], []], **{"user.category": ["a", "b"]}))
    assert next(iter(found["category"])) == "x"
    assert list(found["category (column)"])[:2] == ["a", "b"]


def test_of_many_strings_the_most_frequent_are_segments() -> None:
    values = [f"city {number:02}" for number in range(15) for _ in range(20 - number)]
    found = rows_of(table(**{"user.city": values}), "city")
    assert list(found) == [*(f"city {number:02}" for number in range(MOST)), "others"]
    assert len(found["others"]) == sum(20 - number for number in range(MOST, 15))


def test_a_value_that_is_named_like_a_rest_stays_apart() -> None:
    found = rows_of(table(**{"user.plan": ["unknown", None, "x"]}), "plan")
    assert found == {"unknown": [0], "x": [2], "(unknown)": [1]}


def test_metrics_are_means_over_the_rows_of_a_segment() -> None:
    frame = table(**{"user.plan": ["b", "a", "a", "b", "a"], "user_count": [1] * 5})
    found = segments(frame)
    assert list(found) == ["plan"], "a kind with one segment divides nothing"
    ranks = frame["rank"].to_numpy()
    assert [(one.name, one.users, one.metrics) for one in found["plan"]] == [
        ("a", 3, mean_metrics(ranks[[1, 2, 4]])),
        ("b", 2, mean_metrics(ranks[[0, 3]])),
    ]


def test_a_run_of_an_earlier_version_has_the_segments_that_it_recorded() -> None:
    assert list(segments(table(item_count=[0, 3]))) == ["popularity of the target"]


def test_the_table_of_a_run_has_what_segments_need() -> None:
    plain = make_dataset([[0, 1, 2], [3, 0, 1, 2], [1, 2, 3, 3, 0]], 4)
    categories = pl.Series("categories", [["a"], [], ["b", "a"], None], dtype=pl.List(pl.String))
    users = pl.DataFrame({"user_id": ["u2", "u0", "stranger"], "plan": ["pro", "free", "pro"]})
    dataset = Dataset(
        plain.folder,
        plain.user_ids,
        plain.item_ids,
        plain.histories,
        plain.items.with_columns(categories),
        {},
        trained_on=np.array([True, False, True]),
        users=users,
    )
    ranks = np.array([1.0, 2.0, 3.0])
    test = users_table(dataset, {"validation": (ranks, ranks), "test": (ranks, ranks)}).filter(pl.col("part") == "test")
    assert test["history_length"].to_list() == [2, 3, 4]
    assert test["user_count"].to_list() == [1, 2, 3]
    assert test["categories"].to_list() == [["b", "a"], ["b", "a"], ["a"]]
    assert test["user.plan"].to_list() == ["free", None, "pro"]
    assert "user.plan" not in users_table(plain, {"test": (ranks, ranks)}).columns
