"""What approximate indexes share: a graph finds candidates, and the process computes their scores exactly.

A graph of nearest neighbours (HNSW) needs a distance, which an inner product is not. Each item vector v gets another
component sqrt(m^2 - |v|^2), with m the length of the longest, and each query a zero: all item vectors then have the
same length, and the order by cosine is the order by inner product (Bachrach et al. 2014).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from msm4sr.recommend.index.base import ALL, ExactIndex, Found, Within, top_k

MEASURED_AT = 20  # items of a list whose recall is measured
APPROXIMATE_SHARE = 8  # the graph is asked for at most one in so many items
FEW = 10_000  # rows that are compared exactly, although the index could search among them
LIKELY = 256  # excluded rows that may all be among the best ones, such as a history's


class ApproximateIndex(ABC):
    """Candidates of a graph, compared exactly. `about`: sizes, settings, `recall@20`."""

    kind: ClassVar[str]
    remote: ClassVar[bool] = False
    by_category: ClassVar[bool] = False  # whether `nearest` searches by `Within.categories`

    def __init__(self, vectors: Tensor, about: dict[str, Any]) -> None:
        self.about, self._exact = about, ExactIndex(vectors)

    @property
    def recall(self) -> float:
        """The fraction of the exact best 20 that were found when the index was built."""
        return float(self.about[f"recall@{MEASURED_AT}"])

    @property
    def products(self) -> int:
        return 0

    @abstractmethod
    def nearest(self, query: Tensor, k: int, within: Within) -> Tensor:
        """About the `k` best rows for a query [Q], unordered: int64. Excluded ones may be among them."""

    def search(self, query: Tensor, k: int, within: Within = ALL) -> Found:
        """See `VectorIndex`. If the graph finds fewer than `k` allowed rows, all are compared."""
        vectors, asked = self._exact.vectors, k
        if within.among is None or (self.by_category and within.categories is not None and len(within.among) > FEW):
            while asked <= len(vectors) // APPROXIMATE_SHARE:
                rows = torch.unique(self.nearest(query, asked + more(asked), within))
                rows = rows[~torch.isin(rows, within.excluded)]
                if len(rows) >= k:
                    scores = vectors[rows] @ query
                    best = top_k(scores, k)
                    return Found(rows[best], scores[best])
                asked *= 4
        return self._exact.search(query, k, within)

    def search_each(self, queries: Tensor, k: int, within: Sequence[Within]) -> list[Found]:
        """See `VectorIndex`."""
        return [self.search(query, k, one) for query, one in zip(queries, within, strict=True)]

    def measured_recall(self, queries: Tensor) -> float:
        """The mean fraction of the exact best items that the graph finds; 1 without queries."""
        k = min(MEASURED_AT, len(self._exact.vectors))
        shares = [
            torch.isin(self._exact.search(query, k).rows, self.nearest(query, k + more(k), ALL)).float().mean()
            for query in queries
        ]
        return round(float(torch.stack(shares).mean()), 4) if shares else 1.0


def extended(vectors: Tensor, rows: int, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Item vectors [N, Q] from row `start` on, for a graph: at most `rows` numbers and vectors [n, Q + 1]."""
    longest = float(vectors.norm(dim=1).max())
    for first in range(start, len(vectors), rows):
        block = vectors[first : first + rows]
        rest = (longest**2 - block.square().sum(dim=1, keepdim=True)).clamp(min=0).sqrt()
        yield np.arange(first, first + len(block)), torch.cat([block, rest], dim=1).numpy()


def extended_query(query: Tensor) -> np.ndarray:
    """A query [Q] for a graph: [Q + 1]."""
    return np.append(query.numpy(), np.float32(0))


def more(k: int) -> int:
    """How many rows to ask for beside the `k` best: a graph may order by rounded vectors."""
    return max(10, k // 2)


def with_likely(k: int, excluded: Tensor) -> int:
    """How many rows to ask for, so that about `k` remain without the excluded ones."""
    return k + min(len(excluded), max(k, LIKELY))
