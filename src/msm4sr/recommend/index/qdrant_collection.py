"""The points of a run in Qdrant, and how they come there once, whoever starts.

A collection `msm4sr-DIGEST` has a point per item, whose id is the row, and one more point after them, the record: its
payload says how many items are there, and how the build ended. Searches use the alias `msm4sr-DIGEST-complete`, which
is made last. So an incomplete collection is never searched, and a build that was killed is continued: all writes are
idempotent, and two processes that write the same points do no harm.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from msm4sr.digests import array_digest, json_digest
from msm4sr.errors import InputError, first_line
from msm4sr.recommend.index.approximate import extended
from msm4sr.recommend.index.base import IndexedItems, IndexSettings, IndexUnavailable

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

logger = logging.getLogger(__name__)

BATCH = 1000  # items per request
PATIENCE = 60.0  # seconds without progress after which the build of another process is continued
POLL = 0.5  # seconds between two requests of a process that waits
REPORT = 10.0  # seconds between two lines of progress


class CollectionMissing(IndexUnavailable):
    """Qdrant has no collection of that name."""


class Collection:
    """The collection of some items and settings. All methods raise IndexUnavailable if Qdrant does not do its part."""

    def __init__(self, client: QdrantClient, where: str, items: IndexedItems, settings: IndexSettings) -> None:
        self._client, self.where, self._items = client, where, items
        self.built_from: dict[str, Any] = {
            "item_vectors": array_digest(items.vectors.numpy()),
            "payload": json_digest(list(items.item_ids), [list(names) for names in items.categories]),
            "settings": settings.graph,
        }
        self.name = f"msm4sr-{json_digest(self.built_from)}"
        self.complete_name = f"{self.name}-complete"

    def about(self) -> dict[str, Any] | None:
        """How the collection was built; None if it is not complete. Raises InputError if it was changed since."""
        try:
            record = self._record(self.complete_name)
        except CollectionMissing:
            return None
        with named_errors(self.where, self.complete_name):
            points = self._client.count(self.complete_name, exact=True).count
        if points != len(self._items.vectors) + 1:
            raise InputError(
                f"{self.where}: collection {self.name} was changed, it has {points:,} points in place of "
                f"{len(self._items.vectors) + 1:,}; delete it in Qdrant and start again, which builds it"
            )
        about: dict[str, Any] | None = record.get("about")  # None: a second process still writes the same points
        return about

    def fill(self) -> dict[str, Any] | None:
        """Write all points and wait until Qdrant has indexed them; then call `complete`.

        If another process does that, wait for it, and return what `about` returns.
        """
        seen, since = None, time.monotonic()
        while True:
            if self._create():
                self._write(0)
                return None
            if (about := self.about()) is not None:
                return about
            try:
                record = self._record(self.name)
            except CollectionMissing:
                continue  # deleted just now
            if record != seen:
                if seen is None:
                    logger.info("%s: waits for the process that builds %s", self.where, self.name)
                seen, since = record, time.monotonic()
            elif time.monotonic() - since >= PATIENCE:
                rows = int(record.get("rows", 0))
                logger.warning("%s: the build of %s has stopped; continued at item %s", self.where, self.name, rows)
                self._write(rows)
                return None
            time.sleep(POLL)

    def complete(self, about: dict[str, Any]) -> None:
        """Make the alias that searches use."""
        from qdrant_client import models

        rows = len(self._items.vectors)
        with named_errors(self.where, self.name):
            points = self._client.count(self.name, exact=True).count
        if points != rows + 1:
            raise InputError(
                f"{self.where}: collection {self.name} has {points:,} points in place of {rows + 1:,}: another "
                "program changes it; delete it in Qdrant and start again"
            )
        self._write_record(rows, about)
        alias = models.CreateAlias(collection_name=self.name, alias_name=self.complete_name)
        with named_errors(self.where, self.name):
            self._client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])

    def _create(self) -> bool:
        """Create the collection; whether this process did."""
        from qdrant_client import models
        from qdrant_client.http.exceptions import UnexpectedResponse

        with named_errors(self.where, self.name):
            if self._client.collection_exists(self.name):
                return False
            graph = self.built_from["settings"]
            try:
                self._client.create_collection(
                    self.name,
                    models.VectorParams(size=self._items.vectors.shape[1] + 1, distance=models.Distance.DOT),
                    hnsw_config=models.HnswConfigDiff(m=graph["connectivity"], ef_construct=graph["expansion_add"]),
                )
            except UnexpectedResponse as error:
                if error.status_code in (400, 409) and self._client.collection_exists(self.name):
                    return False  # another process was faster
                raise
        return True

    def _write(self, start: int) -> None:
        from qdrant_client import models

        items, total, reported = self._items, len(self._items.vectors), time.monotonic()
        with named_errors(self.where, self.name):
            # before the points, so that the graph is connected within categories too
            self._client.create_payload_index(self.name, "categories", models.PayloadSchemaType.KEYWORD)
        logger.info("%s: writes %s items to %s", self.where, f"{total - start:,}", self.name)
        for rows, vectors in extended(items.vectors, BATCH, start):
            payloads = [{"item_id": items.item_ids[row], "categories": [*items.categories[row]]} for row in rows]
            batch = models.Batch(ids=rows.tolist(), vectors=vectors.tolist(), payloads=payloads)
            with named_errors(self.where, self.name):
                self._client.upsert(self.name, batch, wait=True)
            done = int(rows[-1]) + 1
            self._write_record(done)
            if time.monotonic() - reported >= REPORT:
                reported = time.monotonic()
                logger.info("%s: %s of %s items are written", self.where, f"{done:,}", f"{total:,}")
        self._wait_for_graph()

    def _wait_for_graph(self) -> None:
        """Wait until Qdrant has built the graph: until then, it compares all points."""
        from qdrant_client.models import CollectionStatus, OptimizersConfigDiff

        rows, reported = len(self._items.vectors), time.monotonic()
        while True:
            with named_errors(self.where, self.name):
                info = self._client.get_collection(self.name)
                if info.status == CollectionStatus.GREEN:
                    return
                if info.status == CollectionStatus.RED:
                    raise InputError(
                        f"{self.where}: Qdrant cannot index {self.name} ({info.optimizer_status}); see its log"
                    )
                if info.status == CollectionStatus.GREY:  # restarted: it continues after a change
                    self._client.update_collection(self.name, optimizers_config=OptimizersConfigDiff())
            if time.monotonic() - reported >= REPORT:
                reported = time.monotonic()
                self._write_record(rows)  # so that others see that this process lives
                logger.info("%s: %s vectors are in the graph", self.where, f"{info.indexed_vectors_count or 0:,}")
            time.sleep(POLL)

    def _record(self, name: str) -> dict[str, Any]:
        """The payload of the record; empty if there is none yet."""
        with named_errors(self.where, name):
            points = self._client.retrieve(name, [len(self._items.vectors)], with_payload=True)
        return dict(points[0].payload or {}) if points else {}

    def _write_record(self, rows: int, about: dict[str, Any] | None = None) -> None:
        from qdrant_client import models

        number, size = len(self._items.vectors), self._items.vectors.shape[1] + 1
        payload = {"rows": rows, "time": time.time(), "about": about}
        with named_errors(self.where, self.name):
            self._client.upsert(
                self.name, models.Batch(ids=[number], vectors=[[0.0] * size], payloads=[payload]), wait=True
            )


@contextmanager
def named_errors(where: str, name: str) -> Iterator[None]:
    """Raise the errors of the client as IndexUnavailable, with the address and what to do."""
    from qdrant_client.common.client_exceptions import QdrantException
    from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

    missing = (
        f"{where}: Qdrant has no collection {name}; POST /reload, or a restart of the service, builds it, unless "
        "another process is building it"
    )
    try:
        yield
    except ResponseHandlingException as error:
        raise IndexUnavailable(
            f"{where}: no answer of Qdrant ({first_line(error.source)}); start it, or correct the address"
        ) from error
    except UnexpectedResponse as error:
        if error.status_code == 404:
            raise CollectionMissing(missing) from error
        if error.status_code in (401, 403):
            raise IndexUnavailable(f"{where}: Qdrant refuses the API key; set QDRANT_API_KEY") from error
        raise IndexUnavailable(f"{where}: Qdrant answers {first_line(error)}; see its log") from error
    except QdrantException as error:  # it limits the number of requests
        raise IndexUnavailable(f"{where}: Qdrant refuses the request ({first_line(error)})") from error
    except ValueError as error:  # of a client without a server
        if "not found" not in str(error):
            raise
        raise CollectionMissing(missing) from error
