"""Traces of requests for OpenTelemetry, sent by OTLP over HTTP: one span per request, and one for each of its stages.

The standard variables apply (OTEL_EXPORTER_OTLP_ENDPOINT and _HEADERS, OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, ...).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.types import Scope

from msm4sr.errors import InputError
from msm4sr.recommend.stages import Interval
from msm4sr.serving.logs import REQUEST_ID

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PATH = "/v1/traces"  # of the protocol
END_SECONDS = 5.0  # for the last spans


def wants_traces(url: str | None) -> bool:
    """Whether traces are asked for, by a URL or by a standard variable."""
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    return url is not None or (not off and any(os.environ.get(name) for name in ENDPOINTS))


class Tracing:
    """Sends a span for each request, with its stages, to `url` (None: the endpoint of the standard variables).

    The traceparent of a request (W3C trace context) is continued. Raises InputError for a wrong URL, or if the extra
    `trace` is missing.
    """

    def __init__(self, url: str | None) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ModuleNotFoundError as error:
            reason = f"traces need the extra 'trace' ({error.name} is missing)"
            raise InputError(f"{reason}: pip install 'msm4sr[trace]', or unset {ENDPOINTS[1]}") from None
        if url is not None and not _is_http(url):
            raise InputError(f"--trace {url!r}: not a URL of an OTLP receiver; use one such as http://localhost:4318")
        complete = url and (url if url.rstrip("/").endswith(PATH) else url.rstrip("/") + PATH)
        self._trace, self._propagator = trace, TraceContextTextMapPropagator()
        self._exporter = OTLPSpanExporter(endpoint=complete or None)
        self._provider: TracerProvider | None = None
        self._since_epoch = 0  # nanoseconds, at 0 of `time.perf_counter_ns`

    def start(self) -> None:
        """Start to send spans from a thread."""
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({SERVICE_NAME: "msm4sr"}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("msm4sr")
        self._since_epoch = time.time_ns() - time.perf_counter_ns()

    def stop(self) -> None:
        """Send the spans that are left, within `END_SECONDS`."""
        if self._provider is not None:
            given_up = threading.Timer(END_SECONDS, self._exporter.shutdown)
            given_up.start()
            self._provider.shutdown()
            given_up.cancel()

    def trace(self, scope: Scope, request: Interval, status: int, stages: Sequence[Interval]) -> None:
        """Record an answered request and its stages."""
        if self._provider is None:
            return
        kind, name, shift = self._trace.SpanKind, request.stage, self._since_epoch
        span = self._tracer.start_span(
            name, self._parent(scope), kind.SERVER, _attributes(scope, name, status), start_time=request.began + shift
        )
        if span.is_recording():
            if status >= 500 or not status:
                span.set_status(self._trace.Status(self._trace.StatusCode.ERROR))
            inside = self._trace.set_span_in_context(span)
            for stage, began, ended in _joined(stages):
                child = self._tracer.start_span(stage, inside, start_time=began + shift)
                child.end(ended + shift)
        span.end(request.ended + shift)

    def _parent(self, scope: Scope) -> Any:
        given = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in _CONTEXT}
        return self._propagator.extract(given)


_CONTEXT = frozenset({b"traceparent", b"tracestate"})


def _attributes(scope: Scope, name: str, status: int) -> dict[str, Any]:
    """The attributes that the conventions for HTTP name, and the id of the request."""
    method, _, route = name.partition(" ")
    found = {
        "http.request.method": method,
        "http.route": route,
        "http.response.status_code": status,
        "url.scheme": scope["scheme"],
        "msm4sr.request_id": REQUEST_ID.get(),
    }
    return {key: value for key, value in found.items() if value not in (0, "none")}


def _joined(stages: Sequence[Interval]) -> list[Interval]:
    """Each stage once, from its first beginning to its last end."""
    found: dict[str, Interval] = {}
    for name, began, ended in stages:
        found[name] = Interval(name, found[name].began if name in found else began, ended)
    return list(found.values())


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
