"""A bounded cache of encoded histories: a history that continues an earlier one is encoded from where that ended."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from msm4sr.models.base import FactorizedModel

LARGEST = 64 << 20  # bytes of all entries
LOOK_BACK = 8  # how many items a history may have beyond one that is cached
OVERHEAD = 1024  # bytes of an entry beside its tensors, for a history of average length


@dataclass(frozen=True)
class _Entry:
    vector: Tensor  # [1, Q]
    past: Any  # for `extend_history`; (): the history cannot be continued
    size: int  # bytes


class HistoryCache:
    """The vectors of the latest histories, and what a model keeps to continue them. Thread-safe.

    Histories are rows of the items that a model was trained on, whose embeddings never change: an entry stays correct
    whatever items are added or removed. A newer run has a recommender, and a cache, of its own.
    """

    def __init__(self, model: FactorizedModel, largest: int = LARGEST) -> None:
        self._model, self._largest = model, largest
        self._entries: OrderedDict[tuple[int, ...], _Entry] = OrderedDict()
        self.size, self._lock = 0, Lock()  # bytes
        self.on_lookup: Callable[[bool], object] = lambda found: None  # called with whether a history was cached

    def encode(self, read: Sequence[int], gather: Callable[[Tensor], Tensor]) -> Tensor:
        """The vector of a history of rows, at most `max_history`, oldest first: [1, Q].

        `gather` returns the embeddings of rows, int64 [n]: [n, M, D].
        """
        key = tuple(read)
        begin, entry = self._longest(key)
        self.on_lookup(begin > 0)
        if entry is not None and begin == len(key):
            return entry.vector
        # Equal items are one row of the gathered embeddings.
        place = {row: number for number, row in enumerate(dict.fromkeys(key[begin:]))}
        items = torch.tensor([[place[row] for row in key[begin:]]])
        embeddings = gather(torch.tensor(list(place)))
        vector, past = self._model.extend_history(items, embeddings, () if entry is None else entry.past)
        if len(key) == self._model.max_history:
            past = ()  # the next item moves all positions
        self._keep(key, vector, past)
        if entry is not None:
            self._keep(key[:begin], entry.vector, ())  # who continues a history seldom goes back
        return vector

    def _longest(self, key: tuple[int, ...]) -> tuple[int, _Entry | None]:
        """The longest cached history that `key` begins with, of those that can be continued: its length and entry."""
        with self._lock:
            for length in range(len(key), max(0, len(key) - LOOK_BACK - 1), -1):
                entry = self._entries.get(key[:length])
                if entry is not None and (length == len(key) or entry.past):
                    self._entries.move_to_end(key[:length])
                    return length, entry
        return 0, None

    def _keep(self, key: tuple[int, ...], vector: Tensor, past: Any) -> None:
        size = OVERHEAD + sum(part.numel() * part.element_size() for part in [vector, *tree_leaves(past)])
        with self._lock:
            if (replaced := self._entries.pop(key, None)) is not None:
                self.size -= replaced.size
            self._entries[key] = _Entry(vector, past, size)
            self.size += size
            while self.size > self._largest:
                _, evicted = self._entries.popitem(last=False)
                self.size -= evicted.size
