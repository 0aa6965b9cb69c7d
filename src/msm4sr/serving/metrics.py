"""What a service counts, for Prometheus. Several workers count in one folder (PROMETHEUS_MULTIPROC_DIR)."""

from __future__ import annotations

import os

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

BUCKETS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)  # seconds


class Metrics:
    """Of one process; `text` is that of all of them."""

    media_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self) -> None:
        self._own = CollectorRegistry()
        own = self._own
        labels = ("route", "method", "status")
        self.requests = Counter("msm4sr_requests", "Requests answered", labels, registry=own)
        self.seconds = Histogram(
            "msm4sr_request_seconds", "Seconds a request", ("route",), registry=own, buckets=BUCKETS
        )
        self.unknown = Counter("msm4sr_unknown_items", "Unknown items in histories", registry=own)
        self.reloads = Counter("msm4sr_reloads", "Newer runs read", registry=own)
        self.items = Gauge(
            "msm4sr_items", "Items that can be recommended", registry=own, multiprocess_mode="mostrecent"
        )
        self.added = Gauge("msm4sr_added_items", "Of them added later", registry=own, multiprocess_mode="mostrecent")

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        self.requests.labels(route, method if route != "none" else "any", status).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._own)
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)
