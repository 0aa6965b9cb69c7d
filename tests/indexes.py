"""Items for indexes, and an index of every kind over them."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from qdrant_client import QdrantClient, models

from msm4sr.recommend.index import ExactIndex, IndexedItems, IndexSettings, VectorIndex
from msm4sr.recommend.index.qdrant_index import QdrantIndex
from msm4sr.recommend.index.usearch_index import UsearchIndex

SETTINGS = IndexSettings(kind="approximate")
EFFORT = IndexSettings(kind="approximate", connectivity=64, expansion_add=1000, expansion_search=3000)
KINDS = ("exact", "approximate", "qdrant")
CATEGORIES = ("even", "odd")  # of even and odd rows; each third row is "third" too


def some_items(folder: Path, n: int = 3000, q: int = 16, seed: int = 0) -> IndexedItems:
    """Item vectors of very different lengths, so that the best by cosine are not the best by product; and queries."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(n, q, generator=generator) * torch.rand(n, 1, generator=generator) * 5
    queries = torch.randn(50, q, generator=generator)
    categories = [(CATEGORIES[row % 2], *(["third"] if row % 3 == 0 else [])) for row in range(n)]
    return IndexedItems(vectors, [f"i{row}" for row in range(n)], categories, lambda: queries, folder)


def local_qdrant(path: Path | None = None) -> QdrantClient:
    """A Qdrant in this process, in memory or in a folder. It says once that it compares all points; ignore that."""
    with warnings.catch_warnings(action="ignore"):
        client = QdrantClient(":memory:")
        client.create_collection("any", models.VectorParams(size=1, distance=models.Distance.DOT))
        client.create_payload_index("any", "categories", models.PayloadSchemaType.KEYWORD)
        client.query_points("any", query=[1.0], search_params=models.SearchParams(hnsw_ef=1))
        client.delete_collection("any")
    return client if path is None else QdrantClient(path=str(path))


def qdrant_index(items: IndexedItems, client: QdrantClient, settings: IndexSettings = SETTINGS) -> QdrantIndex:
    """With a Qdrant in this process."""
    return QdrantIndex.open(client, client, "here", items, settings)


def make_index(kind: str, items: IndexedItems, settings: IndexSettings = SETTINGS) -> VectorIndex:
    if kind == "exact":
        return ExactIndex(items.vectors)
    if kind == "approximate":
        return UsearchIndex.open(items, settings)
    return qdrant_index(items, local_qdrant(), settings)
