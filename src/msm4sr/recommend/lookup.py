"""Ids that users type: the history of a user id, and suggestions for a misspelt id."""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Sequence

from msm4sr.data.dataset import Dataset
from msm4sr.data.items import Items
from msm4sr.errors import InputError

# difflib needs about 10 us a candidate; beyond this many, only those that share most letters are compared.
CLOSE_CANDIDATES = 5_000


def user_history(dataset: Dataset, user_id: str) -> list[str]:
    """The ids of the items that a user interacted with, oldest first.

    Raises:
        InputError: an unknown user; the message names the closest ids.
    """
    try:
        user = dataset.user_ids.index(user_id)
    except ValueError:
        near = closest_names(user_id, dataset.user_ids)
        hint = f"did you mean {', '.join(map(repr, near))}?" if near else f"ids look like {dataset.user_ids[0]!r}"
        where = f"the {dataset.n_users} users of {dataset.folder}"
        raise InputError(f"no user {user_id!r} among {where}: {hint}") from None
    return [dataset.item_ids[item] for item in dataset.histories[user]]


def no_such_item(item_id: str, items: Items) -> str:
    """A message for an unknown item id that names the closest ids and the ids of the closest titles."""
    near = [items.rows[name] for name in closest_names(item_id, items.item_ids)]
    # Users type titles where ids are expected: show the id of such a title.
    titles = [title or "" for title in items.titles]
    wanted = set(closest_names(item_id, titles))
    near += [row for row, title in enumerate(titles) if title in wanted][:3]
    names = [
        f"{items.item_ids[row]!r} ({titles[row]})" if titles[row].strip() else repr(items.item_ids[row])
        for row in dict.fromkeys(near)
    ]
    hint = f"did you mean {', '.join(names)}?" if names else f"ids look like {items.item_ids[0]!r}"
    return f"no item {item_id[:200]!r} in the catalogue of {len(items)}: {hint}"


def closest_names(name: str, candidates: Sequence[str], n: int = 3) -> list[str]:
    """The `n` candidates most similar to `name`, ignoring case; none where none is similar."""
    folded = name.casefold()
    by_folded: dict[str, str] = {}
    for candidate in candidates:
        by_folded.setdefault(candidate.casefold(), candidate)
    pool = list(by_folded)
    if len(pool) > CLOSE_CANDIDATES:
        letters = set(folded)
        pool = heapq.nsmallest(CLOSE_CANDIDATES, pool, key=lambda other: len(letters ^ set(other)))
    return [by_folded[near] for near in difflib.get_close_matches(folded, pool, n=n, cutoff=0.6)]
