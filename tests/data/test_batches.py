"""Every pair once an epoch, whatever the histories."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import numpy as np
import pytest
import torch
from builders import ragged
from hypothesis import given
from hypothesis import strategies as st

from msm4sr.data.batches import Batch, count_batches, epoch_batches, pad_histories
from msm4sr.ragged import Ragged

Pairs = Literal["all", "last"]

# All items are different and encode user and position: item = 1000 user + position
lengths_of_users = st.lists(st.integers(0, 23), min_size=1, max_size=8).filter(lambda n: max(n) >= 2)
both = pytest.mark.parametrize("pairs", ["all", "last"])


def numbered(lengths: list[int]) -> Ragged:
    return ragged([[1000 * user + position for position in range(n)] for user, n in enumerate(lengths)])


def epoch(
    histories: Ragged,
    pairs: Pairs = "all",
    max_history: int = 5,
    batch_pairs: int = 7,
    drop: float = 0.0,
    seed: int = 0,
) -> list[Batch]:
    rng = np.random.default_rng(seed)
    return list(
        epoch_batches(histories, max_history=max_history, batch_pairs=batch_pairs, pairs=pairs, drop=drop, rng=rng)
    )


def pairs_of(batches: list[Batch]) -> list[tuple[tuple[int, ...], int]]:
    """(the items of the row up to the position, target) of every pair."""
    found = []
    for batch in batches:
        for row, slot in batch.mask.nonzero().tolist():
            found.append((tuple(batch.items[row, : slot + 1].tolist()), int(batch.targets[row, slot])))
    return found


def widths(batch: Batch) -> list[int]:
    """How many items each row has: its last pair ends it."""
    return [int(row.nonzero().max()) + 1 for row in batch.mask]


@both
@given(lengths=lengths_of_users, max_history=st.integers(1, 9), batch_pairs=st.integers(1, 30), seed=st.integers(0, 99))
def test_every_pair_of_every_history_comes_exactly_once(
    pairs: Pairs, lengths: list[int], max_history: int, batch_pairs: int, seed: int
) -> None:
    found = pairs_of(epoch(numbered(lengths), pairs, max_history, batch_pairs, seed=seed))
    ends = Counter((prefix[-1], target) for prefix, target in found)
    expected = {
        (1000 * user + position, 1000 * user + position + 1)
        for user, n in enumerate(lengths)
        for position in range(n - 1)
    }
    assert ends == Counter(expected)


@both
@given(lengths=lengths_of_users, max_history=st.integers(1, 9), seed=st.integers(0, 99))
def test_a_row_is_a_window_of_one_history_no_longer_than_max_history(
    pairs: Pairs, lengths: list[int], max_history: int, seed: int
) -> None:
    for prefix, target in pairs_of(epoch(numbered(lengths), pairs, max_history, seed=seed)):
        assert len(prefix) <= max_history
        assert list(prefix) == list(range(prefix[0], prefix[0] + len(prefix)))  # in order, of one user
        assert target == prefix[-1] + 1


@given(lengths=lengths_of_users, max_history=st.integers(1, 9))
def test_with_last_a_prefix_is_the_latest_items_of_its_history(lengths: list[int], max_history: int) -> None:
    for prefix, target in pairs_of(epoch(numbered(lengths), "last", max_history)):
        assert len(prefix) == min(max_history, target % 1000)


def test_with_all_a_history_that_fits_is_one_row() -> None:
    batches = epoch(numbered([6, 4]), "all", max_history=5, batch_pairs=100)
    assert [len(b.items) for b in batches] == [2]
    assert {prefix[0] % 1000 for prefix, _ in pairs_of(batches)} == {0}


def test_with_last_every_row_has_one_pair_at_its_end() -> None:
    for batch in epoch(numbered([9, 4, 2]), "last"):
        assert batch.mask.sum(dim=1).tolist() == [1] * len(batch.items)


def test_a_long_history_is_cut_at_other_places_every_epoch() -> None:
    histories = numbered([40])
    starts = [{p[0] for p, _ in pairs_of(epoch(histories, max_history=10, seed=seed))} for seed in range(6)]
    assert len({frozenset(s) for s in starts}) > 1
    assert all(0 in s for s in starts)


@both
def test_padding_is_on_the_right_is_item_0_and_is_no_pair(pairs: Pairs) -> None:
    histories = Ragged(numbered([9, 3, 5]).values + 1, numbered([9, 3, 5]).offsets)  # no real item 0
    for batch in epoch(histories, pairs, batch_pairs=100):
        assert batch.items.shape == batch.targets.shape == batch.mask.shape
        assert batch.items.dtype == batch.targets.dtype == torch.int64
        for row, width in enumerate(widths(batch)):
            assert (batch.items[row, :width] > 0).all()
            assert not batch.items[row, width:].any()
            assert not batch.mask[row, width:].any()
        assert not batch.targets[~batch.mask].any()


# Batch sizes


@both
@given(
    lengths=st.lists(st.integers(2, 30), min_size=5, max_size=40),
    max_history=st.integers(1, 9),
    batch_pairs=st.integers(10, 60),
)
def test_a_batch_has_about_the_pairs_asked_for(
    pairs: Pairs, lengths: list[int], max_history: int, batch_pairs: int
) -> None:
    sizes = [int(b.mask.sum()) for b in epoch(numbered(lengths), pairs, max_history, batch_pairs)]
    row = 1 if pairs == "last" else max_history
    assert all(size < batch_pairs + row for size in sizes)
    assert sum(size <= batch_pairs - row for size in sizes) <= 1  # the rest at the end of the epoch
    assert sum(sizes) == sum(lengths) - len(lengths)


@both
def test_the_number_of_batches_is_about_right(pairs: Pairs) -> None:
    lengths = np.random.default_rng(0).integers(2, 60, 200).tolist()
    for batch_pairs in (5, 10, 50, 333, 10_000):
        announced = count_batches(numbered(lengths), max_history=20, batch_pairs=batch_pairs, pairs=pairs)
        assert len(epoch(numbered(lengths), pairs, 20, batch_pairs)) == pytest.approx(announced, rel=0.05, abs=1)


def test_rows_of_a_batch_have_similar_lengths() -> None:
    """Little padding: without the sorting by length about half of the slots would be padding here."""
    lengths = np.random.default_rng(0).integers(2, 42, 2000).tolist()
    batches = epoch(numbered(lengths), "all", max_history=40, batch_pairs=200)
    slots = sum(b.items.numel() for b in batches)
    assert sum(int(b.mask.sum()) for b in batches) > 0.85 * slots


def test_batches_do_not_come_in_the_order_of_their_lengths() -> None:
    lengths = np.random.default_rng(0).integers(2, 42, 500).tolist()
    seen = [b.items.shape[1] for b in epoch(numbered(lengths), "all", max_history=40, batch_pairs=200)]
    assert seen != sorted(seen)


@both
@pytest.mark.parametrize("drop", [0.0, 0.4])
def test_the_same_draws_make_the_same_batches_and_others_make_others(pairs: Pairs, drop: float) -> None:
    histories = numbered([9, 4, 23, 2, 11])
    one, again, other = (epoch(histories, pairs, drop=drop, seed=seed) for seed in (1, 1, 2))
    assert len(one) == len(again)
    for a, b in zip(one, again, strict=True):
        assert torch.equal(a.items, b.items)
        assert torch.equal(a.targets, b.targets)
        assert torch.equal(a.mask, b.mask)
    assert pairs_of(one) != pairs_of(other)


# Users with too little


@both
def test_users_with_one_training_item_or_none_give_no_pair(pairs: Pairs) -> None:
    found = pairs_of(epoch(numbered([1, 3, 0, 1, 2]), pairs))
    assert {target // 1000 for _, target in found} == {1, 4}
    assert len(found) == 3


@both
def test_histories_without_any_pair_are_an_epoch_without_batches(pairs: Pairs) -> None:
    assert epoch(numbered([1, 1, 0]), pairs) == []


# Sequence random drop


@both
@given(lengths=lengths_of_users, drop=st.floats(0.01, 0.99), max_history=st.integers(1, 9), seed=st.integers(0, 99))
def test_a_kept_item_keeps_the_one_that_followed_it_as_its_target(
    pairs: Pairs, lengths: list[int], drop: float, max_history: int, seed: int
) -> None:
    for prefix, target in pairs_of(epoch(numbered(lengths), pairs, max_history, drop=drop, seed=seed)):
        assert target == prefix[-1] + 1
        assert list(prefix) == sorted(set(prefix))  # order kept, nothing twice
        assert target - prefix[0] <= max_history


@both
def test_however_much_is_dropped_every_row_keeps_an_item(pairs: Pairs) -> None:
    histories = numbered([3] * 300)
    full = sum(len(b.items) for b in epoch(histories, pairs))
    batches = epoch(histories, pairs, drop=0.999)
    assert sum(len(b.items) for b in batches) == full
    assert all(b.mask.any(dim=1).all() for b in batches)


def test_drop_loses_half_of_its_bound_on_average_and_another_share_in_every_row() -> None:
    """Each row draws its own probability from U(0, drop)."""
    histories = numbered([41] * 400)
    batches = epoch(histories, "all", max_history=40, batch_pairs=1000, drop=0.6)
    kept = torch.cat([b.mask.sum(dim=1) for b in batches]).double() / 40
    assert float(1 - kept.mean()) == pytest.approx(0.3, abs=0.03)
    assert float(kept.std()) > 0.15  # binomial noise around one common probability would give 0.07


def test_drop_loses_first_and_last_items_as_often_as_others() -> None:
    histories = numbered([11] * 2000)
    batches = epoch(histories, "all", max_history=10, batch_pairs=4000, drop=0.4)
    positions = Counter(target % 1000 for _, target in pairs_of(batches))
    assert all(positions[p] == pytest.approx(0.8 * 2000, rel=0.05) for p in range(1, 11))


# Ragged to rank with


def test_the_latest_items_of_a_history_are_padded_on_the_right() -> None:
    items, lengths = pad_histories(ragged([[1, 2, 3, 4], [5], [6, 7]]), max_history=3)
    assert items.tolist() == [[2, 3, 4], [5, 0, 0], [6, 7, 0]]
    assert lengths.tolist() == [3, 1, 2]
    assert items.dtype == torch.int64


@given(st.lists(st.lists(st.integers(1, 9), max_size=7), min_size=1, max_size=6), st.integers(1, 8), st.data())
def test_any_rows_are_padded(histories: list[list[int]], max_history: int, data: st.DataObject) -> None:
    rows = data.draw(st.none() | st.lists(st.integers(0, len(histories) - 1), min_size=1, max_size=8))
    wanted = [histories[row][-max_history:] for row in (range(len(histories)) if rows is None else rows)]
    items, lengths = pad_histories(ragged(histories), max_history, None if rows is None else np.array(rows))
    assert lengths.tolist() == [len(history) for history in wanted]
    longest = max(1, *(len(history) for history in wanted))
    assert items.tolist() == [history + [0] * (longest - len(history)) for history in wanted]
