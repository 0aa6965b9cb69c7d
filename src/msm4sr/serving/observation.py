"""What is recorded of each request: its id, metrics, the access log, and a trace."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from msm4sr.recommend.stages import RECORD, Interval
from msm4sr.serving.drain import Drain
from msm4sr.serving.logs import REQUEST_ID, log_access, request_id_of
from msm4sr.serving.metrics import Metrics
from msm4sr.serving.tracing import Tracing


class Observation:
    """Gives each request an id, counts, logs and traces it, and closes its connection while the service ends."""

    def __init__(self, app: ASGIApp, metrics: Metrics, drain: Drain, tracing: Tracing | None, log: bool) -> None:
        self.app, self._metrics, self._drain, self._tracing, self._log = app, metrics, drain, tracing, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, method, status = time.perf_counter_ns(), scope["method"], 0
        request_id = request_id_of(next((value for name, value in scope["headers"] if name == b"x-request-id"), None))
        record: list[Interval] = []
        RECORD.set(record)  # a request has its own context
        REQUEST_ID.set(request_id)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
                message["headers"] = [*headers, (b"connection", b"close")] if self._drain.began else headers
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            ended = time.perf_counter_ns()
            seconds, route = (ended - began) / 1e9, getattr(scope.get("route"), "path", "none")
            self._metrics.count_request(route, method, status, seconds)
            self._metrics.count_stages(record)
            if self._log:
                log_access(method, route, status, seconds)
            if self._tracing is not None:
                request = Interval(f"{method} {route}", began, ended)
                self._tracing.trace(scope, request, status, record)
