"""A graph in the model folder (HNSW, usearch), which several processes map."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from msm4sr.digests import array_digest, file_digest
from msm4sr.errors import InputError
from msm4sr.files import atomic_file, write_json
from msm4sr.locks import try_lock, unlock
from msm4sr.recommend.index.approximate import MEASURED_AT, ApproximateIndex, extended, extended_query, with_likely
from msm4sr.recommend.index.base import ALL, INDEXES, IndexedItems, IndexSettings, Within

FILE, ABOUT, LOCK = "index.usearch", "index.json", ".index.lock"
WAIT = 4 * 3600.0  # seconds for another process that builds the index
BLOCK = 8192  # item vectors added at a time
ONE_THREAD = 8192  # a catalogue up to this size is added by one thread: with several, searches may miss an item
DTYPE = "bf16"  # of the item vectors in the graph: faster to build than float32, half of the memory
METRIC = "ip"  # the order is that of the cosine, since all vectors have the same length, and needs no lengths


class UsearchIndex(ApproximateIndex):
    """A graph over item vectors [N, Q]. `about` is the content of index.json."""

    kind = "approximate"

    def __init__(self, vectors: Tensor, about: dict[str, Any], graph: Any) -> None:
        super().__init__(vectors, about)
        self._graph = graph

    def nearest(self, query: Tensor, k: int, within: Within = ALL) -> Tensor:
        """See `ApproximateIndex`."""
        asked = with_likely(k, within.excluded)
        return torch.from_numpy(self._graph.search(extended_query(query), asked, threads=1).keys.astype(np.int64))

    def check(self) -> None:
        """It can always be searched."""

    @classmethod
    def open(cls, items: IndexedItems, settings: IndexSettings) -> Self:
        """Open the index in a model folder if it fits the item vectors and settings; else build and save it.

        One process builds it; the others wait.
        """
        built_from = {
            "dtype": DTYPE,
            "metric": METRIC,
            "item_vectors": array_digest(items.vectors.numpy()),
            "settings": settings.graph,
        }
        if (found := cls._stored(items, settings, built_from)) is not None:
            return found
        lock = try_lock(items.folder / LOCK, seconds=WAIT)
        if lock is None:
            raise InputError(f"{items.folder}: another process has been building an index for {WAIT / 3600:g} hours")
        try:
            return cls._stored(items, settings, built_from) or cls._build(items, settings, built_from)
        finally:
            unlock(lock)

    @classmethod
    def _stored(cls, items: IndexedItems, settings: IndexSettings, built_from: Mapping[str, Any]) -> Self | None:
        """The index in the model folder; None if it is missing, damaged or of another run."""
        vectors, folder = items.vectors, items.folder
        with suppress(OSError, ValueError, KeyError, TypeError, RuntimeError, InputError):
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            expected = {**built_from, "checksum": file_digest(folder / FILE)}
            if all(about[name] == value for name, value in expected.items()):
                graph = _empty_graph(vectors.shape[1], settings)
                graph.view(str(folder / FILE))
                if len(graph) == len(vectors):
                    return cls(vectors, about, graph)
        return None

    @classmethod
    def _build(cls, items: IndexedItems, settings: IndexSettings, built_from: Mapping[str, Any]) -> Self:
        vectors, began = items.vectors, time.perf_counter()
        graph = _empty_graph(vectors.shape[1], settings)
        threads = 1 if len(vectors) <= ONE_THREAD else 0  # 0: all cores
        for numbers, block in extended(vectors, BLOCK):
            graph.add(numbers, block, threads=threads)
        seconds, queries = round(time.perf_counter() - began, 1), items.queries()
        about = {**built_from, "items": len(vectors), "build_seconds": seconds, "queries": len(queries)}
        index = cls(vectors, about, graph)
        about[f"recall@{MEASURED_AT}"] = index.measured_recall(queries)
        index._save(items.folder)
        return index

    def _save(self, folder: Path) -> None:
        with atomic_file(folder / FILE) as path:
            self._graph.save(str(path))
        self.about["checksum"] = file_digest(folder / FILE)
        write_json(folder / ABOUT, self.about)


def _empty_graph(dim: int, settings: IndexSettings) -> Any:
    from usearch.index import Index

    graph: dict[str, Any] = settings.graph
    return Index(ndim=dim + 1, metric=METRIC, dtype=DTYPE, **graph)


@INDEXES.register("approximate")
def open_usearch(items: IndexedItems, settings: IndexSettings) -> UsearchIndex:
    return UsearchIndex.open(items, settings)
