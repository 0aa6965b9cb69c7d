"""The counters of a service, for Prometheus. Several workers share a folder (PROMETHEUS_MULTIPROC_DIR)."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    values,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from msm4sr.recommend.stages import Interval

logger = logging.getLogger(__name__)

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
RESERVED = 256 * 1024  # bytes of each file of a worker
BUCKETS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)  # seconds
STAGE_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5)  # seconds
KINDS = ("counter", "histogram", "gauge_mostrecent", "gauge_livesum", "gauge_livemax")  # of files of a worker


class Metrics:
    """The counters of one process; `text` has those of all workers."""

    media_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self) -> None:
        if FOLDER in os.environ:
            _reserve(Path(os.environ[FOLDER]))
        registry = self._registry = CollectorRegistry()
        labels = ("route", "method", "status")
        self._requests = Counter("msm4sr_requests", "Requests answered", labels, registry=registry)
        self._seconds = Histogram(
            "msm4sr_request_seconds", "Seconds per request", ("route",), registry=registry, buckets=BUCKETS
        )
        self._stages = Histogram(
            "msm4sr_stage_seconds",
            "Seconds per stage of a recommendation",
            ("stage",),
            registry=registry,
            buckets=STAGE_BUCKETS,
        )
        counter = partial(Counter, registry=registry)
        self.unknown = counter("msm4sr_unknown_items", "Unknown items in histories")
        self.reloads = counter("msm4sr_reloads", "Newer runs loaded, by each worker")
        self.failed_reloads = counter("msm4sr_failed_reloads", "Newer runs that could not be loaded, by each worker")
        self.cache_hits = counter("msm4sr_cache_hits", "Histories that were found in the cache, or that continue one")
        self.cache_misses = counter("msm4sr_cache_misses", "Histories of which the cache had no part")
        gauge = partial(Gauge, registry=registry, multiprocess_mode="mostrecent")
        self.items = gauge("msm4sr_items", "Items that can be recommended")
        self.added = gauge("msm4sr_added_items", "Items that were added after the training")
        self.recall = gauge("msm4sr_index_recall", "Recall@20 of the index when it was built; 1 for exact search")
        self._index = gauge("msm4sr_index", "1 for the kind of index in use", ("kind",))
        self.state_lag = Gauge(
            "msm4sr_state_lag_seconds",
            "Seconds since the items were last known to be up to date, of the worker with most",
            registry=registry,
            multiprocess_mode="livemax",
        )
        live = partial(Gauge, registry=registry, multiprocess_mode="livesum")
        self.waiting = live("msm4sr_waiting_requests", "Requests that wait for a thread")
        self.held = live("msm4sr_held_bytes", "Bytes of the bodies of requests in memory")
        self._kinds: set[str] = set()  # of the indexes since the start

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answered request; `route` is the pattern of its path, "none" without one."""
        self._requests.labels(route, method if route != "none" else "any", status).inc()
        self._seconds.labels(route).observe(seconds)

    def count_stages(self, record: Iterable[Interval]) -> None:
        """Count the stages of a request, each once with all its intervals."""
        seconds: dict[str, float] = {}
        for name, began, ended in record:
            seconds[name] = seconds.get(name, 0.0) + (ended - began) / 1e9
        for name, spent in seconds.items():
            self._stages.labels(name).observe(spent)

    def count_lookup(self, found: bool) -> None:
        """Count a history that was looked up in the cache, itself or one that it continues."""
        (self.cache_hits if found else self.cache_misses).inc()

    def set_index(self, kind: str, recall: float | None) -> None:
        """The index in use; `recall` is None for exact search."""
        self._kinds.add(kind)
        for known in self._kinds:
            self._index.labels(known).set(known == kind)
        self.recall.set(1.0 if recall is None else recall)

    def text(self) -> bytes:
        """All counters in the text format of Prometheus."""
        if FOLDER not in os.environ:
            return generate_latest(self._registry)
        workers = CollectorRegistry()
        MultiProcessCollector(workers)  # type: ignore[no-untyped-call]
        return generate_latest(workers)


def _reserve(folder: Path) -> None:
    """Write the files of this process at their full size, or count in memory alone if there is no space.

    prometheus_client maps sparse files, and writing to them on a full disk would kill the process.
    """
    files = [folder / f"{kind}_{os.getpid()}.db" for kind in KINDS]
    missing = [file for file in files if not file.exists()]
    try:
        for file in missing:
            file.write_bytes(bytes(RESERVED))
    except OSError as error:
        logger.warning("/metrics has only the worker that answers: no space in %s (%s)", folder, error.strerror)
        for file in missing:
            file.unlink(missing_ok=True)
        del os.environ[FOLDER]
        values.ValueClass = values.MutexValue


def forget_worker(pid: int | None) -> None:
    """Remove what a worker that has ended counted as waiting and held."""
    if pid is not None and FOLDER in os.environ:
        mark_process_dead(pid)  # type: ignore[no-untyped-call]
