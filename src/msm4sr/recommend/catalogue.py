"""The known items: those of the run, minus the removed ones, plus the added ones. Some of them may be unavailable.

A `Catalogue` is immutable: adding or removing makes a new one, so readers never wait for a change. Rows count
from 0, the items of the run first; a row is valid in one catalogue only.
"""

from __future__ import annotations

import difflib
import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Self

import torch
from torch import Tensor

from msm4sr.data.items import LONGEST_ID, Item, Items, check_item
from msm4sr.errors import InputError
from msm4sr.models.base import Model
from msm4sr.models.capabilities import has_content

# difflib needs about 10 us a candidate; beyond this many, only those that share most letters are compared.
CLOSE_CANDIDATES = 5_000
ROWS_AT_ONCE = 1 << 13  # item vectors whose covariance is computed at once


class UnknownItem(InputError):
    """The catalogue has no item with that id."""


class ItemExists(InputError):
    """The catalogue already has an item with the id of a new one."""


@dataclass(frozen=True, eq=False)
class ItemTensors:
    """n items as a model represents them."""

    embeddings: Tensor  # [n, M, D], which the model encodes histories from
    item_vectors: Tensor  # [n, Q], whose products with the vector of a history are the scores
    present: Tensor  # bool [n, modalities], whether the item has the modality

    @classmethod
    @torch.inference_mode()
    def of_model(cls, model: Model) -> Self:
        """The items that `model` was trained on."""
        embeddings = model.encode_items()
        item_vectors = model.scoring_vectors(embeddings).contiguous()
        if not has_content(model):
            return cls(embeddings, item_vectors, torch.zeros(len(item_vectors), 0, dtype=torch.bool))
        present = [model.content_rows(name).lengths > 0 for name in model.content_modalities]
        return cls(embeddings, item_vectors, torch.stack(present, dim=1))

    @cached_property
    def covariance(self) -> Tensor:
        """The covariance matrix of the item vectors: float64 [Q, Q]."""
        vectors = self.item_vectors
        mean = vectors.mean(dim=0, dtype=torch.float64).to(vectors.dtype)
        total = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for chunk in torch.split(vectors, ROWS_AT_ONCE):
            centred = chunk - mean
            total += centred.T @ centred
        return total / max(1, len(vectors))

    def __getitem__(self, rows: Tensor) -> ItemTensors:
        return ItemTensors(self.embeddings[rows], self.item_vectors[rows], self.present[rows])

    def joined(self, other: ItemTensors) -> ItemTensors:
        """These items and then those of `other`."""
        return ItemTensors(
            torch.cat([self.embeddings, other.embeddings]),
            torch.cat([self.item_vectors, other.item_vectors]),
            torch.cat([self.present, other.present]),
        )


@dataclass(frozen=True, eq=False)
class Catalogue:
    """One state of the items. Rows below `len(items)` are the items of the run; the added items follow in order."""

    items: Items
    tensors: ItemTensors
    added: tuple[Item, ...]  # with their features
    added_tensors: ItemTensors
    counts: Tensor  # float32 [items of the run], their training interactions
    removed: frozenset[int] = frozenset()  # rows of the run's items that are no longer known
    unavailable: frozenset[str] = frozenset()  # ids of the known items that are not recommended

    @classmethod
    def of_model(cls, model: Model, items: Items, counts: Sequence[int], where: str = "the model") -> Catalogue:
        """The items that a model in evaluation mode was trained on, in its order.

        `counts` are their training interactions; `where` names the model in messages.
        """
        if len(items) != model.n_items:
            raise InputError(
                f"{where}: the model has {model.n_items} items, the list of items {len(items)}: they are not from one "
                "run; `msm4sr evaluate RUN` writes both again"
            )
        if len(items.rows) != len(items) or not all(isinstance(item_id, str) and item_id for item_id in items.rows):
            raise InputError(f"{where}: the list of items has an id twice, or an empty one; train again")
        tensors = ItemTensors.of_model(model)
        values = {**model.state_dict(), "embeddings": tensors.embeddings, "item_vectors": tensors.item_vectors}
        for name, tensor in values.items():
            if not bool(torch.isfinite(tensor).all()):
                raise InputError(f"{where}: {name} is not finite; the weights are damaged or the training diverged")
        return cls(
            items, tensors, (), tensors[torch.tensor([], dtype=torch.int64)], torch.tensor(counts, dtype=torch.float32)
        )

    @cached_property
    def added_rows(self) -> Mapping[str, int]:
        """Item id to row, of the added items."""
        return {item.item_id: row for row, item in enumerate(self.added, start=len(self.items))}

    @cached_property
    def excluded_rows(self) -> Tensor:
        """The rows that are not recommended, those of removed and of unavailable items: int64, ascending."""
        unavailable = {row for row in self.rows_of(self.unavailable) if row is not None}
        return torch.tensor(sorted(self.removed | unavailable), dtype=torch.int64)

    def __len__(self) -> int:
        """The number of rows, those of removed items included."""
        return len(self.items) + len(self.added)

    @property
    def n_items(self) -> int:
        """The number of items that can be recommended."""
        return len(self) - len(self.excluded_rows)

    def row(self, item_id: str) -> int | None:
        """The row of an item; None for one that is unknown or was removed."""
        return self.rows_of([item_id])[0]

    def known_row(self, item_id: str) -> int:
        """The row of an item. Raises UnknownItem."""
        row = self.row(item_id)
        if row is None:
            known = len(self) - len(self.removed)
            raise UnknownItem(f"no item {item_id[:LONGEST_ID]!r} in the catalogue of {known:,} items")
        return row

    def known_rows(self, history: Sequence[str], strict: bool = False, where: str = "") -> tuple[list[int], list[str]]:
        """The rows of a history's items, in its order, and the ids that are unknown.

        With `strict`, raises UnknownItem with `where` before the message if one is unknown.
        """
        rows = self.rows_of(history)
        known = [row for row in rows if row is not None]
        if len(known) == len(rows):
            return known, []
        unknown = list(dict.fromkeys(item_id for item_id, row in zip(history, rows, strict=True) if row is None))
        if strict:
            raise UnknownItem(where + "\n".join(no_such_item(item_id, self.items) for item_id in unknown))
        return known, unknown

    def rows_of(self, item_ids: Iterable[str]) -> list[int | None]:
        """As `row`, of several items."""
        old, new, removed = self.items.rows, self.added_rows, self.removed
        rows = [new.get(item_id, old.get(item_id)) for item_id in item_ids]
        return [None if row in removed else row for row in rows] if removed else rows

    @cached_property
    def categories(self) -> list[str]:
        """The categories of the items, those that most items have first."""
        run, added = self.items.rows_by_category, self._added_by_category
        counts = Counter({name: len(rows) for name, rows in run.items()})
        counts.update({name: len(rows) for name, rows in added.items()})
        return sorted(counts, key=lambda name: (-counts[name], name))

    def category_rows(self, name: str) -> Tensor:
        """The rows of the items with a category, those of removed items included: int64, ascending."""
        added = torch.tensor(self._added_by_category.get(name, []), dtype=torch.int64)
        rows = self.items.rows_by_category.get(name)
        return added if rows is None else torch.cat([torch.from_numpy(rows), added])

    @cached_property
    def _added_by_category(self) -> Mapping[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for row, item in enumerate(self.added, start=len(self.items)):
            for name in set(item.categories):
                rows.setdefault(name, []).append(row)
        return rows

    def is_added(self, row: int) -> bool:
        """Whether the item was added after the training."""
        return row >= len(self.items)

    def item(self, row: int) -> Item:
        """The stored content of an item."""
        n = len(self.items)
        return self.items[row] if row < n else self.added[row - n]

    def item_id(self, row: int) -> str:
        n = len(self.items)
        return self.items.item_ids[row] if row < n else self.added[row - n].item_id

    def name(self, row: int) -> str:
        """The title of an item, or its id if it has none."""
        n = len(self.items)
        return self.items.name(row) if row < n else self.added[row - n].name

    def gather(self, name: Literal["embeddings", "item_vectors", "present"], rows: Tensor) -> Tensor:
        """A tensor of `rows`, int64 [n]: [n, ...]."""
        tensor: Tensor = getattr(self.tensors, name)
        if not self.added:
            return tensor[rows]
        n = len(self.items)
        found, late = tensor[rows.clamp(max=n - 1)], rows >= n
        found[late] = getattr(self.added_tensors, name)[rows[late] - n]
        return found

    def score(self, query: Tensor) -> Tensor:
        """The score of every row for the vector of a history [Q]: [rows]."""
        scores = self.tensors.item_vectors @ query
        if self.added:
            scores = torch.cat([scores, self.added_tensors.item_vectors @ query])
        return scores

    def popularity(self) -> Tensor:
        """The training interactions of every row, 0 for added items: [rows]."""
        return torch.cat([self.counts, torch.zeros(len(self.added))])

    def without_excluded(self, scores: Tensor) -> Tensor:
        """Scores [rows]; those of excluded rows are set to -inf in place."""
        if len(self.excluded_rows):
            scores[self.excluded_rows] = -torch.inf
        return scores

    def check_new(self, items: Sequence[Item]) -> None:
        """Raises InputError for new items with a malformed or repeated id or text, ItemExists for known ids."""
        for item in items:
            check_item(item)
        for item_id, times in Counter(item.item_id for item in items).items():
            if self.row(item_id) is not None:
                raise ItemExists(f"item {item_id!r} is in the catalogue already; remove it first, or use another id")
            if times > 1:
                raise InputError(f"item {item_id!r} is given twice")

    def with_added(self, items: Sequence[Item], tensors: ItemTensors) -> Catalogue:
        """This catalogue with more items. Raises InputError as `check_new`."""
        self.check_new(items)
        return replace(self, added=(*self.added, *items), added_tensors=self.added_tensors.joined(tensors))

    def without(self, item_ids: Sequence[str]) -> Catalogue:
        """This catalogue without some of its items. Raises UnknownItem."""
        rows = {self.known_row(item_id) for item_id in item_ids}
        n = len(self.items)
        kept = [place for place in range(len(self.added)) if place + n not in rows]
        return replace(
            self,
            removed=self.removed | {row for row in rows if row < n},
            added=tuple(self.added[place] for place in kept),
            added_tensors=self.added_tensors[torch.tensor(kept, dtype=torch.int64)],
            unavailable=self.unavailable.difference(item_ids),
        )

    def with_available(self, item_ids: Collection[str], available: bool) -> Catalogue:
        """This catalogue with items that are recommended from now on, or no longer. Raises UnknownItem."""
        for item_id in item_ids:
            self.known_row(item_id)
        unavailable = self.unavailable.difference(item_ids) if available else self.unavailable.union(item_ids)
        return replace(self, unavailable=unavailable)

    def check_left(self) -> None:
        """Raises InputError if no item can be recommended."""
        if self.n_items == 0:
            raise InputError("no item would be left to recommend; keep at least one")


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
    """The `n` candidates most similar to `name`, ignoring case; none if none is similar."""
    folded = name.casefold()
    by_folded: dict[str, str] = {}
    for candidate in candidates:
        by_folded.setdefault(candidate.casefold(), candidate)
    pool = list(by_folded)
    if len(pool) > CLOSE_CANDIDATES:
        letters = set(folded)
        pool = heapq.nsmallest(CLOSE_CANDIDATES, pool, key=lambda other: len(letters ^ set(other)))
    return [by_folded[near] for near in difflib.get_close_matches(folded, pool, n=n, cutoff=0.6)]
