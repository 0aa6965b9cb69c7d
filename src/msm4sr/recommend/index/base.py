"""What an index over item vectors can do, how one is chosen by name, and exact search."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, Self

import torch
from pydantic import Field
from torch import Tensor

from msm4sr.errors import InputError
from msm4sr.registry import Registry
from msm4sr.strict import Strict

AUTO = "auto"
IN_PROCESS = (AUTO, "exact", "approximate")  # kinds without an address
SCORES_AT_ONCE = 1 << 22  # products of queries with all items: 16 MiB


class IndexUnavailable(InputError):
    """The index cannot be searched now, since it is in another process. The message says what to do."""


class IndexSettings(Strict):
    """The search for the best items among many."""

    kind: str = Field(
        AUTO, description="exact, approximate, qdrant; auto: approximate from `approximate_from` items on"
    )
    address: str = Field("", description="the address of an index in another process")
    approximate_from: int = Field(300_000, ge=1, description="number of items from which `auto` is approximate")
    connectivity: int = Field(16, ge=2, description="neighbours of an item in the graph: more memory, better recall")
    expansion_add: int = Field(128, ge=1, description="candidates when an item is added to the graph")
    expansion_search: int = Field(256, ge=1, description="minimum number of candidates in a search")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The settings of the option `--index`: KIND or KIND=ADDRESS.

        Raises InputError for an unknown kind, and for an address of one that runs in this process.
        """
        kind, _, address = text.partition("=")
        if kind != AUTO:
            INDEXES.find(kind, "--index")
        if address and kind in IN_PROCESS:
            raise InputError(f"--index {text}: {kind} has no address; write --index {kind}")
        return cls(kind=kind, address=address)

    def kind_for(self, n_items: int) -> str:
        """The name in `INDEXES` for so many items."""
        if self.kind != AUTO:
            return self.kind
        return "approximate" if n_items >= self.approximate_from else "exact"

    @property
    def graph(self) -> dict[str, int]:
        """The settings of a graph of nearest neighbours."""
        return self.model_dump(include={"connectivity", "expansion_add", "expansion_search"})


@dataclass(frozen=True, eq=False)
class Within:
    """Which rows a search may return."""

    among: Tensor | None = None  # int64, ascending: only these rows; None: all
    # What `among` are, where they are the rows of the items with one of these categories and no other condition: an
    # index that stores categories searches by them.
    categories: Collection[str] | None = None
    excluded: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))  # int64: none of these


ALL = Within()


class Found(NamedTuple):
    """The rows of a search and their exact inner products, best first; equal ones by row."""

    rows: Tensor  # int64 [found]
    scores: Tensor  # float32 [found]


class VectorIndex(Protocol):
    """Finds items of a run by their item vectors. Thread-safe.

    An index never changes: added items are compared beside it, removed ones are excluded from a search. So the
    processes that share it need not agree on the state of the catalogue.
    """

    @property
    def kind(self) -> str:
        """Its name in `INDEXES`."""

    @property
    def recall(self) -> float | None:
        """The fraction of the exact best 20 items that it finds; None: an exact index."""

    @property
    def products(self) -> int:
        """The multiplications of a search, where they are many."""

    @property
    def remote(self) -> bool:
        """Whether a search waits for another process."""

    def search(self, query: Tensor, k: int, within: Within = ALL) -> Found:
        """The `k` best rows for the vector of a history [Q], or all allowed rows if there are fewer.

        Raises IndexUnavailable.
        """

    def search_each(self, queries: Tensor, k: int, within: Sequence[Within]) -> list[Found]:
        """`search` for the vectors of several histories [B, Q], each with its own `within`.

        Raises IndexUnavailable.
        """

    def check(self) -> None:
        """Raise IndexUnavailable if a search would."""


@dataclass(frozen=True, eq=False)
class IndexedItems:
    """The items of a run, to build an index of them."""

    vectors: Tensor  # item vectors [N, Q]
    item_ids: Sequence[str]
    categories: Sequence[Sequence[str]]
    queries: Callable[[], Tensor]  # vectors of histories [any, Q], to measure the recall
    folder: Path  # the model folder, for files


# By name, a function that opens the index of items, or builds it if there is none.
INDEXES = Registry[Callable[[IndexedItems, IndexSettings], VectorIndex]](
    "vector index", "msm4sr.indexes", ["msm4sr.recommend.index"]
)


def open_index(items: IndexedItems, settings: IndexSettings) -> VectorIndex:
    """The index that the settings choose, built if necessary. Raises InputError if that is impossible."""
    return INDEXES.find(settings.kind_for(len(items.vectors)), "--index")(items, settings)


def top_k(scores: Tensor, k: int) -> Tensor:
    """The rows of the `k` highest of scores [N], best first; equal scores by row; -inf is excluded: int64 [found]."""
    return top_k_of_each(scores.unsqueeze(0), k)[0].rows


def top_k_of_each(scores: Tensor, k: int) -> list[Found]:
    """`top_k` of each row of scores [B, N]."""
    k = min(k, scores.shape[1])
    best = torch.topk(scores, min(k + 1, scores.shape[1]))  # one more, which may equal the last one
    values, rows = best.values[:, :k], best.indices[:, :k]
    distinct = (best.values[:, :-1] > best.values[:, 1:]).all(dim=1) & (values > -torch.inf).all(dim=1)
    found = [Found(*both) for both in zip(rows, values, strict=True)]
    for place in (place for place, all_differ in enumerate(distinct.tolist()) if not all_differ):
        least = float(values[place, -1])
        there = scores[place] >= least if least > -torch.inf else scores[place] > -torch.inf
        ascending = there.nonzero().squeeze(1)  # more than k with ties
        ordered = torch.sort(scores[place, ascending], descending=True, stable=True)
        found[place] = Found(ascending[ordered.indices[:k]], ordered.values[:k])
    return found


class ExactIndex:
    """Compares a query with all item vectors [N, Q]."""

    kind, recall, remote = "exact", None, False

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors

    @property
    def products(self) -> int:
        return self.vectors.numel()

    def search(self, query: Tensor, k: int, within: Within = ALL) -> Found:
        """See `VectorIndex`."""
        rows, excluded = within.among, within.excluded
        if rows is None:
            return self.search_each(query.unsqueeze(0), k, [within])[0]
        rows = rows[~torch.isin(rows, excluded)] if len(excluded) else rows
        scores = self.vectors[rows] @ query
        best = top_k(scores, k)
        return Found(rows[best], scores[best])

    def search_each(self, queries: Tensor, k: int, within: Sequence[Within]) -> list[Found]:
        """See `VectorIndex`. The products with all items are computed for several queries at once."""
        if any(one.among is not None for one in within):
            return [self.search(query, k, one) for query, one in zip(queries, within, strict=True)]
        found: list[Found] = []
        at_once = max(1, SCORES_AT_ONCE // len(self.vectors))
        for start in range(0, len(queries), at_once):
            scores = queries[start : start + at_once] @ self.vectors.T
            for row, one in zip(scores, within[start : start + at_once], strict=True):
                row.index_fill_(0, one.excluded, -torch.inf)
            found += top_k_of_each(scores, k)
        return found

    def check(self) -> None:
        """It can always be searched."""


@INDEXES.register("exact")
def open_exact(items: IndexedItems, settings: IndexSettings) -> ExactIndex:
    return ExactIndex(items.vectors)
