"""From a prepared folder to numbered histories, and their leave-one-out parts.

The rules, each counted in `Dataset.dropped` if it drops something:

1. An interaction with an item that `items.parquet` lacks is an error, or dropped (`unknown_items: drop`).
2. A user's history is sorted by `timestamp` (else `position`; with both, `position` orders equal seconds);
   **ties keep the order of the file**.
3. **Duplicates**: rows with the same user, item and time are one interaction; the first is kept. The same item at
   another time is a repeat and stays.
4. k-core: users with fewer than `user_core` and items with fewer than `item_core` interactions (repeats count) are
   dropped until all that remain satisfy both; such items leave the catalogue too.
5. A user with fewer than 3 interactions cannot be split into training, validation and test, and is dropped.
   If that brings an item under `item_core`, rule 4 is applied again.
6. `hold_out_items`: a fraction of the items is removed with all their interactions, as if the catalogue did not have
   them yet; then rule 5 applies again. The remaining data set is trained on and evaluated; `cold_start_targets` gives
   the users whose last interaction is with a removed item.
7. `hold_out_users`: a fraction of the users is not trained on. All users are evaluated, so that the metrics of every
   fraction are comparable.

Last item = test, the one before = validation, the rest = training.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field

from msm4sr.data.histories import HistoryRules, load_histories
from msm4sr.data.remaining import Flags, Ints, Remaining, pairs_of
from msm4sr.data.schema import read_items
from msm4sr.data.user_table import read_users
from msm4sr.digests import array_digest, json_digest
from msm4sr.errors import InputError
from msm4sr.ragged import Ragged
from msm4sr.strict import Strict


class DataSettings(Strict):
    """How a prepared folder becomes a `Dataset`."""

    user_core: int = Field(0, ge=0)
    """Users with fewer interactions are dropped; 0 keeps all that can be split."""
    item_core: int = Field(0, ge=0)
    """Items with fewer interactions are dropped, from the catalogue too; 0 keeps all, unseen items included."""
    unknown_items: Literal["error", "drop"] = "error"
    """Whether an interaction with an item that the catalogue lacks is an error, or dropped and counted."""
    hold_out_items: float = Field(0.0, ge=0, lt=1)
    """Fraction of the items that is removed, to be recommended as new items: strict cold start."""
    hold_out_users: float = Field(0.0, ge=0, lt=1)
    """Fraction of the users that is not trained on; a larger fraction contains a smaller one."""
    hold_out_seed: int = Field(0, ge=0)
    """Seed of both draws; separate from the run's seed, so that runs of all seeds evaluate the same users and items."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Users, items and histories, numbered from 0."""

    folder: Path
    user_ids: list[str]  # in order of first appearance in the file
    item_ids: list[str]  # in row order of `items.parquet`: the complete catalogue, unseen items included
    histories: Ragged  # the item numbers (int32) of each user, oldest first
    items: pl.DataFrame  # row i describes item i: item_id, title, text, categories, image (see `read_items`)
    dropped: dict[str, int]  # reason to count, for example {"interactions: exact duplicates": 3}; never a count of 0
    prefixes: tuple[Ragged, ...] = ()  # the histories without their last 0, 1, 2 items, if they are stored
    trained_on: Flags | None = None  # bool [users]: whose interactions are trained on; None: those of all users
    users: pl.DataFrame | None = None  # columns to compare users by, if there are any: see `read_users`

    @property
    def n_users(self) -> int:
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        return len(self.item_ids)

    @property
    def n_interactions(self) -> int:
        return len(self.histories.values)

    @cached_property
    def identity(self) -> dict[str, str]:
        """A count and a digest of users, items and interactions: what training and evaluation depend on."""
        trained_on = np.zeros(0, dtype=bool) if self.trained_on is None else self.trained_on
        interactions = array_digest(self.histories.values, self.histories.offsets, trained_on)
        return {
            "users": f"{self.n_users:,} ({json_digest(self.user_ids)[:12]})",
            "items": f"{self.n_items:,} ({json_digest(self.item_ids)[:12]})",
            "interactions": f"{self.n_interactions:,} ({interactions[:12]})",
        }

    @cached_property
    def content_digest(self) -> str:
        """A hash of the texts, categories and image names of the items."""
        return json_digest(self.items.to_dict(as_series=False))[:12]


@dataclass(frozen=True, eq=False)
class Targets:
    """What to rank: item `targets[row]` given `histories[row]`."""

    histories: Ragged  # item numbers, oldest first, one row for each target
    targets: Ints  # int64 [rows]
    users: Ints | None = None  # int64 [rows]: the user of each row; None: users 0, 1, ...


def load_dataset(folder: str | Path, settings: DataSettings = DataSettings()) -> Dataset:
    """Read a prepared folder by the rules of this module.

    Raises InputError as `read_interactions` and `read_items` do, for an item that the catalogue lacks, and where
    nothing is left.
    """
    folder = Path(folder)
    items = read_items(folder)
    rules = HistoryRules(settings.unknown_items, settings.user_core, settings.item_core)
    stored = load_histories(folder, items, rules)
    items = items.filter(pl.Series(stored.kept_items))
    dataset = Dataset(
        folder=folder,
        user_ids=stored.user_ids,
        item_ids=items["item_id"].to_list(),
        histories=stored.prefixes[0],
        items=items,
        dropped=stored.dropped,
        prefixes=stored.prefixes,
        users=read_users(folder),
    )
    if settings.hold_out_items:
        dataset = without_items(dataset, _draw(settings.hold_out_items, dataset.n_items, settings.hold_out_seed, 0))
    if settings.hold_out_users:
        held_out = _draw(settings.hold_out_users, dataset.n_users, settings.hold_out_seed, 1)
        dataset = replace(dataset, trained_on=~held_out)
    return dataset


def training_histories(dataset: Dataset) -> Ragged:
    """The histories without their last two items; empty for users that are not trained on."""
    histories = validation_targets(dataset).histories
    if dataset.trained_on is None:
        return histories
    return histories.keep(np.repeat(dataset.trained_on, histories.lengths))


def training_counts(dataset: Dataset) -> np.ndarray:
    """The number of training interactions of each item: int64 [items]."""
    counts = np.zeros(dataset.n_items, dtype=np.int64)
    for _, items in pairs_of(training_histories(dataset)):
        np.add.at(counts, items, np.int64(1))
    return counts


def validation_targets(dataset: Dataset) -> Targets:
    """The second last item of each user, to be ranked given all before it."""
    return _targets(dataset, 2)


def test_targets(dataset: Dataset) -> Targets:
    """The last item of each user, to be ranked given all before it (training and validation part)."""
    return _targets(dataset, 1)


# The name starts with `test_`; pytest must not collect it where a test module imports it.
test_targets.__test__ = False  # type: ignore[attr-defined]


def without_items(dataset: Dataset, items: Flags) -> Dataset:
    """The data set, trained on all users, before these items (bool [items]) were added to the catalogue.

    They are removed with their interactions, then the users with fewer than 3 interactions. Raises InputError if
    nothing is left.
    """
    histories, dropped = dataset.histories, Counter(dataset.dropped)
    left = Remaining(lambda: pairs_of(histories), dataset.n_users, dataset.n_items, dropped)
    left.drop("held out", items=items)
    left.drop_short_histories()
    if not left.keep_user.any():
        raise InputError(
            f"{dataset.folder}: nothing left of {dataset.n_interactions:,} interactions without the "
            f"{items.sum():,} items that are held out; lower hold_out_items"
        )
    kept = dataset.items.filter(pl.Series(left.keep_item))
    return Dataset(
        folder=dataset.folder,
        user_ids=list(compress(dataset.user_ids, left.keep_user)),
        item_ids=kept["item_id"].to_list(),
        histories=left.histories(),
        items=kept,
        dropped={reason: count for reason, count in dropped.items() if count},
        users=dataset.users,
    )


def item_rows(full: Dataset, dataset: Dataset) -> Ints:
    """The number in `full` of each item of `dataset`, whose items are a subset of those of `full`: int64 [items]."""
    return _rows_of(pl.Series(dataset.item_ids), pl.Series(full.item_ids))[0]


def cold_start_targets(full: Dataset, dataset: Dataset) -> Targets:
    """What a strict cold-start evaluation ranks; `dataset` is `full` without some of its items (see `without_items`).

    Returns:
        For each user of `dataset` whose last item in `full` is not in `dataset`: that item, given the user's history
        in `dataset`. Items are numbered as in `full`, users as in `dataset`.
    """
    known = item_rows(full, dataset)
    in_full, _ = _rows_of(pl.Series(dataset.user_ids), pl.Series(full.user_ids))
    last = test_targets(full).targets[in_full]
    users = np.flatnonzero(~np.isin(last, known))
    histories = dataset.histories.take(users)
    return Targets(Ragged(known[histories.values].astype(np.int32), histories.offsets), last[users], users)


def item_categories(dataset: Dataset) -> tuple[Ragged, list[str]]:
    """The category numbers (int32) of each item, each once, and the categories' names in alphabetical order."""
    listed = dataset.items["categories"].to_list() if "categories" in dataset.items.columns else [()] * dataset.n_items
    rows = [sorted(set(names or ())) for names in listed]
    names = sorted({name for row in rows for name in row})
    number = {name: n for n, name in enumerate(names)}
    return Ragged.from_rows(([number[name] for name in row] for row in rows), np.int32), names


def _draw(fraction: float, count: int, seed: int, number: int) -> Flags:
    """A random fraction of `count`, at least one: bool [count]. Draws of different numbers are independent."""
    order = np.random.default_rng([seed, number]).permutation(count)
    drawn = np.zeros(count, dtype=bool)
    drawn[order[: max(1, round(fraction * count))]] = True
    return drawn


def _targets(dataset: Dataset, place: int) -> Targets:
    """The last (1) or second last (2) item of each user, and the history before it."""
    histories = dataset.histories
    target = histories.offsets[1:] - place
    if dataset.prefixes and dataset.prefixes[0] is histories:  # not if others were put in their place
        earlier = dataset.prefixes[place]
    else:
        earlier = histories.keep(np.arange(len(histories.values)) < np.repeat(target, histories.lengths))
    return Targets(earlier, histories.values[target].astype(np.int64))


def _rows_of(names: pl.Series, index: pl.Series) -> tuple[Ints, Flags]:
    """The row of each name in `index` (int64, 0 where it has none), and whether it has one."""
    rows = pl.DataFrame({"name": index, "row": np.arange(len(index))})
    found = pl.DataFrame({"name": names}).join(rows, on="name", how="left", maintain_order="left")["row"]
    return found.fill_null(0).to_numpy(writable=True), found.is_not_null().to_numpy()
