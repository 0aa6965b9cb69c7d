"""The k-core of interactions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]


def k_core(
    user: Ints, item: Ints, n_users: int, n_items: int, user_core: int, item_core: int
) -> tuple[Flags, Flags, Flags]:
    """Drop users and items with too few interactions until all that remain have enough.

    Args:
        user: number of the user of each interaction; repeats count.
        item: number of the item of each interaction.
        n_users: number of users.
        n_items: number of items.
        user_core: interactions that a user needs; 0 keeps all users.
        item_core: interactions that an item needs; 0 keeps all items.

    Returns:
        Which users, items and interactions remain: bool [n_users], [n_items], [interactions].
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
