"""The temporal split: which interactions are in which part, and that the future influences nothing before it."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from temporal import DAY, ITEMS, LOG, Event, load, temporal, with_other_future, write

from msm4sr.data.dataset import (
    Dataset,
    Targets,
    cold_start_targets,
    load_dataset,
    test_targets,
    training_counts,
    training_histories,
    user_counts,
    validation_targets,
)
from msm4sr.errors import InputError

EVENTS = st.lists(
    st.tuples(st.sampled_from("uvwxy"), st.sampled_from("abcdef"), st.integers(0, 20)), min_size=1, max_size=60
)


def training(dataset: Dataset) -> dict[str, list[str]]:
    rows = zip(dataset.user_ids, training_histories(dataset), strict=True)
    return {user: [dataset.item_ids[item] for item in history] for user, history in rows if len(history)}


def ranked(dataset: Dataset, targets: Targets) -> dict[str, tuple[list[str], list[str]]]:
    """User to history and targets."""
    names, found = dataset.item_ids, dict[str, tuple[list[str], list[str]]]()
    assert targets.users is not None
    assert targets.rows is not None
    for row, user in enumerate(targets.users):
        wanted = [names[item] for item in targets.targets[targets.rows == row]]
        found[dataset.user_ids[user]] = [names[item] for item in targets.histories[row]], wanted
    return found


def slow_parts(log: list[Event], validation: int, test: int) -> list[dict[str, list[str]]]:
    """Each user's items before validation, in validation, and in test."""
    parts: list[dict[str, list[str]]] = [defaultdict(list) for _ in range(3)]
    for user, item, time in sorted(dict.fromkeys(log), key=lambda event: event[2]):
        parts[(time >= validation) + (time >= test)][user].append(item)
    return parts


@given(EVENTS, st.integers(2, 20), st.integers(2, 20), st.sampled_from(["first", "all"]))
def test_the_parts_are_what_a_slow_reference_gives(
    tmp_path_factory: pytest.TempPathFactory, log: list[Event], validation: int, test: int, wanted: str
) -> None:
    folder = write(tmp_path_factory.mktemp("data"), log)
    chosen = temporal(validation_from=validation, test_from=test, targets=wanted)
    train, second, third = slow_parts(log, validation, test)
    fits = validation < test and train.keys() & second.keys() and train.keys() & third.keys()
    if not fits:
        with pytest.raises(InputError):
            load_dataset(folder, chosen)
        return
    dataset = load_dataset(folder, chosen)
    assert training(dataset) == train
    distinct = {"first": lambda items: items[:1], "all": lambda items: list(dict.fromkeys(items))}[wanted]
    before = {user: train.get(user, []) + second.get(user, []) for user in {*train, *second, *third}}
    assert ranked(dataset, validation_targets(dataset)) == {
        user: (train.get(user, []), distinct(items)) for user, items in second.items()
    }
    assert ranked(dataset, test_targets(dataset)) == {
        user: (before[user], distinct(items)) for user, items in third.items()
    }
    assert dataset.user_ids[: len(train)] == [user for user in dataset.user_ids if user in train], "they come first"
    again = load_dataset(folder, chosen)
    assert again.identity == dataset.identity


@given(EVENTS, st.floats(0.05, 0.9), st.floats(0.05, 0.9))
def test_fractions_are_of_all_interactions(
    tmp_path_factory: pytest.TempPathFactory, log: list[Event], validation: float, test: float
) -> None:
    """A part begins with the interaction before which there is this fraction, and with those of the same second."""
    folder = write(tmp_path_factory.mktemp("data"), log)
    try:
        dataset = load_dataset(folder, temporal(validation_from=validation, test_from=test))
    except InputError:
        return
    times = sorted(time for _, _, time in log)
    assert dataset.temporal is not None
    for fraction, found in zip((validation, test), dataset.temporal.times, strict=True):
        earlier = sum(time < found for time in times)
        assert earlier <= fraction * len(times) + 1e-6
        assert sum(time <= found for time in times) > fraction * len(times) - 1e-6
    assert len(training_histories(dataset).values) <= validation * len(times) + 1e-6


@pytest.mark.parametrize("items", [ITEMS, None], ids=["catalogue", "ids only"])
@pytest.mark.parametrize("changes", [{}, {"user_core": 3, "item_core": 3}, {"hold_out_items": 0.2}], ids=str)
def test_permuting_the_future_changes_nothing_before_it(
    tmp_path: Path, items: list[str] | None, changes: dict[str, Any]
) -> None:
    first = load(LOG, tmp_path / "a", items, **changes)
    other = load(with_other_future(LOG, 5 * DAY), tmp_path / "b", items, **changes)
    assert training(first) == training(other)
    assert first.item_ids == other.item_ids
    n_trained = int((user_counts(first) > 0).sum())
    assert first.user_ids[:n_trained] == other.user_ids[:n_trained]
    assert training_histories(first).values.tolist() == training_histories(other).values.tolist()
    assert training_counts(first).tolist() == training_counts(other).tolist()
    assert ranked(first, test_targets(first)) != ranked(other, test_targets(other))


def test_cores_count_training_interactions(tmp_path: Path) -> None:
    dataset = load(LOG, tmp_path / "data", item_core=4, user_core=2)
    early = [event for event in LOG if event[2] < 5 * DAY]
    while True:
        of_user, of_item = Counter(user for user, _, _ in early), Counter(item for _, item, _ in early)
        kept = [event for event in early if of_user[event[0]] >= 2 and of_item[event[1]] >= 4]
        if kept == early:
            break
        early = kept
    assert set(dataset.item_ids) == {item for _, item, _ in early}
    assert set(dataset.user_ids) == {user for user, _, _ in early}


def test_cold_start_targets_are_test_targets_that_are_held_out(tmp_path: Path) -> None:
    full = load(LOG, tmp_path / "data", targets="all")
    left = load(LOG, tmp_path / "data", targets="all", hold_out_items=0.3)
    gone = set(full.item_ids) - set(left.item_ids)
    assert len(gone) == 3
    targets = cold_start_targets(full, left)
    assert targets.users is not None
    assert targets.rows is not None
    found = {
        left.user_ids[user]: (
            [full.item_ids[item] for item in targets.histories[row]],
            [full.item_ids[item] for item in targets.targets[targets.rows == row]],
        )
        for row, user in enumerate(targets.users)
    }
    assert found == {
        user: ([item for item in history if item not in gone], wanted)
        for user, (history, all_targets) in ranked(full, test_targets(full)).items()
        if (wanted := [item for item in all_targets if item in gone]) and user in left.user_ids
    }
    assert found


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("1970-01-06", 5 * DAY),
        ("1970-01-06T00:00:00Z", 5 * DAY),
        ("1970-01-06T02:00+02:00", 5 * DAY),
        (5 * DAY, 5 * DAY),
    ],
)
def test_a_date_is_in_utc_unless_it_says_otherwise(tmp_path: Path, written: Any, seconds: float) -> None:
    dataset = load(LOG, tmp_path / "data", validation_from=written)
    assert dataset.temporal is not None
    assert dataset.temporal.times[0] == seconds
    assert dataset.split == "temporal split (validation from 1970-01-06, test from 1970-01-08), first targets"


@pytest.mark.parametrize("wrong", ["yesterday", "2026-13-01", 0, 1, 1.5, 0.0, True, 10**13, None, "0.8"])
def test_what_is_no_cutoff_is_refused(wrong: Any) -> None:
    with pytest.raises(ValidationError, match=r"date.*seconds since 1970.*fraction"):
        temporal(test_from=wrong)


@pytest.mark.parametrize(
    ("cuts", "message"),
    [
        (
            {"test_from": "2026-01-01"},
            r"no interactions from dataset.test_from=2026-01-01 \(2026-01-01\) on; the times",
        ),
        ({"validation_from": 0.5, "test_from": 0.2}, "validation_from=0.5 .* is not before dataset.test_from=0.2"),
        ({"validation_from": "1969-01-01"}, "no interactions before dataset.validation_from=1969-01-01"),
        ({"test_from": 5 * DAY + 1, "validation_from": 5 * DAY + 0.5}, "cut-off"),
    ],
)
def test_cutoffs_that_leave_a_part_empty_are_refused_with_the_period(
    tmp_path: Path, cuts: dict[str, Any], message: str
) -> None:
    with pytest.raises((InputError, ValidationError), match=message):
        load(LOG, tmp_path / "data", **cuts)


def test_users_of_validation_and_test_must_be_trained_on(tmp_path: Path) -> None:
    log: list[Event] = [("old", "i1", 2), ("new", "i2", 10), ("newer", "i3", 20)]
    with pytest.raises(InputError, match="no user with training interactions has one in the validation part"):
        load(log, tmp_path / "data", validation_from=5, test_from=15)


def test_data_without_timestamps_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", [("u", "a", 0), ("u", "b", 1), ("u", "c", 2)], order="position")
    pl.read_parquet(folder / "interactions.parquet").cast({"position": pl.Int32}).write_parquet(
        folder / "interactions.parquet"
    )
    with pytest.raises(InputError, match="needs the column 'timestamp'; the file has only 'position'"):
        load_dataset(folder, temporal())
    assert load_dataset(folder).n_users == 1
