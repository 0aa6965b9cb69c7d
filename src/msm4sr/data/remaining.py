"""Which users, items and interactions the rules keep, counted chunk by chunk of the interactions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from msm4sr.ragged import Ragged

MIN_HISTORY = 3  # one item each to train on, to validate and to test
CHUNK = 1 << 20  # interactions
ONE = np.uint32(1)  # of the type of the counts: adding another is 30 times as slow
Ints = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]
Pairs = Callable[[], Iterable[tuple[Ints, Ints]]]
"""Gives the number of the user and of the item of each interaction, in chunks, from the start at each call."""


def pairs_of(histories: Ragged) -> Iterator[tuple[Ints, Ints]]:
    """The interactions of histories in chunks, which may end within a history."""
    offsets = np.asarray(histories.offsets)
    for start in range(0, len(histories.values), CHUNK):
        end = min(start + CHUNK, len(histories.values))
        first, last = (int(np.searchsorted(offsets, place, side="right")) - 1 for place in (start, end - 1))
        lengths = np.diff(np.clip(offsets[first : last + 2], start, end))
        yield np.repeat(np.arange(first, last + 1), lengths), histories.values[start:end]


def k_core(pairs: Pairs, n_users: int, n_items: int, user_core: int, item_core: int) -> tuple[Flags, Flags]:
    """Drop users and items with fewer than `user_core` or `item_core` interactions until all that remain have enough.

    Repeats count.

    Returns:
        Which users and items remain: bool [n_users], [n_items].
    """
    keep_user, keep_item, changed = np.ones(n_users, dtype=bool), np.ones(n_items, dtype=bool), True
    while changed:
        of_user, of_item = np.zeros(n_users, dtype=np.uint32), np.zeros(n_items, dtype=np.uint32)
        for user, item in pairs():
            stay = keep_user[user] & keep_item[item]
            np.add.at(of_user, user[stay], ONE)
            np.add.at(of_item, item[stay], ONE)
        changed = False
        for keep, count, core in ((keep_user, of_user, user_core), (keep_item, of_item, item_core)):
            changed |= bool((keep & (count < core)).any())
            keep &= count >= core
    return keep_user, keep_item


class Remaining:
    """Interactions, sorted by user and time, and flags of the users and items that the rules keep.

    Args:
        pairs: the interactions.
        n_users, n_items: how many there are.
        dropped: see below.
        training: for a temporal split, the interactions before validation: only they count for the cores, and every
            user with an interaction is kept. None: all count, and a user needs `MIN_HISTORY`.

    Attributes:
        keep_user: bool [n_users].
        keep_item: bool [n_items].
        dropped: what was dropped, counted by reason.
    """

    def __init__(
        self, pairs: Pairs, n_users: int, n_items: int, dropped: Counter[str], training: Pairs | None = None
    ) -> None:
        self._pairs, self._training, self.dropped = pairs, training, dropped
        self.keep_user, self.keep_item = np.ones(n_users, dtype=bool), np.ones(n_items, dtype=bool)

    def drop(self, reason: str, users: Flags | bool = False, items: Flags | bool = False) -> None:
        """Drop these users and items with their interactions."""
        users, items = self.keep_user & users, self.keep_item & items
        gone = 0
        if users.any() or items.any():
            gone = sum(int((users[user] | items[item]).sum()) for user, item in self._kept())
        self.keep_user &= ~users
        self.keep_item &= ~items
        for name, count in (("users", users.sum()), ("items", items.sum()), ("interactions", gone)):
            self.dropped[f"{name}: {reason}"] += int(count)

    def drop_short_histories(self) -> bool:
        """Drop users with fewer than `MIN_HISTORY` interactions (temporal split: none). Returns whether any was."""
        least = MIN_HISTORY if self._training is None else 1
        short = self.keep_user & (self._lengths() < least)
        self.drop(f"fewer than {least} interactions" if least > 1 else "no interactions left", users=short)
        return bool(short.any())

    def apply_cores(self, user_core: int, item_core: int) -> None:
        """Apply the cores and the shortest history until both hold."""
        changed = True
        while changed:
            if user_core or item_core:
                sizes = len(self.keep_user), len(self.keep_item)
                users, items = k_core(lambda: self._kept(self._training), *sizes, user_core, item_core)
                self.drop("k-core", ~users, ~items)
            changed = self.drop_short_histories()

    def lengths(self, pairs: Pairs | None = None) -> Ints:
        """The number of interactions (of all, or of these) of each user that is kept: int64."""
        return self._lengths(pairs)[self.keep_user].astype(np.int64)

    def values(self) -> Iterator[Ints]:
        """The items of the interactions that are kept, in chunks: their new numbers, int32."""
        numbers = (np.cumsum(self.keep_item) - 1).astype(np.int32)
        for _, item in self._kept():
            yield numbers[item]

    def histories(self) -> Ragged:
        """The histories of the users that are kept, in memory."""
        return Ragged.from_lengths(np.concatenate([np.zeros(0, np.int32), *self.values()]), self.lengths())

    def _lengths(self, pairs: Pairs | None = None) -> Ints:
        lengths = np.zeros(len(self.keep_user), dtype=np.uint32)
        for user, _ in self._kept(pairs):
            np.add.at(lengths, user, ONE)
        return lengths

    def _kept(self, pairs: Pairs | None = None) -> Iterator[tuple[Ints, Ints]]:
        for user, item in (pairs or self._pairs)():
            kept = self.keep_user[user] & self.keep_item[item]
            yield (user, item) if kept.all() else (user[kept], item[kept])
