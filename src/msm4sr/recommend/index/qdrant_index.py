"""An index in a Qdrant server, for catalogues whose graph is too large for each process.

Without the server a search raises IndexUnavailable instead of scoring all items, which would overload every replica.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import torch
from torch import Tensor

from msm4sr.errors import InputError
from msm4sr.recommend.index.approximate import MEASURED_AT, ApproximateIndex, extended_query, with_likely
from msm4sr.recommend.index.base import ALL, INDEXES, IndexedItems, IndexSettings, Within
from msm4sr.recommend.index.qdrant_collection import Collection, named_errors

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

KEY_VARIABLE = "QDRANT_API_KEY"
SEARCH_SECONDS, BUILD_SECONDS = 5, 60  # time limits for an answer of Qdrant
SENT = 1000  # excluded rows that are sent with a search


class QdrantIndex(ApproximateIndex):
    """Searches a complete `Collection`, `name` at the address `where`."""

    kind, remote, by_category = "qdrant", True, True

    def __init__(self, client: QdrantClient, where: str, name: str, vectors: Tensor, about: dict[str, Any]) -> None:
        super().__init__(vectors, about)
        self._client, self._where, self._name = client, where, name

    def nearest(self, query: Tensor, k: int, within: Within = ALL) -> Tensor:
        """See `ApproximateIndex`. Categories and up to `SENT` excluded rows are conditions of Qdrant's search."""
        from qdrant_client import models

        never: list[models.Condition] = []
        only: list[models.Condition] = []
        if len(within.excluded) > SENT:
            k = with_likely(k, within.excluded)
        elif len(within.excluded):
            never.append(models.HasIdCondition(has_id=within.excluded.tolist()))
        if within.categories is not None:
            match = models.MatchAny(any=sorted(within.categories))
            only.append(models.FieldCondition(key="categories", match=match))
        with named_errors(self._where, self._name):
            answer = self._client.query_points(
                self._name,
                query=extended_query(query).tolist(),
                query_filter=models.Filter(must=only, must_not=never) if only or never else None,
                search_params=models.SearchParams(hnsw_ef=self.about["settings"]["expansion_search"]),
                limit=k,
                with_payload=False,
            )
        rows = torch.tensor([point.id for point in answer.points], dtype=torch.int64)
        return rows[rows < self.about["items"]]  # without the record

    def check(self) -> None:
        """Raise IndexUnavailable if Qdrant cannot be reached or lacks the collection."""
        with named_errors(self._where, self._name):
            self._client.retrieve(self._name, [self.about["items"]], with_payload=False)

    @classmethod
    def open(
        cls, builder: QdrantClient, client: QdrantClient, where: str, items: IndexedItems, settings: IndexSettings
    ) -> Self:
        """Open the collection of these items; build it if there is none, or wait for the process that builds it.

        Args:
            builder: a client that waits long enough for many points to be written.
            client: a client for searches.
            where: the address, for messages.
        """
        collection = Collection(builder, where, items, settings)
        about = collection.about()
        if about is None:
            about = collection.fill()
        if about is None:
            queries = items.queries()
            about = collection.built_from | {"items": len(items.vectors), "queries": len(queries)}
            incomplete = cls(builder, where, collection.name, items.vectors, about)
            about[f"recall@{MEASURED_AT}"] = incomplete.measured_recall(queries)
            collection.complete(about)
        return cls(client, where, collection.complete_name, items.vectors, about)


@INDEXES.register("qdrant")
def open_qdrant(items: IndexedItems, settings: IndexSettings) -> QdrantIndex:
    builder, client = _connect(settings.address, BUILD_SECONDS), _connect(settings.address, SEARCH_SECONDS)
    return QdrantIndex.open(builder, client, settings.address, items, settings)


def _connect(address: str, seconds: int) -> QdrantClient:
    try:
        from qdrant_client import QdrantClient
    except ModuleNotFoundError as error:
        reason = f"--index qdrant needs the extra 'qdrant' ({error.name} is missing)"
        raise InputError(f"{reason}: pip install 'msm4sr[qdrant]'") from None
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port
        valid = False
    if not valid:
        raise InputError(f"--index qdrant={address}: give the address of the server, --index qdrant=http://HOST:6333")
    key = os.environ.get(KEY_VARIABLE, "").strip() or None
    return QdrantClient(address, api_key=key, timeout=seconds, check_compatibility=False)
