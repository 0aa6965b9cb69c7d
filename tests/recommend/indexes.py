"""Items for indexes, and an index of every kind over them."""

from __future__ import annotations

from pathlib import Path

import torch
from qdrant_client import QdrantClient

from msm4sr.recommend.index import ExactIndex, IndexedItems, IndexSettings, VectorIndex
from msm4sr.recommend.index.qdrant_index import QdrantIndex
from msm4sr.recommend.index.usearch_index import UsearchIndex

SETTINGS = IndexSettings(kind="approximate")
KINDS = ("exact", "approximate", "qdrant")
CATEGORIES = ("even", "odd")  # of even and odd rows; each third row is "third" too


def some_items(folder: Path, n: int = 3000, q: int = 16, seed: int = 0) -> IndexedItems:
    """Item vectors of very different lengths, so that the best by cosine are not the best by product; and queries."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(n, q, generator=generator) * torch.rand(n, 1, generator=generator) * 5
    queries = torch.randn(50, q, generator=generator)
    categories = [(CATEGORIES[row % 2], *(["third"] if row % 3 == 0 else [])) for row in range(n)]
    return IndexedItems(vectors, [f"i{row}" for row in range(n)], categories, lambda: queries, folder)


def qdrant_index(items: IndexedItems, client: QdrantClient, settings: IndexSettings = SETTINGS) -> QdrantIndex:
    """With a Qdrant in this process."""
    return QdrantIndex.open(client, client, "here", items, settings)


def make_index(kind: str, items: IndexedItems) -> VectorIndex:
    if kind == "exact":
        return ExactIndex(items.vectors)
    if kind == "approximate":
        return UsearchIndex.open(items, SETTINGS)
    return qdrant_index(items, QdrantClient(":memory:"))
