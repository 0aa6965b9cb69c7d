"""The items with the highest inner products: exact, or approximate for many items.

The approximate index is a graph of nearest neighbours (HNSW, usearch) over the items that a run was trained on. It is
immutable: added items are compared exactly, removed items are filtered out of its results, and all scores are computed
exactly. So nothing is rebuilt, several processes map one file, and a score does not depend on how an item was found.

Such a graph needs a distance, which an inner product is not. Each item vector v gets another component
sqrt(m^2 - |v|^2), with m the length of the longest, and each query a zero: all item vectors then have the same length,
and the order by cosine is the order by inner product (Bachrach et al. 2014).
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from msm4sr.digests import array_digest, file_digest
from msm4sr.errors import InputError
from msm4sr.files import atomic_file, write_json
from msm4sr.strict import Strict

FILE, ABOUT = "index.usearch", "index.json"
MEASURED_AT = 20  # items of a list whose recall is measured
BLOCK = 8192  # item vectors added at a time
DTYPE = "bf16"  # of the item vectors in the graph: faster to build than float32, half of the memory


class IndexSettings(Strict):
    """The search for the best items among many."""

    kind: Literal["auto", "exact", "approximate"] = Field(
        "auto", description="exact: one product with all items. auto: approximate from `approximate_from` items on"
    )
    approximate_from: int = Field(300_000, ge=1, description="number of items from which `auto` is approximate")
    connectivity: int = Field(16, ge=2, description="neighbours of an item in the graph: more memory, better recall")
    expansion_add: int = Field(128, ge=1, description="candidates when an item is added to the graph")
    expansion_search: int = Field(256, ge=1, description="minimum number of candidates in a search")

    def approximates(self, n_items: int) -> bool:
        """Whether so many items get an approximate index."""
        return self.kind == "approximate" or (self.kind == "auto" and n_items >= self.approximate_from)


def top_k(scores: Tensor, k: int) -> list[int]:
    """The rows of the `k` highest of scores [N], best first; equal scores by row; -inf is excluded."""
    k = min(k, len(scores))
    if k == 0:
        return []
    least = float(torch.topk(scores, k, sorted=False).values.min())
    there = scores >= least if least > -torch.inf else scores > -torch.inf
    rows = torch.nonzero(there).squeeze(1)  # ascending; more than k with ties
    order = torch.sort(scores[rows], descending=True, stable=True).indices[:k]
    found: list[int] = rows[order].tolist()
    return found


class ApproximateIndex:
    """A graph over item vectors [N, Q]. `about` is the content of index.json: sizes, settings, `recall@20`."""

    def __init__(self, index: Any, about: dict[str, Any]) -> None:
        self._index = index
        self.about = about

    @property
    def recall(self) -> float:
        """The fraction of the exact best 20 that were found, when the index was built."""
        return float(self.about[f"recall@{MEASURED_AT}"])

    def search(self, query: Tensor, k: int) -> Tensor:
        """About the `k` best rows for a query [Q] and, since the graph has rounded vectors, half as many of the next.

        int64 [at most 1.5 k], unordered.
        """
        extended = np.append(query.numpy(), np.float32(0))
        return torch.from_numpy(self._index.search(extended, k + k // 2, threads=1).keys.astype(np.int64))

    @classmethod
    def open(cls, folder: Path, item_vectors: Tensor, queries: Tensor, settings: IndexSettings) -> Self:
        """Open the index in a model folder if it fits the item vectors [N, Q] and settings; else build and save it.

        The recall is measured with `queries`, vectors of histories [any, Q].
        """
        digest = array_digest(item_vectors.numpy())
        graph = settings.model_dump(exclude={"kind", "approximate_from"})
        built_from = {"dtype": DTYPE, "item_vectors": digest, "settings": graph}
        # An index that is missing, damaged or of another run is built again.
        with suppress(OSError, ValueError, KeyError, TypeError, RuntimeError, InputError):
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            expected = built_from | {"checksum": file_digest(folder / FILE)}
            if all(about[name] == value for name, value in expected.items()):
                index = _empty_index(item_vectors.shape[1], graph)
                index.view(str(folder / FILE))
                if len(index) == len(item_vectors):
                    return cls(index, about)
        return cls._build(folder, item_vectors, queries, built_from)

    @classmethod
    def _build(cls, folder: Path, item_vectors: Tensor, queries: Tensor, built_from: dict[str, Any]) -> Self:
        began = time.perf_counter()
        index = _empty_index(item_vectors.shape[1], built_from["settings"])
        longest = float(item_vectors.norm(dim=1).max())
        for start in range(0, len(item_vectors), BLOCK):
            block = item_vectors[start : start + BLOCK]
            rest = (longest**2 - block.square().sum(dim=1, keepdim=True)).clamp(min=0).sqrt()
            index.add(np.arange(start, start + len(block)), torch.cat([block, rest], dim=1).numpy())
        about = {
            **built_from,
            "items": len(item_vectors),
            "build_seconds": round(time.perf_counter() - began, 1),
            "queries": len(queries),
            f"recall@{MEASURED_AT}": _measure_recall(cls(index, {}), item_vectors, queries),
        }
        with atomic_file(folder / FILE) as path:
            index.save(str(path))
        about["checksum"] = file_digest(folder / FILE)
        write_json(folder / ABOUT, about)
        return cls(index, about)


def _empty_index(dim: int, graph: dict[str, Any]) -> Any:
    from usearch.index import Index

    return Index(ndim=dim + 1, metric="cos", dtype=DTYPE, **graph)


def _measure_recall(index: ApproximateIndex, item_vectors: Tensor, queries: Tensor) -> float:
    """The mean fraction of the exact best items that the index finds; 1 without queries."""
    k = min(MEASURED_AT, len(item_vectors))
    shares = [
        len({*index.search(query, MEASURED_AT).tolist()} & {*top_k(item_vectors @ query, k)}) / k for query in queries
    ]
    return round(float(np.mean(shares)), 4) if shares else 1.0
