"""Finding the items with the highest inner products: exactly, by a graph in the process, or in Qdrant."""

from msm4sr.recommend.index.base import (
    ALL,
    INDEXES,
    ExactIndex,
    Found,
    IndexedItems,
    IndexSettings,
    IndexUnavailable,
    VectorIndex,
    Within,
    open_index,
    top_k,
)

__all__ = [
    "ALL",
    "INDEXES",
    "ExactIndex",
    "Found",
    "IndexSettings",
    "IndexUnavailable",
    "IndexedItems",
    "VectorIndex",
    "Within",
    "open_index",
    "top_k",
]
