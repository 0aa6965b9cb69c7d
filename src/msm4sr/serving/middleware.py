"""What runs before every route: access, limits on a request, and security headers."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import NoReturn

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from msm4sr.serving.access import Access
from msm4sr.serving.bodies import MAX_BODY, MULTIPART
from msm4sr.serving.problems import Refused, problem
from msm4sr.serving.service import ServeSettings

logger = logging.getLogger(__name__)

# Bytes: beyond MAX_HELD in all bodies of this process, bodies over SMALL are refused.
MAX_HELD, SMALL = 512 * 2**20, 64 * 2**10
# On every answer.
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


@dataclass
class Bodies:
    """The bodies of all requests of this process that are in memory."""

    held: int = 0  # bytes


class RequestLimits:
    """Refuses requests that are not allowed, too large, or not received completely within `settings.seconds`.

    An exception of a route becomes a 500.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings, bodies: Bodies) -> None:
        self.app, self.settings = app, settings
        self.access = Access(settings)
        self.bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        _complete_path(scope, self.settings.root_path)
        await _Exchange(self, scope, receive, send).run()


def _complete_path(scope: Scope, root: str) -> None:
    """Let the path begin with the root path, as ASGI asks, also if a proxy has removed it."""
    scope["root_path"] = root
    if not f"{scope['path']}/".startswith(f"{root}/"):
        scope["path"] = root + scope["path"]
        scope["raw_path"] = root.encode() + (scope.get("raw_path") or b"")


class _Exchange:
    """A request and its answer."""

    def __init__(self, limits: RequestLimits, scope: Scope, receive: Receive, send: Send) -> None:
        self._limits, self._scope, self._receive, self._send = limits, scope, receive, send
        self._method = scope["method"]
        self._deadline = time.monotonic() + limits.settings.seconds
        headers = dict(scope["headers"])
        is_form = headers.get(b"content-type", b"").lower().startswith(MULTIPART)
        self._max_body = limits.settings.max_body if is_form else min(MAX_BODY, limits.settings.max_body)
        length = headers.get(b"content-length", b"0")
        self._announced = int(length) if length.isdigit() else 0
        self._received, self._complete = 0, False
        self.status = 0  # of the answer; 0 before it begins
        self.refused: Refused | None = None  # why the request is refused, until the answer says so

    async def run(self) -> None:
        try:
            self._limits.access.check(self._scope)
            if self._method == "HEAD":  # answered as GET, and sent without the body
                self._scope["method"] = "GET"
            await self._limits.app(self._scope, self.receive, self.send)
        except Refused as error:
            self.refused = error
        except Exception:
            logger.exception("%s %s", self._scope["method"], self._scope["path"])
            self.refused = self.refused or Refused(500, "internal error; see the log of the service")
        finally:
            if self.refused is not None and not self.status:
                answer = problem(self.refused.status, self.refused.detail, self.refused.headers)
                self.refused = None
                await answer(self._scope, self._receive, self.send)
            self._limits.bodies.held -= self._received

    async def send(self, message: Message) -> None:
        if self.refused is not None and not self.status:
            return  # the answer of a route to an incomplete body
        self._scope["method"] = self._method
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", []), *HEADERS]
        await self._send(message)

    async def receive(self) -> Message:
        """The next part of the request. Raises Refused if it is too large, or does not arrive in time."""
        self._check_size(self._announced)
        if self._complete:  # what follows is that the caller disconnects, at any time
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._deadline - time.monotonic()))
        except TimeoutError:
            seconds = f"{self._limits.settings.seconds:g} seconds"
            self._refuse(408, f"the request did not arrive within {seconds}; try again", {"Connection": "close"})
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self._received += size
            self._limits.bodies.held += size
            self._complete = not message.get("more_body", False)
            self._check_size(self._received)
            if self._limits.bodies.held > MAX_HELD and self._received > SMALL:
                self._refuse(503, "too many large requests at once; try again later", {"Retry-After": "5"})
        return message

    def _check_size(self, size: int) -> None:
        if size > self._max_body:
            self._refuse(413, f"the request is larger than {self._max_body:,} bytes; send less at once")

    def _refuse(self, status: int, detail: str, headers: dict[str, str] | None = None) -> NoReturn:
        self.refused = Refused(status, detail, headers)
        raise self.refused from None
