"""The counters of a service, for Prometheus. Several workers share a folder (PROMETHEUS_MULTIPROC_DIR)."""

from __future__ import annotations

import logging
import os
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
from prometheus_client.multiprocess import MultiProcessCollector

logger = logging.getLogger(__name__)

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
RESERVED = 256 * 1024  # bytes of each file of a worker
BUCKETS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)  # seconds


class Metrics:
    """The counters of one process; `text` has those of all workers."""

    media_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self) -> None:
        if FOLDER in os.environ:
            _reserve(Path(os.environ[FOLDER]))
        registry = self._registry = CollectorRegistry()
        labels = ("route", "method", "status")
        self.requests = Counter("msm4sr_requests", "Requests answered", labels, registry=registry)
        self.seconds = Histogram(
            "msm4sr_request_seconds", "Seconds per request", ("route",), registry=registry, buckets=BUCKETS
        )
        self.unknown = Counter("msm4sr_unknown_items", "Unknown items in histories", registry=registry)
        self.reloads = Counter("msm4sr_reloads", "Newer runs loaded", registry=registry)
        gauge = partial(Gauge, registry=registry, multiprocess_mode="mostrecent")
        self.items = gauge("msm4sr_items", "Items that can be recommended")
        self.added = gauge("msm4sr_added_items", "Items that were added after the training")

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answered request; `route` is the pattern of its path, "none" without one."""
        self.requests.labels(route, method if route != "none" else "any", status).inc()
        self.seconds.labels(route).observe(seconds)

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
    files = [folder / f"{kind}_{os.getpid()}.db" for kind in ("counter", "histogram", "gauge_mostrecent")]
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
