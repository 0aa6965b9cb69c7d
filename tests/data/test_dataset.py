from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from msm4sr.data.dataset import (
    Dataset,
    DataSettings,
    cold_start_targets,
    item_categories,
    load_dataset,
    test_targets,
    training_histories,
    validation_targets,
)
from msm4sr.errors import InputError
from msm4sr.ragged import Ragged

Row = tuple[str, str, int]


def write(folder: Path, rows: list[Row], items: list[str] | None = None) -> Path:
    columns = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    pl.DataFrame(rows, schema=columns, orient="row").write_parquet(folder / "interactions.parquet")
    if items is not None:
        pl.DataFrame({"item_id": items}).write_parquet(folder / "items.parquet")
    return folder


def histories(dataset: Dataset) -> dict[str, list[str]]:
    """User name to item names, oldest first."""
    return {
        name: [dataset.item_ids[item] for item in dataset.histories[user]] for user, name in enumerate(dataset.user_ids)
    }


def load(rows: list[Row], items: list[str] | None = None, **options: int | str) -> Dataset:
    with TemporaryDirectory() as folder:
        return load_dataset(write(Path(folder), rows, items), DataSettings.model_validate(options))


A_USER: list[Row] = [("u", "a", 1), ("u", "b", 2), ("u", "c", 3)]


# Numbering and order


def test_users_are_numbered_by_first_appearance_and_items_by_the_catalogue() -> None:
    rows = [("z", "b", 5), ("a", "a", 1), ("z", "a", 1), ("a", "b", 2), ("z", "c", 9), ("a", "c", 3)]
    dataset = load(rows, ["c", "unseen", "b", "a"])
    assert dataset.user_ids == ["z", "a"]
    assert dataset.item_ids == ["c", "unseen", "b", "a"]
    assert dataset.histories.values.tolist() == [3, 2, 0, 3, 2, 0]
    assert dataset.histories.offsets.tolist() == [0, 3, 6]
    assert (dataset.histories.values.dtype, dataset.histories.offsets.dtype) == (np.int32, np.int64)


def test_row_i_of_items_describes_item_i() -> None:
    dataset = load(A_USER, ["c", "b", "a"])
    assert dataset.items["item_id"].to_list() == dataset.item_ids == ["c", "b", "a"]


def test_unseen_items_stay_in_the_catalogue() -> None:
    assert load(A_USER, ["a", "b", "c", "new"]).n_items == 4


def test_equal_times_keep_the_order_of_the_file() -> None:
    rows = [("u", "d", 7), ("u", "b", 7), ("u", "c", 7), ("u", "a", 1)]
    assert histories(load(rows)) == {"u": ["a", "d", "b", "c"]}


def test_position_orders_where_there_is_no_timestamp(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": ["u"] * 3, "item_id": ["a", "b", "c"], "position": [2, 0, 1]})
    frame.with_columns(pl.col("position").cast(pl.Int32)).write_parquet(tmp_path / "interactions.parquet")
    assert histories(load_dataset(tmp_path)) == {"u": ["b", "c", "a"]}


def test_timestamp_goes_before_position(tmp_path: Path) -> None:
    columns = {"user_id": ["u"] * 3, "item_id": ["a", "b", "c"], "position": [0, 1, 2], "timestamp": [3, 2, 1]}
    pl.DataFrame(columns).write_parquet(tmp_path / "interactions.parquet")
    assert histories(load_dataset(tmp_path)) == {"u": ["c", "b", "a"]}


def test_position_orders_and_distinguishes_rows_of_one_second(tmp_path: Path) -> None:
    columns = {
        "user_id": ["u"] * 4,
        "item_id": ["a", "b", "a", "c"],
        "position": [2, 1, 0, 0],
        "timestamp": [3, 3, 3, 2],
    }
    pl.DataFrame(columns).write_parquet(tmp_path / "interactions.parquet")
    dataset = load_dataset(tmp_path)
    assert histories(dataset) == {"u": ["c", "a", "b", "a"]}
    assert dataset.dropped == {}
    for other in ([0.5, 0.5, 0.5, 0.5], ["x", None, "", "y"]):  # a column that means something else
        pl.DataFrame({**columns, "position": other}).write_parquet(tmp_path / "interactions.parquet")
        assert histories(load_dataset(tmp_path)) == {"u": ["c", "a", "b"]}


# Duplicates


def test_an_exact_duplicate_is_one_event_and_counted() -> None:
    rows = [("u", "a", 1), ("u", "b", 1), ("u", "a", 1), ("u", "c", 2)]
    dataset = load(rows)
    assert histories(dataset) == {"u": ["a", "b", "c"]}
    assert dataset.dropped == {"interactions: exact duplicates": 1}


def test_the_same_item_at_another_time_is_a_repeat_and_stays() -> None:
    dataset = load([("u", "a", 1), ("u", "b", 2), ("u", "a", 3)])
    assert histories(dataset) == {"u": ["a", "b", "a"]}
    assert dataset.dropped == {}


def test_the_same_row_of_two_users_is_no_duplicate() -> None:
    assert load([*A_USER, *(("v", item, time) for _, item, time in A_USER)]).n_interactions == 6


# Unknown items


def test_an_unknown_item_is_an_error_with_file_row_and_item(tmp_path: Path) -> None:
    write(tmp_path, [*A_USER, ("u", "ghost", 4)], ["a", "b", "c"])
    with pytest.raises(InputError, match=r"interactions\.parquet: column 'item_id', row 4: item 'ghost'"):
        load_dataset(tmp_path)


def test_unknown_items_are_dropped_and_counted_on_demand() -> None:
    rows = [("u", "ghost", 0), *A_USER, ("u", "ghost", 4)]
    dataset = load(rows, ["a", "b", "c"], unknown_items="drop")
    assert histories(dataset) == {"u": ["a", "b", "c"]}
    assert dataset.dropped == {"interactions: unknown items": 2}


# Short users, k-core


def test_users_with_fewer_than_three_interactions_leave_and_are_counted() -> None:
    dataset = load([("short", "x", 1), *A_USER, ("short", "a", 2)])
    assert dataset.user_ids == ["u"]
    assert dataset.item_ids == ["x", "a", "b", "c"]
    assert dataset.dropped == {"users: fewer than 3 interactions": 1, "interactions: fewer than 3 interactions": 2}


def test_a_duplicate_does_not_save_a_short_user() -> None:
    with pytest.raises(InputError, match="nothing left"):
        load([("u", "a", 1), ("u", "b", 2), ("u", "b", 2)])


def test_nothing_left_says_why() -> None:
    with pytest.raises(InputError, match=r"nothing left of 3 .*k-core: 3.*item_core 2"):
        load(A_USER, item_core=2)


def test_items_under_the_core_leave_the_catalogue() -> None:
    rows = [*A_USER, ("v", "a", 1), ("v", "b", 2), ("v", "c", 3), ("v", "rare", 4)]
    dataset = load(rows, ["rare", "a", "unseen", "b", "c"], item_core=2)
    assert dataset.item_ids == dataset.items["item_id"].to_list() == ["a", "b", "c"]
    assert histories(dataset) == {"u": ["a", "b", "c"], "v": ["a", "b", "c"]}
    assert dataset.dropped == {"items: k-core": 2, "interactions: k-core": 1}


def test_the_core_holds_even_after_short_users_left() -> None:
    """Without u1 and u2 (2 interactions each) x has one interaction left, under the core."""
    rows = [("u1", "x", 1), ("u1", "a", 2), ("u2", "x", 1), ("u2", "a", 2)]
    rows += [(user, item, time) for user in "vw" for time, item in enumerate("abc")] + [("v", "x", 9)]
    dataset = load(rows, item_core=2)
    assert "x" not in dataset.item_ids
    assert histories(dataset) == {"v": ["a", "b", "c"], "w": ["a", "b", "c"]}


@pytest.mark.parametrize("wrong", [{"user_core": -1}, {"core": 5}, {"unknown_items": "keep"}])
def test_a_wrong_setting_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DataSettings.model_validate(wrong)


# Leave-one-out


def test_leave_one_out_by_hand() -> None:
    rows = [("u", item, time) for time, item in enumerate("abcde")] + [("v", item, 0) for item in "cba"]
    dataset = load(rows, list("abcde"))
    training, validation, test = (training_histories(dataset), validation_targets(dataset), test_targets(dataset))
    assert [part.tolist() for part in training] == [[0, 1, 2], [2]]
    assert [part.tolist() for part in validation.histories] == [[0, 1, 2], [2]]
    assert validation.targets.tolist() == [3, 1]
    assert [part.tolist() for part in test.histories] == [[0, 1, 2, 3], [2, 1]]
    assert test.targets.tolist() == [4, 0]
    assert validation.targets.dtype == test.targets.dtype == np.int64


def test_a_sequence_that_is_not_there_is_an_index_error() -> None:
    sequences = Ragged(np.array([1, 2], dtype=np.int32), np.array([0, 2]))
    assert len(sequences) == 1
    for wrong in (1, -1):
        with pytest.raises(IndexError):
            sequences[wrong]


# What holds for every log

logs = st.lists(
    st.tuples(st.sampled_from("uvwxyz"), st.sampled_from("abcdefg"), st.integers(0, 6)), min_size=1, max_size=60
)


def load_or_none(rows: list[Row], **options: int) -> Dataset | None:
    """None where nothing is left, which is a separate error."""
    try:
        return load(rows, **options)
    except InputError as error:
        if "nothing left" not in str(error):
            raise
        return None


def slow_histories(rows: list[Row]) -> dict[str, list[str]]:
    """The rules in words: per user the distinct events, sorted by time alone (Python's sort is stable)."""
    by_user: dict[str, list[Row]] = {}
    for row in rows:
        events = by_user.setdefault(row[0], [])
        if row not in events:
            events.append(row)
    return {
        user: [item for _, item, _ in sorted(events, key=lambda event: event[2])]
        for user, events in by_user.items()
        if len(events) >= 3
    }


@given(logs)
def test_histories_are_the_distinct_events_stably_sorted_by_time(rows: list[Row]) -> None:
    dataset = load_or_none(rows)
    assert (histories(dataset) if dataset else {}) == slow_histories(rows)


@given(logs)
def test_training_validation_and_test_make_the_full_history(rows: list[Row]) -> None:
    dataset = load_or_none(rows)
    if dataset is None:
        return
    training, validation, test = (training_histories(dataset), validation_targets(dataset), test_targets(dataset))
    assert len(training) == len(validation.histories) == len(test.histories) == dataset.n_users
    for user in range(dataset.n_users):
        joined = [*training[user], validation.targets[user], test.targets[user]]
        assert joined == dataset.histories[user].tolist()
        assert validation.histories[user].tolist() == training[user].tolist()
        assert test.histories[user].tolist() == [*training[user], validation.targets[user]]


@given(logs, st.integers(0, 4), st.integers(0, 4))
def test_the_core_is_satisfied_maximal_and_a_fixed_point(rows: list[Row], user_core: int, item_core: int) -> None:
    dataset = load_or_none(rows, user_core=user_core, item_core=item_core)
    events = set(rows)
    while True:  # the definition: take out whatever does not satisfy, until all do
        users, items = Counter(user for user, _, _ in events), Counter(item for _, item, _ in events)
        kept = {e for e in events if users[e[0]] >= max(user_core, 3) and items[e[1]] >= item_core}
        if kept == events:
            break
        events = kept
    found = histories(dataset) if dataset else {}
    assert Counter((user, item) for user, history in found.items() for item in history) == Counter(
        (user, item) for user, item, _ in events
    )
    if dataset is None:
        return
    counts = np.bincount(dataset.histories.values, minlength=dataset.n_items)
    assert (dataset.histories.lengths >= max(user_core, 3)).all()
    assert (counts >= item_core).all()
    again = load(
        [event for event in rows if event in events], dataset.item_ids, user_core=user_core, item_core=item_core
    )
    assert histories(again) == found
    assert not [reason for reason in again.dropped if "duplicates" not in reason]


@given(logs, st.integers(0, 4), st.integers(0, 4))
def test_every_row_is_kept_or_counted(rows: list[Row], user_core: int, item_core: int) -> None:
    dataset = load_or_none(rows, user_core=user_core, item_core=item_core)
    if dataset is None:
        return
    for what, kept, read in [
        ("interactions", dataset.n_interactions, len(rows)),
        ("users", dataset.n_users, len({user for user, _, _ in rows})),
        ("items", dataset.n_items, len({item for _, item, _ in rows})),
    ]:
        assert kept + sum(n for reason, n in dataset.dropped.items() if reason.startswith(what)) == read


@given(logs, st.randoms(use_true_random=False))
def test_how_users_are_interleaved_does_not_change_a_history(rows: list[Row], random: object) -> None:
    turns = [user for user, _, _ in rows]
    random.shuffle(turns)  # type: ignore[attr-defined]
    queues = {user: iter([row for row in rows if row[0] == user]) for user in set(turns)}
    shuffled = [next(queues[user]) for user in turns]
    before, after = load_or_none(rows), load_or_none(shuffled)
    assert (histories(before) if before else {}) == (histories(after) if after else {})


def test_an_items_categories_are_numbered_each_once_and_it_may_have_none(tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": ["a", "b", "c"], "categories": [["Toys", "Art", "Toys"], None, ["Toys"]]})
    log = pl.DataFrame({"user_id": ["u"] * 3, "item_id": ["a", "b", "c"], "timestamp": [1, 2, 3]})
    items.write_parquet(tmp_path / "items.parquet")
    log.write_parquet(tmp_path / "interactions.parquet")
    categories, names = item_categories(load_dataset(tmp_path))
    assert names == ["Art", "Toys"]
    assert [row.tolist() for row in categories] == [[0, 1], [], [1]]


# What is held out


def drawn_rows(users: int = 40, items: int = 30, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [(f"u{u}", f"i{i}", t) for u in range(users) for t, i in enumerate(rng.integers(0, items, 3 + u % 7))]


CATALOGUE = [f"i{i}" for i in range(30)]
HELD = 0.3


def test_without_held_out_items_the_data_is_as_if_they_had_never_existed() -> None:
    full, left = load(drawn_rows(), CATALOGUE), load(drawn_rows(), CATALOGUE, hold_out_items=HELD)
    gone = set(full.item_ids) - set(left.item_ids)
    assert len(gone) == 9
    reference = load([row for row in drawn_rows() if row[1] not in gone], [i for i in CATALOGUE if i not in gone])
    assert histories(left) == histories(reference)
    assert left.item_ids == reference.item_ids == left.items["item_id"].to_list()
    assert left.dropped["items: held out"] == 9
    assert left.dropped["interactions: held out"] == sum(row[1] in gone for row in drawn_rows())
    assert left.n_users < full.n_users, "some had too few interactions left"
    assert left.dropped["users: fewer than 3 interactions"] == full.n_users - left.n_users


def test_cold_start_targets_are_last_items_that_are_held_out_given_the_rest_of_the_history() -> None:
    full, left = load(drawn_rows(), CATALOGUE), load(drawn_rows(), CATALOGUE, hold_out_items=HELD)
    gone = set(full.item_ids) - set(left.item_ids)
    expected = {
        user: (history[-1], [item for item in history if item not in gone])
        for user, history in histories(full).items()
        if history[-1] in gone and user in left.user_ids
    }
    assert len(expected) > 3
    targets = cold_start_targets(full, left)
    assert targets.users is not None
    found = {
        left.user_ids[user]: (full.item_ids[item], [full.item_ids[i] for i in history])
        for user, item, history in zip(targets.users, targets.targets, targets.histories, strict=True)
    }
    assert found == expected


def test_the_draw_follows_from_its_own_seed() -> None:
    same, again, other = (
        load(drawn_rows(), CATALOGUE, hold_out_items=HELD, hold_out_seed=seed).item_ids for seed in (0, 0, 1)
    )
    assert same == again
    assert same != other


def test_held_out_users_are_evaluated_but_not_trained_on() -> None:
    full = load(drawn_rows())
    before: set[int] = set()
    for share in (0.1, 0.5, 0.9):
        dataset = load(drawn_rows(), hold_out_users=share)
        assert dataset.trained_on is not None
        out = set(np.flatnonzero(~dataset.trained_on).tolist())
        assert len(out) == round(share * 40)
        assert before < out, "a larger share contains a smaller one"
        before = out
        for user, (history, all_of_it) in enumerate(
            zip(training_histories(dataset), training_histories(full), strict=True)
        ):
            assert history.tolist() == ([] if user in out else all_of_it.tolist())
        for part in (validation_targets, test_targets):
            assert part(dataset).targets.tolist() == part(full).targets.tolist()
            assert part(dataset).histories.values.tolist() == part(full).histories.values.tolist()


def test_too_much_held_out_is_an_error() -> None:
    with pytest.raises(InputError, match="lower hold_out_items"):
        load(A_USER, hold_out_items=0.1)  # one of three: what is left cannot be split
    with pytest.raises(ValidationError):
        load(A_USER, hold_out_users=1)
