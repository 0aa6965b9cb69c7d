"""From a prepared folder to numbered histories, and their parts for training, validation and test.

The rules, each counted in `Dataset.dropped` if it drops something:

1. An interaction with an item that `items.parquet` lacks is an error, or dropped (`unknown_items: drop`).
2. A user's history is sorted by `timestamp` (else `position`; with both, `position` orders equal seconds);
   **ties keep the order of the file**.
3. **Duplicates**: rows with the same user, item, time and `position` are one interaction; the first is kept. The same
   item at another time is a repeat and stays.
4. k-core: users with fewer than `user_core` and items with fewer than `item_core` interactions (repeats count) are
   dropped until all that remain satisfy both; such items leave the catalogue too.
5. A user with fewer than 3 interactions cannot be split into training, validation and test, and is dropped.
   If that brings an item under `item_core`, rule 4 is applied again. (Not with a temporal split, see below.)
6. `hold_out_items`: a fraction of the items is removed with all their interactions, as if the catalogue did not have
   them yet; then rule 5 applies again. The remaining data set is trained on and evaluated; `cold_start_targets` gives
   the users with a test target that is a removed item.
7. `hold_out_users`: a fraction of the users is not trained on. All users are evaluated, so that the metrics of every
   fraction are comparable.

`split: leave_one_out`: last item = test, the one before = validation, the rest = training.

`split: temporal`: two times divide the interactions of everyone (`validation_from`, `test_from`). Nothing after the
first is trained on or counted, also not for the cores; every user with an interaction is kept. A part ranks the first
interaction of each user in it, or all, given all interactions before the part. Users with training interactions are
numbered first, so that what follows cannot influence the numbers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import compress
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from pydantic import ConfigDict, Field

from msm4sr.data.cutoffs import Cutoff, time_text
from msm4sr.data.histories import HistoryRules, load_histories
from msm4sr.data.remaining import Flags, Ints, Remaining, pairs_of
from msm4sr.data.schema import ITEMS, read_items
from msm4sr.data.user_table import read_users
from msm4sr.digests import array_digest, json_digest
from msm4sr.errors import InputError
from msm4sr.ragged import Ragged
from msm4sr.strict import Strict


class DataSettings(Strict):
    """How a prepared folder becomes a `Dataset`."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    user_core: int = Field(0, ge=0)
    """Users with fewer interactions are dropped; 0 keeps all that can be split."""
    item_core: int = Field(0, ge=0)
    """Items with fewer interactions are dropped, from the catalogue too; 0 keeps all, unseen items included."""
    unknown_items: Literal["error", "drop"] = "error"
    """Whether an interaction with an item that the catalogue lacks is an error, or dropped and counted."""
    split: Literal["leave_one_out", "temporal"] = "leave_one_out"
    """Each user's last two interactions are validation and test, or everything after two times is."""
    validation_from: Cutoff = 0.8
    """When validation begins, and training ends: a date, seconds since 1970, or the fraction of interactions before."""
    test_from: Cutoff = 0.9
    """When test begins, and validation ends."""
    targets: Literal["first", "all"] = "first"
    """What a temporal split ranks of a user's interactions in a part."""
    hold_out_items: float = Field(0.0, ge=0, lt=1)
    """Fraction of the items that is removed, to be recommended as new items: strict cold start."""
    hold_out_users: float = Field(0.0, ge=0, lt=1)
    """Fraction of the users that is not trained on; a larger fraction contains a smaller one."""
    hold_out_seed: int = Field(0, ge=0)
    """Seed of both draws; separate from the run's seed, so that runs of all seeds evaluate the same users and items."""


@dataclass(frozen=True, eq=False)
class TemporalSplit:
    """Where two times divide the history of each user."""

    times: tuple[float, float]  # seconds since 1970: when validation and test begin
    targets: Literal["first", "all"]
    validation: Ints  # int64 [users]: interactions before validation
    test: Ints  # int64 [users]: interactions before test

    def __str__(self) -> str:
        validation, test = map(time_text, self.times)
        return f"temporal split (validation from {validation}, test from {test}), {self.targets} targets"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Users, items and histories, numbered from 0."""

    folder: Path
    user_ids: list[str]  # in the order of `Histories.user_ids`
    item_ids: list[str]  # in row order of `items.parquet`: the complete catalogue, unseen items included
    histories: Ragged  # the item numbers (int32) of each user, oldest first
    items: pl.DataFrame  # row i describes item i: item_id, title, text, categories, image (see `read_items`)
    dropped: dict[str, int]  # reason to count, for example {"interactions: exact duplicates": 3}; never a count of 0
    prefixes: tuple[Ragged, ...] = ()  # the histories, their parts before test and before validation, if stored
    trained_on: Flags | None = None  # bool [users]: whose interactions are trained on; None: those of all users
    users: pl.DataFrame | None = None  # columns to compare users by, if there are any: see `read_users`
    temporal: TemporalSplit | None = None  # None: leave-one-out

    @property
    def n_users(self) -> int:
        """Number of users."""
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        """Number of items, unseen ones included."""
        return len(self.item_ids)

    @property
    def n_interactions(self) -> int:
        """Number of interactions of all users."""
        return len(self.histories.values)

    @cached_property
    def parts(self) -> tuple[Ints, Ints, Ints]:
        """How many interactions of each user are before validation, before test, and in all: int64 [users] each."""
        lengths = self.histories.lengths
        if self.temporal is None:
            return lengths - 2, lengths - 1, lengths
        return self.temporal.validation, self.temporal.test, lengths

    @property
    def split(self) -> str:
        """The split in words."""
        return "leave-one-out" if self.temporal is None else str(self.temporal)

    @cached_property
    def identity(self) -> dict[str, str]:
        """A count and a digest of users, items and interactions: what training and evaluation depend on."""
        trained_on = np.zeros(0, dtype=bool) if self.trained_on is None else self.trained_on
        split = () if self.temporal is None else (*self.parts[:2], np.array(self.temporal.targets == "all"))
        interactions = array_digest(self.histories.values, self.histories.offsets, trained_on, *split)
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
    """What to rank: item `targets[n]` given history `rows[n]`."""

    histories: Ragged  # item numbers, oldest first; may be empty
    targets: Ints  # int64 [targets], grouped by history
    users: Ints | None = None  # int64 [histories]: the user of each history; None: users 0, 1, ...
    rows: Ints | None = None  # int64 [targets], ascending: the history of each target; None: one target per history

    @property
    def target_users(self) -> Ints:
        """The user of each target: int64 [targets]."""
        users = np.arange(len(self.histories)) if self.users is None else self.users
        return users if self.rows is None else users[self.rows]

    @property
    def counts(self) -> Ints:
        """The number of targets of each history: int64 [histories]."""
        if self.rows is None:
            return np.ones(len(self.histories), dtype=np.int64)
        return np.bincount(self.rows, minlength=len(self.histories))

    def take(self, histories: Ints) -> Targets:
        """Only the histories of these numbers, in this order, and their targets."""
        counts = self.counts
        places = Ragged.from_lengths(np.arange(len(self.targets)), counts).take(histories).values
        return Targets(
            self.histories.take(histories),
            self.targets[places],
            histories if self.users is None else self.users[histories],
            np.repeat(np.arange(len(histories)), counts[histories]),
        )


def load_dataset(folder: str | Path, settings: DataSettings = DataSettings()) -> Dataset:
    """Read a prepared folder by the rules of this module.

    Args:
        folder: the prepared folder.
        settings: the split, filters, and held-out items and users.

    Raises:
        InputError: as `read_interactions` and `read_items`; an item that the catalogue lacks; nothing is left of all
            interactions, or of a part of the split.
    """
    folder = Path(folder)
    items, cutoffs = read_items(folder), None
    if settings.split == "temporal":
        cutoffs = settings.validation_from, settings.test_from
        if not (folder / ITEMS).exists():
            items = items.sort("item_id")  # not by first appearance, which is another one if the future is
    rules = HistoryRules(settings.unknown_items, settings.user_core, settings.item_core, cutoffs)
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
    if stored.times is not None:
        test, validation = (prefix.lengths for prefix in stored.prefixes[1:])
        dataset = replace(dataset, temporal=TemporalSplit(stored.times, settings.targets, validation, test))
        _check_parts(dataset)
    if settings.hold_out_items:
        dataset = without_items(dataset, _draw(settings.hold_out_items, dataset.n_items, settings.hold_out_seed, 0))
    if settings.hold_out_users:
        held_out = _draw(settings.hold_out_users, dataset.n_users, settings.hold_out_seed, 1)
        dataset = replace(dataset, trained_on=~held_out)
    return dataset


def training_histories(dataset: Dataset) -> Ragged:
    """The training part of the histories; empty for users that are not trained on."""
    histories = _prefix(dataset, 2)
    if dataset.trained_on is None:
        return histories
    return histories.keep(np.repeat(dataset.trained_on, histories.lengths))


def training_counts(dataset: Dataset) -> np.ndarray:
    """The number of training interactions of each item: int64 [items]."""
    counts = np.zeros(dataset.n_items, dtype=np.int64)
    for _, items in pairs_of(training_histories(dataset)):
        np.add.at(counts, items, np.int64(1))
    return counts


def user_counts(dataset: Dataset) -> Ints:
    """The number of interactions of each user before validation, also of those held out of training: int64 [users]."""
    return dataset.parts[0]


def known_users(dataset: Dataset) -> Flags:
    """Whether a user has interactions before validation: bool [users]. Metrics are means over these users."""
    return user_counts(dataset) > 0


def of_known_users(dataset: Dataset, targets: Targets) -> Targets:
    """The targets of `known_users`."""
    known = known_users(dataset)[slice(None) if targets.users is None else targets.users]
    return targets if known.all() else targets.take(np.flatnonzero(known))


def validation_targets(dataset: Dataset) -> Targets:
    """The items of the validation part, to be ranked given the training part."""
    return _targets(dataset, 2)


def test_targets(dataset: Dataset) -> Targets:
    """The items of the test part, to be ranked given the training and the validation part."""
    return _targets(dataset, 1)


# The name starts with `test_`; pytest must not collect it where a test module imports it.
test_targets.__test__ = False  # type: ignore[attr-defined]


def without_items(dataset: Dataset, items: Flags) -> Dataset:
    """The data set, trained on all users, before these items (bool [items]) were added to the catalogue.

    They are removed with their interactions, then the users with too few interactions for the split. Raises InputError
    if nothing is left.
    """
    histories, dropped, temporal = dataset.histories, Counter(dataset.dropped), dataset.temporal
    training = None if temporal is None else lambda: pairs_of(_prefix(dataset, 2))
    left = Remaining(lambda: pairs_of(histories), dataset.n_users, dataset.n_items, dropped, training)
    left.drop("held out", items=items)
    left.drop_short_histories()
    if not left.keep_user.any():
        raise InputError(
            f"{dataset.folder}: nothing left of {dataset.n_interactions:,} interactions without the "
            f"{items.sum():,} items that are held out; lower hold_out_items"
        )
    kept = dataset.items.filter(pl.Series(left.keep_item))
    if temporal is not None:
        test, validation = (left.lengths(partial(pairs_of, _prefix(dataset, number))) for number in (1, 2))
        temporal = replace(temporal, validation=validation, test=test)
    found = Dataset(
        folder=dataset.folder,
        user_ids=list(compress(dataset.user_ids, left.keep_user)),
        item_ids=kept["item_id"].to_list(),
        histories=left.histories(),
        items=kept,
        dropped={reason: count for reason, count in dropped.items() if count},
        users=dataset.users,
        temporal=temporal,
    )
    _check_parts(found)
    return found


def item_rows(full: Dataset, dataset: Dataset) -> Ints:
    """The number in `full` of each item of `dataset`, whose items are a subset of those of `full`: int64 [items]."""
    return _rows_of(pl.Series(dataset.item_ids), pl.Series(full.item_ids))[0]


def cold_start_targets(full: Dataset, dataset: Dataset) -> Targets:
    """What a strict cold-start evaluation ranks; `dataset` is `full` without some of its items (see `without_items`).

    Returns:
        For each user of `dataset` with a test target in `full` that is not in `dataset`: these targets, given the
        user's history before test, without the removed items. Items are numbered as in `full`, users as in `dataset`.
    """
    targets = test_targets(full)
    users, known_user = _rows_of(pl.Series(full.user_ids), pl.Series(dataset.user_ids))
    known_item = np.isin(np.arange(full.n_items), item_rows(full, dataset))
    kept = ~known_item[targets.targets] & known_user[targets.target_users]
    row = np.arange(len(targets.histories)) if targets.rows is None else targets.rows
    rows, numbers = np.unique(row[kept], return_inverse=True)
    histories = targets.histories.take(rows)
    return Targets(
        histories.keep(known_item[histories.values]),
        targets.targets[kept],
        users[rows if targets.users is None else targets.users[rows]],
        numbers,
    )


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


def _prefix(dataset: Dataset, number: int) -> Ragged:
    """The part of each history before test (1), or before validation (2)."""
    histories = dataset.histories
    if dataset.prefixes and dataset.prefixes[0] is histories:  # not if others were put in their place
        return dataset.prefixes[number]
    end = histories.offsets[:-1] + dataset.parts[2 - number]
    return histories.keep(np.arange(len(histories.values)) < np.repeat(end, histories.lengths))


def _targets(dataset: Dataset, number: int) -> Targets:
    """The targets of the part that follows `_prefix(dataset, number)`."""
    histories, prefix, temporal = dataset.histories, _prefix(dataset, number), dataset.temporal
    begin, end = (histories.offsets[:-1] + dataset.parts[after] for after in (2 - number, 3 - number))
    if temporal is None:
        return Targets(prefix, histories.values[begin].astype(np.int64))
    counts = end - begin if temporal.targets == "all" else np.minimum(end - begin, 1)
    users = np.flatnonzero(counts)
    row = np.repeat(np.arange(len(users)), counts[users])
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts[users]) - counts[users], counts[users])
    items = histories.values[np.repeat(begin[users], counts[users]) + place].astype(np.int64)
    once = np.sort(np.unique(row * dataset.n_items + items, return_index=True)[1])  # a repeated item is one target
    return Targets(prefix.take(users), items[once], users, row[once])


def _check_parts(dataset: Dataset) -> None:
    """Raise InputError for a temporal split without users to train on, to validate or to test."""
    if dataset.temporal is None:
        return
    for part, targets in (("validation", validation_targets(dataset)), ("test", test_targets(dataset))):
        if not len(of_known_users(dataset, targets).targets):
            raise InputError(
                f"{dataset.folder}: no user with training interactions has one in the {part} part; change "
                f"dataset.validation_from and dataset.test_from ({dataset.split})"
            )


def _rows_of(names: pl.Series, index: pl.Series) -> tuple[Ints, Flags]:
    """The row of each name in `index` (int64, 0 where it has none), and whether it has one."""
    rows = pl.DataFrame({"name": index, "row": np.arange(len(index))})
    found = pl.DataFrame({"name": names}).join(rows, on="name", how="left", maintain_order="left")["row"]
    return found.fill_null(0).to_numpy(writable=True), found.is_not_null().to_numpy()
