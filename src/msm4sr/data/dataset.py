"""From a prepared folder to integer histories, and their leave-one-out parts.

The rules, each of them counted in `Dataset.dropped` where it drops something:

1. An interaction with an item that `items.parquet` lacks is an error, or dropped (`unknown_items: drop`).
2. A user's history is sorted by `timestamp` (else `position`); **ties keep the file's order**.
3. **Duplicates**: rows with the same user, item and time are one event, the first is kept. The same item at
   another time is a repeat and stays.
4. k-core: users under `user_core` and items under `item_core` interactions (repeats count) leave, again and
   again until all that remain satisfy both; such items leave the catalogue too.
5. A user with fewer than 3 interactions cannot be split into training, validation and test, and leaves.
   Where that takes an item under `item_core`, rule 4 is applied again.
6. `hold_out_items`: a share of the items is taken out, with all their interactions, as if the shop did not have them
   yet; then rule 5 again. What remains is the data set, to train on and to measure; `cold_start_targets` gives the
   users whose last interaction is with one of them.
7. `hold_out_users`: a share of the users is not trained on; all are measured, so that every share measures the same.

Last item = test, the one before = validation, the rest = training.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from msm4sr.data.kcore import k_core
from msm4sr.data.schema import INTERACTIONS, ITEMS, read_interactions, read_items
from msm4sr.errors import InputError
from msm4sr.ragged import Ragged

MIN_HISTORY = 3  # one item each to train on, to validate and to test

Ints = npt.NDArray[Any]


class DataSettings(BaseModel):
    """How a prepared folder becomes a `Dataset`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    user_core: int = Field(0, ge=0)
    """Users with fewer interactions leave; 0 keeps all (that can be split)."""
    item_core: int = Field(0, ge=0)
    """Items with fewer interactions leave, the catalogue too; 0 keeps all, items nobody took included."""
    unknown_items: Literal["error", "drop"] = "error"
    """What an interaction with an item that the catalogue lacks is: an error, or dropped and counted."""
    hold_out_items: float = Field(0.0, ge=0, lt=1)
    """Share of the items that are taken out, to be recommended when they arrive: strict cold start."""
    hold_out_users: float = Field(0.0, ge=0, lt=1)
    """Share of the users that are not trained on; a larger share contains a smaller one."""
    hold_out_seed: int = Field(0, ge=0)
    """Of both draws; not that of the run, so that runs of all seeds measure the same."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Users, items and histories, numbered from 0; user u took `values[offsets[u]:offsets[u + 1]]`."""

    folder: Path
    user_ids: list[str]
    """User u's name; users in order of first appearance in the file."""
    item_ids: list[str]
    """Item i's name, in row order of `items.parquet`; every item of the catalogue, taken or not."""
    offsets: Ints
    """int64 [users + 1]."""
    values: Ints
    """int32 [interactions], the items of user 0, of user 1, ..., oldest first."""
    items: pl.DataFrame
    """Row i describes item i: item_id, title, text, categories, image (see `read_items`)."""
    dropped: dict[str, int]
    """Reason to count, for example {"interactions: exact duplicates": 3}; never a count of 0."""
    trained_on: npt.NDArray[np.bool_] | None = None
    """[users]: whose interactions are trained on; None: everybody's."""

    @property
    def n_users(self) -> int:
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        return len(self.item_ids)

    @property
    def n_interactions(self) -> int:
        return len(self.values)

    def history(self, user: int) -> Ints:
        """User number `user`'s items, oldest first: int32 [length]."""
        return Ragged(self.values, self.offsets)[user]


@dataclass(frozen=True, eq=False)
class Targets:
    """What to rank: item `targets[u]` (int64 [rows]) given `histories[u]`."""

    histories: Ragged
    targets: Ints
    users: Ints | None = None
    """int64 [rows], whose they are; None: those of users 0, 1, ..."""


def load_dataset(folder: str | Path, settings: DataSettings = DataSettings()) -> Dataset:
    """Read a prepared folder by the rules of this module.

    Raises InputError: everything that `read_interactions` and `read_items` raise, an item that the catalogue
    lacks, nothing left after the filters.
    """
    folder = Path(folder)
    log = read_interactions(folder)
    items = read_items(folder)
    dropped: Counter[str] = Counter()

    item, known = _numbers(log["item_id"], items["item_id"])
    if not known.all():
        _unknown(folder, log, known, settings)
        dropped["interactions: unknown items"] = int((~known).sum())
    user_names = log["user_id"].unique(maintain_order=True)
    user, _ = _numbers(log["user_id"], user_names)

    events = pl.DataFrame({"user": user, "item": item, "order": log["order"]}).filter(pl.Series(known))
    distinct = events.unique(maintain_order=True, keep="first")
    dropped["interactions: exact duplicates"] = len(events) - len(distinct)
    user, item, order = (distinct[name].to_numpy() for name in ("user", "item", "order"))
    by_time = np.lexsort((order, user))  # stable: ties keep the file's order
    user, item = user[by_time], item[by_time]

    user, item, keep_user, keep_item = _filter(user, item, len(user_names), len(items), settings, dropped)
    if not len(user):
        reasons = "; ".join(f"{reason}: {count}" for reason, count in dropped.items() if count)
        raise InputError(
            f"{folder}: nothing left of {len(log)} interactions ({reasons}); a user needs at least "
            f"{MIN_HISTORY}, and user_core is {settings.user_core}, item_core {settings.item_core}"
        )
    items = items.filter(pl.Series(keep_item))
    lengths = np.bincount(user, minlength=len(user_names))[keep_user]
    dataset = Dataset(
        folder=folder,
        user_ids=user_names.filter(pl.Series(keep_user)).to_list(),
        item_ids=items["item_id"].to_list(),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        values=(np.cumsum(keep_item) - 1)[item].astype(np.int32),
        items=items,
        dropped={reason: count for reason, count in dropped.items() if count},
    )
    if settings.hold_out_items:
        dataset = without_items(dataset, _drawn(settings.hold_out_items, dataset.n_items, settings, 0))
    if settings.hold_out_users:
        dataset = replace(dataset, trained_on=~_drawn(settings.hold_out_users, dataset.n_users, settings, 1))
    return dataset


def training_histories(dataset: Dataset) -> Ragged:
    """Each user's items but the last two; of users that are not trained on, none."""
    histories = _without_last(dataset, 2)
    if dataset.trained_on is None:
        return histories
    lengths = np.diff(histories.offsets)
    return Ragged(
        histories.values[np.repeat(dataset.trained_on, lengths)],
        np.concatenate([[0], np.cumsum(lengths * dataset.trained_on)]).astype(np.int64),
    )


def validation_targets(dataset: Dataset) -> Targets:
    """Each user's second last item, to be ranked given all before it."""
    return Targets(_without_last(dataset, 2), dataset.values[dataset.offsets[1:] - 2].astype(np.int64))


def test_targets(dataset: Dataset) -> Targets:
    """Each user's last item, to be ranked given all before it (training and validation part)."""
    return Targets(_without_last(dataset, 1), dataset.values[dataset.offsets[1:] - 1].astype(np.int64))


# The name starts with `test_`; pytest must not collect it where a test module imports it.
test_targets.__test__ = False  # type: ignore[attr-defined]


def without_items(dataset: Dataset, items: npt.NDArray[np.bool_]) -> Dataset:
    """The data set as it was before these items [N] came: they and their interactions are taken out, and then users
    with fewer than 3. InputError where nothing is left.
    """
    kept = ~items[dataset.values]
    user = np.repeat(np.arange(dataset.n_users), np.diff(dataset.offsets))
    remains = np.bincount(user[kept], minlength=dataset.n_users) >= MIN_HISTORY
    short = kept & ~remains[user]
    kept &= ~short
    if not kept.any():
        raise InputError(
            f"{dataset.folder}: nothing left of {dataset.n_interactions:,} interactions without the "
            f"{items.sum():,} items that are held out; lower hold_out_items"
        )
    dropped = Counter(dataset.dropped)
    dropped["items: held out"] += int(items.sum())
    dropped["interactions: with items held out"] += int(items[dataset.values].sum())
    dropped[f"users: fewer than {MIN_HISTORY} interactions"] += int((~remains).sum())
    dropped[f"interactions: fewer than {MIN_HISTORY} interactions"] += int(short.sum())
    lengths = np.bincount(user[kept], minlength=dataset.n_users)[remains]
    table = dataset.items.filter(pl.Series(~items))
    return replace(
        dataset,
        user_ids=[name for name, stays in zip(dataset.user_ids, remains, strict=True) if stays],
        item_ids=table["item_id"].to_list(),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        values=(np.cumsum(~items) - 1)[dataset.values[kept]].astype(np.int32),
        items=table,
        dropped={reason: count for reason, count in dropped.items() if count},
    )


def cold_start_targets(whole: Dataset, dataset: Dataset) -> Targets:
    """Of the users of `dataset` those whose last item in `whole` is one that `dataset` lacks: that item is to be ranked
    given all that they took in `dataset`. Items are rows of `whole`, users are rows of `dataset`.
    """
    place = {name: row for row, name in enumerate(whole.item_ids)}
    known = np.array([place[name] for name in dataset.item_ids], dtype=np.int64)
    is_known = np.isin(np.arange(whole.n_items), known)
    row = {name: user for user, name in enumerate(whole.user_ids)}
    last = whole.values[whole.offsets[1:] - 1][[row[name] for name in dataset.user_ids]].astype(np.int64)
    users = np.flatnonzero(~is_known[last])
    lengths = np.diff(dataset.offsets)
    theirs = np.repeat(~is_known[last], lengths)
    histories = Ragged(
        known[dataset.values[theirs]].astype(np.int32),
        np.concatenate([[0], np.cumsum(lengths[users])]).astype(np.int64),
    )
    return Targets(histories, last[users], users)


def _drawn(share: float, count: int, settings: DataSettings, number: int) -> npt.NDArray[np.bool_]:
    """A share of so many, at least one: bool [count]. Draws of other numbers are independent."""
    order = np.random.default_rng([settings.hold_out_seed, number]).permutation(count)
    drawn = np.zeros(count, dtype=bool)
    drawn[order[: max(1, round(share * count))]] = True
    return drawn


def item_categories(dataset: Dataset) -> tuple[Ragged, list[str]]:
    """For each item the numbers of its categories, each once, and the categories' names in alphabetical order."""
    if "categories" not in dataset.items.columns:
        return Ragged(np.zeros(0, np.int32), np.zeros(dataset.n_items + 1, np.int64)), []
    named = [sorted(set(names or ())) for names in dataset.items["categories"].to_list()]
    names = sorted({name for item in named for name in item})
    number = {name: n for n, name in enumerate(names)}
    offsets = np.cumsum([0, *(len(item) for item in named)]).astype(np.int64)
    return Ragged(np.array([number[name] for item in named for name in item], dtype=np.int32), offsets), names


def _without_last(dataset: Dataset, count: int) -> Ragged:
    """Every history without its last `count` items (every history is longer than that)."""
    kept = np.ones(len(dataset.values), dtype=bool)
    for back in range(1, count + 1):
        kept[dataset.offsets[1:] - back] = False
    return Ragged(dataset.values[kept], dataset.offsets - count * np.arange(len(dataset.offsets)))


def _numbers(names: pl.Series, index: pl.Series) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """The place of each name in `index` (int64, 0 where it has none), and whether it has one."""
    places = pl.DataFrame({"name": index, "place": np.arange(len(index))})
    found = pl.DataFrame({"name": names}).join(places, on="name", how="left", maintain_order="left")["place"]
    return found.fill_null(0).to_numpy(), found.is_not_null().to_numpy()


def _unknown(folder: Path, log: pl.DataFrame, known: npt.NDArray[np.bool_], settings: DataSettings) -> None:
    if settings.unknown_items == "error":
        row = int(np.argmin(known))
        raise InputError(
            f"{folder / INTERACTIONS}: column 'item_id', row {row + 1}: item {log['item_id'][row]!r} "
            f"is not in {ITEMS} ({int((~known).sum())} such rows); add the item, or set unknown_items: drop"
        )


def _filter(
    user: Ints, item: Ints, n_users: int, n_items: int, settings: DataSettings, dropped: Counter[str]
) -> tuple[Ints, Ints, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Rules 4 and 5, until nothing more falls out: remaining events, and who remains of users and items."""
    keep_user = np.ones(n_users, dtype=bool)
    keep_item = np.ones(n_items, dtype=bool)

    def drop(users: npt.NDArray[np.bool_], items: npt.NDArray[np.bool_], reason: str) -> bool:
        """Take these users and items out, with their interactions; False when there were none."""
        nonlocal user, item
        users, items = users & keep_user, items & keep_item
        if not (users.any() or items.any()):
            return False
        keep_user[users], keep_item[items] = False, False
        gone = users[user] | items[item]
        user, item = user[~gone], item[~gone]
        dropped[f"users: {reason}"] += int(users.sum())
        dropped[f"items: {reason}"] += int(items.sum())
        dropped[f"interactions: {reason}"] += int(gone.sum())
        return True

    changed = True
    while changed:
        core_users, core_items, _ = k_core(user, item, n_users, n_items, settings.user_core, settings.item_core)
        drop(~core_users, ~core_items, "k-core")
        short = np.bincount(user, minlength=n_users) < MIN_HISTORY
        changed = drop(short, np.zeros(n_items, dtype=bool), f"fewer than {MIN_HISTORY} interactions")
    return user, item, keep_user, keep_item
