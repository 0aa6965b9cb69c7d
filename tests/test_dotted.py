"""Nested settings as dotted names, and their differences."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm4sr.dotted import differences, flatten, nest, put, shorten

KEYS = st.text("abc", min_size=1, max_size=2)
VALUES = st.one_of(st.none(), st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2))
NESTED = st.recursive(
    st.dictionaries(KEYS, VALUES, min_size=1, max_size=3),
    lambda inner: st.dictionaries(KEYS, st.one_of(VALUES, inner), min_size=1, max_size=3),
    max_leaves=8,
)


@given(NESTED)
def test_nest_is_the_inverse_of_flatten(settings: dict[str, Any]) -> None:
    assert nest(flatten(settings)) == settings


@given(NESTED)
def test_nothing_differs_from_itself(settings: dict[str, Any]) -> None:
    assert differences(flatten(settings), flatten(settings)) == []


def test_put_makes_the_sections_and_keeps_the_others() -> None:
    settings: dict[str, Any] = {"model": {"dim": 64}}
    put(settings, "model.heads", 2)
    put(settings, "finetune.epochs", 3)
    put(settings, "seed", 0)
    assert settings == {"model": {"dim": 64, "heads": 2}, "finetune": {"epochs": 3}, "seed": 0}


def test_each_difference_is_a_line() -> None:
    then, now = {"epochs": 12, "dim": 64, "gone": 1}, {"epochs": 20, "dim": 64, "added": 3}
    assert differences(then, now) == [
        "epochs is 12 there and 20 now",
        "added is not set there and 3 now",
        "gone is 1 there and not set now",
    ]
    assert differences(then, now, keys=["dim", "epochs"]) == ["epochs is 12 there and 20 now"]


@pytest.mark.parametrize("off", [None, False, 0, "", []])
def test_a_setting_that_was_added_later_differs_only_where_it_is_on(off: object) -> None:
    assert differences({}, {"new": off}) == []
    assert differences({}, {"new": [1]}) == ["new is not set there and [1] now"]


def test_values_are_compared_as_json_stores_them() -> None:
    assert differences({"betas": [0.9, 0.99]}, {"betas": (0.9, 0.99)}) == []


def test_shorten_counts_what_it_omits() -> None:
    lines = ["a", "b", "c", "d", "e"]
    assert shorten(lines[:3]) == "a; b; c"
    assert shorten(lines) == "a; b; c and 2 more"
