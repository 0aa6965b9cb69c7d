"""The items that are recommended from: those of the run, minus what was removed, plus what was added.

A `Catalogue` never changes. Who adds or removes makes a new one, and whoever reads goes on with the one that he has, so
that nobody waits for anybody. Rows count from 0, the run's items first; a row is a row of one catalogue only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from msm4sr.data import items as content
from msm4sr.errors import InputError


class UnknownItem(InputError):
    """An item is asked for that is not in the catalogue."""


class ItemExists(InputError):
    """An item to add has the id of one that is there."""


@dataclass(frozen=True)
class NewItem:
    """An item to add: an id, and whatever there is of title, text, categories and pictures (bytes of image files).

    `vectors` are for modalities that come from vectors of your own: float [rows, width] each.
    """

    item_id: str
    title: str | None = None
    text: str | None = None
    categories: Sequence[str] = ()
    pictures: Sequence[bytes] = ()
    vectors: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class EncodedItem:
    """A new item whose texts and pictures have been through the frozen encoders; its pictures are only counted."""

    item_id: str
    title: str | None
    text: str | None
    categories: tuple[str, ...]
    pictures: int
    encoded: content.Item


@dataclass(frozen=True)
class Item:
    """What is known of an item. An item without a title goes by its id; `added`: it came after the training."""

    item_id: str
    title: str
    text: str | None
    categories: tuple[str, ...]
    pictures: int
    added: bool


@dataclass(frozen=True)
class Vectors:
    """Items as a model has them: `catalogue` [n, M, D], `keys` [n, Q], `present` [n, any] (has it the modality?)."""

    catalogue: Tensor
    keys: Tensor
    present: Tensor

    def __len__(self) -> int:
        return len(self.keys)

    def joined(self, other: Vectors) -> Vectors:
        return Vectors(
            torch.cat([self.catalogue, other.catalogue]),
            torch.cat([self.keys, other.keys]),
            torch.cat([self.present, other.present]),
        )

    def taken(self, rows: Sequence[int]) -> Vectors:
        chosen = torch.tensor(rows, dtype=torch.int64)
        return Vectors(self.catalogue[chosen], self.keys[chosen], self.present[chosen])


@dataclass(frozen=True)
class Base:
    """The run's items, which stay as they are: ids, what is known of them, and their vectors."""

    item_ids: list[str]
    titles: list[str]
    texts: list[str | None]
    categories: list[tuple[str, ...]]
    images: list[tuple[str, ...]]
    vectors: Vectors

    @cached_property
    def rows(self) -> Mapping[str, int]:
        return {item_id: row for row, item_id in enumerate(self.item_ids)}

    def __len__(self) -> int:
        return len(self.item_ids)


@dataclass(frozen=True)
class Catalogue:
    """One state of the items. Row r < len(base) is the run's item r; the added ones follow in the order of coming."""

    base: Base
    removed: frozenset[int]
    added: tuple[EncodedItem, ...]
    vectors: Vectors
    """Of the added items."""

    @classmethod
    def of(cls, base: Base) -> Catalogue:
        return cls(base, frozenset(), (), base.vectors.taken([]))

    @cached_property
    def added_rows(self) -> Mapping[str, int]:
        return {item.item_id: len(self.base) + place for place, item in enumerate(self.added)}

    @cached_property
    def removed_rows(self) -> Tensor:
        return torch.tensor(sorted(self.removed), dtype=torch.int64)

    def __len__(self) -> int:
        """Rows, those of removed items included."""
        return len(self.base) + len(self.added)

    @property
    def n_items(self) -> int:
        return len(self) - len(self.removed)

    def row(self, item_id: str) -> int | None:
        """The row of an item; None for one that is unknown or was removed."""
        row = self.added_rows.get(item_id)
        if row is None:
            row = self.base.rows.get(item_id)
        return None if row in self.removed else row

    def known_row(self, item_id: str) -> int:
        """The row of an item. Raises UnknownItem."""
        row = self.row(item_id)
        if row is None:
            raise UnknownItem(f"no item {item_id[:200]!r} in the catalogue of {self.n_items:,} items")
        return row

    def known_rows(self, history: Sequence[str], where: str = "") -> tuple[list[int], list[str]]:
        """The rows of a history's items, in its order, and the ids that are unknown. InputError where none is known."""
        if not history:
            raise InputError(f"{where}the history is empty: give at least one item id")
        rows = self._rows(history)
        known = [row for row in rows if row is not None]
        if len(known) == len(rows):
            return known, []
        unknown = dict.fromkeys(item_id for item_id, row in zip(history, rows, strict=True) if row is None)
        if not known:
            example = next(iter(unknown))[:200]
            raise InputError(
                f"{where}none of the history's items is in the catalogue ({example!r}, for example): give at least "
                "one that is"
            )
        return known, list(unknown)

    def _rows(self, item_ids: Sequence[str]) -> list[int | None]:
        """`row` of each; histories are long."""
        old, new, removed = self.base.rows, self.added_rows, self.removed
        rows = [new.get(item_id, old.get(item_id)) for item_id in item_ids]
        return [None if row in removed else row for row in rows] if removed else rows

    def item_id(self, row: int) -> str:
        n = len(self.base)
        return self.base.item_ids[row] if row < n else self.added[row - n].item_id

    def title(self, row: int) -> str:
        n = len(self.base)
        if row < n:
            return self.base.titles[row]
        item = self.added[row - n]
        return item.title if item.title and item.title.strip() else item.item_id

    def item(self, row: int) -> Item:
        n = len(self.base)
        if row < n:
            base = self.base
            return Item(
                base.item_ids[row],
                base.titles[row],
                base.texts[row],
                base.categories[row],
                len(base.images[row]),
                added=False,
            )
        one = self.added[row - n]
        return Item(one.item_id, self.title(row), one.text, one.categories, one.pictures, added=True)

    def live_rows(self) -> list[int]:
        """Rows of all items that can be recommended."""
        return [row for row in range(len(self)) if row not in self.removed]

    # -- vectors

    def gather(self, rows: Tensor) -> Vectors:
        """The vectors of `rows`, int64 [n]."""
        n = len(self.base)
        old, new = rows.clamp(max=n - 1), rows >= n
        own = self.base.vectors
        found = Vectors(own.catalogue[old], own.keys[old], own.present[old])
        if bool(new.any()):
            late = rows[new] - n
            found.catalogue[new] = self.vectors.catalogue[late]
            found.keys[new] = self.vectors.keys[late]
            found.present[new] = self.vectors.present[late]
        return found

    def inputs(self, rows: Tensor) -> Tensor:
        """`gather(rows).catalogue` alone: [n, M, D]."""
        n = len(self.base)
        if not self.added:
            return self.base.vectors.catalogue[rows]
        late = rows >= n
        found = self.base.vectors.catalogue[rows.clamp(max=n - 1)]
        found[late] = self.vectors.catalogue[rows[late] - n]
        return found

    def score(self, query: Tensor) -> Tensor:
        """Every row's score for a query [Q]: [rows]; -inf for removed items."""
        scores = self.base.vectors.keys @ query
        if self.added:
            scores = torch.cat([scores, self.vectors.keys @ query])
        return self.without_removed(scores)

    def without_removed(self, scores: Tensor) -> Tensor:
        """Scores [rows], those of removed items put to -inf in place."""
        if self.removed:
            scores[self.removed_rows] = -torch.inf
        return scores

    # -- another state

    def with_added(self, items: Sequence[EncodedItem], vectors: Vectors) -> Catalogue:
        return replace(self, added=(*self.added, *items), vectors=self.vectors.joined(vectors))

    def without(self, item_ids: Sequence[str]) -> Catalogue:
        """Without these items, of which every one is there."""
        rows = {row for item_id in item_ids if (row := self.row(item_id)) is not None}
        n = len(self.base)
        kept = [place for place in range(len(self.added)) if place + n not in rows]
        return replace(
            self,
            removed=self.removed | {row for row in rows if row < n},
            added=tuple(self.added[place] for place in kept),
            vectors=self.vectors.taken(kept) if len(kept) < len(self.added) else self.vectors,
        )
