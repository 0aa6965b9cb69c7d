"""The counters of a service, for Prometheus. Several workers share a folder (PROMETHEUS_MULTIPROC_DIR)."""

from __future__ import annotations

import os
from functools import partial

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

BUCKETS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)  # seconds


class Metrics:
    """The counters of one process; `text` has those of all workers."""

    media_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self) -> None:
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
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        workers = CollectorRegistry()
        MultiProcessCollector(workers)  # type: ignore[no-untyped-call]
        return generate_latest(workers)
