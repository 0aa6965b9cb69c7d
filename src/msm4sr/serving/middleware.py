"""What stands before every endpoint: bounds on a request, and the counting of requests."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from msm4sr.serving.problems import Refused, problem

log = logging.getLogger("msm4sr.serving")


class Bounds:
    """A request is `max_body` bytes at most and has come within `seconds`; what goes wrong inside is a 500.

    Args:
        headers: are put on every answer.
        count: is told the route, the method, the status and the seconds of each request.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_body: int,
        seconds: float,
        headers: dict[str, str],
        count: Callable[[str, str, int, float], None],
    ) -> None:
        self.app, self.max_body, self.seconds, self.count = app, max_body, seconds, count
        self.headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 0
        refused: Refused | None = None

        async def counted_send(message: Message) -> None:
            nonlocal status
            if refused is not None and not status:
                return  # what the endpoint makes of half a body is nobody's answer
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *self.headers]
            await send(message)

        async def refusing_receive() -> Message:
            nonlocal refused
            try:
                return await bounded()
            except Refused as error:
                refused = error
                raise

        bounded = self._bounded(scope, receive)
        try:
            await self.app(scope, refusing_receive, counted_send)
        except Exception as error:
            if error is not refused:
                log.exception("%s %s", scope["method"], scope["path"])
                refused = refused or Refused(500, "something went wrong here; the log of the service has it")
        finally:
            if refused is not None and not status:
                answer, refused = problem(refused.status, refused.detail, refused.headers), None
                await answer(scope, receive, counted_send)
            route = getattr(scope.get("route"), "path", "none")
            self.count(route, scope["method"], status, time.perf_counter() - began)

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """`receive` that raises `Refused` for too large a body and for one that does not come."""
        too_large = Refused(
            413, f"the request is larger than {self.max_body:,} bytes; send less at once", {"Connection": "close"}
        )
        too_late = Refused(
            408, f"the request did not come within {self.seconds:g} seconds; try again", {"Connection": "close"}
        )
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        announced = int(length) if length.isdigit() else 0
        deadline = time.monotonic() + self.seconds
        taken, whole = 0, False

        async def bounded_receive() -> Message:
            nonlocal taken, whole
            if announced > self.max_body:
                raise too_large
            if whole:  # all has come: what follows is that the caller goes away, for which there is no hurry
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                raise too_late from None
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if taken > self.max_body:
                    raise too_large
            return message

        return bounded_receive
