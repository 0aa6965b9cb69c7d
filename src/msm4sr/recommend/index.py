"""The items with the highest inner products: exact, by one product and a partial sort, or approximate for many items.

The approximate index is a graph of neighbours (HNSW, usearch) over the items that a run was trained on. It never
changes: items that came later are compared exactly beside it, removed ones are left out of what it finds, and the
scores of all that it finds are computed anew. So nothing is rebuilt, several processes map one file, and a score does
not depend on the way in which an item was found.

An inner product is no distance, and a graph of neighbours needs one. Each key k gets one number more,
sqrt(m^2 - |k|^2) with m the longest key's length, and each query a zero: all keys are then of one length, and the order
by cosine is the order by inner product (Bachrach et al. 2014).
"""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from msm4sr.files import atomic_file, write_json

FILE, ABOUT = "index.usearch", "index.json"
MEASURED_AT = 20  # items of a list whose recall is measured
BLOCK = 8192  # keys added at a time
NUMBERS = "bf16"  # in which the graph keeps its keys: quicker to build than float32, half of the memory


class IndexSettings(BaseModel):
    """How the best items are found among many."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["auto", "exact", "approximate"] = Field(
        "auto", description="exact: one product with all items. auto: approximate from `approximate_from` items on"
    )
    approximate_from: int = Field(300_000, ge=1, description="items from which on `auto` is approximate")
    neighbours: int = Field(16, ge=2, description="that each item keeps in the graph: more memory, better recall")
    effort_of_building: int = Field(128, ge=1, description="items looked at to place one in the graph")
    effort_of_search: int = Field(256, ge=1, description="items looked at in a search at least")

    def approximates(self, n_items: int) -> bool:
        return self.kind == "approximate" or (self.kind == "auto" and n_items >= self.approximate_from)


def top_k(scores: Tensor, k: int) -> list[int]:
    """The rows of the `k` highest of scores [N], best first; equal scores by row; what is -inf is left out."""
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
    """Over keys [N, Q], which the caller keeps. `about` is what index.json says: sizes, settings, `recall@20`."""

    def __init__(self, index: Any, about: dict[str, Any]) -> None:
        self._index = index
        self.about = about

    @property
    def recall(self) -> float:
        """The share of the exact best 20 that were found, when it was built."""
        return float(self.about[f"recall@{MEASURED_AT}"])

    def search(self, query: Tensor, k: int) -> Tensor:
        """About the `k` best rows for a query [Q], and half as many that come next, in no order: int64 [at most 1.5 k].

        The order of rounded keys is not that of the keys; the exact scores choose among all of them.
        """
        wanted = np.append(query.numpy(), np.float32(0))
        return torch.from_numpy(self._index.search(wanted, k + k // 2, threads=1).keys.astype(np.int64))

    @classmethod
    def open(cls, folder: Path, keys: Tensor, queries: Tensor, settings: IndexSettings) -> Self:
        """The index in `folder`, if it is of these keys and settings; else it is built from the keys and saved there.

        `queries` [any, Q] are vectors of histories, by which its recall is measured.
        """
        from usearch.index import Index

        made_of = {
            "numbers": NUMBERS,
            "keys": _digest(keys),
            "settings": settings.model_dump(exclude={"kind", "approximate_from"}),
        }
        # Where it is not there, of another run or damaged, it is made anew.
        with suppress(OSError, ValueError, KeyError, TypeError, RuntimeError):
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            if all(about[name] == value for name, value in made_of.items()):
                index = _empty(Index, keys, settings)
                index.view(str(folder / FILE))
                if len(index) == len(keys):
                    return cls(index, about)
        return cls._build(Index, folder, keys, queries, settings, made_of)

    @classmethod
    def _build(
        cls, index_class: Any, folder: Path, keys: Tensor, queries: Tensor, settings: IndexSettings, made_of: Any
    ) -> Self:
        began = time.perf_counter()
        index = _empty(index_class, keys, settings)
        longest = float(keys.norm(dim=1).max())
        for start in range(0, len(keys), BLOCK):
            block = keys[start : start + BLOCK]
            rest = (longest**2 - block.square().sum(dim=1, keepdim=True)).clamp(min=0).sqrt()
            index.add(np.arange(start, start + len(block)), torch.cat([block, rest], dim=1).numpy())
        seconds = time.perf_counter() - began
        about = {
            **made_of,
            "items": len(keys),
            "build_seconds": round(seconds, 1),
            "queries": len(queries),
            f"recall@{MEASURED_AT}": measure_recall(cls(index, {}), keys, queries),
        }
        with atomic_file(folder / FILE) as path:
            index.save(str(path))
        write_json(folder / ABOUT, about)
        return cls(index, about)


def _empty(index_class: Any, keys: Tensor, settings: IndexSettings) -> Any:
    return index_class(
        ndim=keys.shape[1] + 1,
        metric="cos",
        dtype=NUMBERS,
        connectivity=settings.neighbours,
        expansion_add=settings.effort_of_building,
        expansion_search=settings.effort_of_search,
    )


def measure_recall(index: ApproximateIndex, keys: Tensor, queries: Tensor, k: int = MEASURED_AT) -> float:
    """The mean share of the exact best `k` that the index finds. 1 where there is nothing to ask."""
    shares = [
        len(set(index.search(query, k).tolist()) & set(top_k(keys @ query, k))) / min(k, len(keys)) for query in queries
    ]
    return round(float(np.mean(shares)), 4) if shares else 1.0


def _digest(keys: Tensor) -> str:
    return hashlib.blake2b(keys.contiguous().numpy().data, digest_size=16).hexdigest()
