"""The k-core of a log."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]


def k_core(
    user: Ints, item: Ints, n_users: int, n_items: int, user_core: int, item_core: int
) -> tuple[Flags, Flags, Flags]:
    """Who remains when users under `user_core` and items under `item_core` interactions leave, again and again
    until all that remain satisfy both: of the users bool [n_users], of the items bool [n_items], of the
    interactions bool [len(user)].

    `user` and `item` [interactions] are row numbers; repeats count. A core of 0 removes nobody, one of 1 those
    without an interaction.
    """
    keep_user, keep_item = np.ones(n_users, dtype=bool), np.ones(n_items, dtype=bool)
    kept = np.ones(len(user), dtype=bool)
    while True:
        few_users = keep_user & (np.bincount(user, minlength=n_users) < user_core)
        few_items = keep_item & (np.bincount(item, minlength=n_items) < item_core)
        if not (few_users.any() or few_items.any()):
            return keep_user, keep_item, kept
        keep_user &= ~few_users
        keep_item &= ~few_items
        stay = keep_user[user] & keep_item[item]
        kept[kept] = stay
        user, item = user[stay], item[stay]
