"""Limits on connections that the application cannot see: their number, the size of heads, and the time for heads,
bodies and answers, so that no caller can occupy a connection without using it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from http import HTTPStatus
from typing import ClassVar

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from msm4sr.serving.problems import problem

MAX_CONNECTIONS = 500  # of a process; fewer if it may open fewer than twice as many files
MAX_HEAD, MAX_PATH, MAX_HEADERS = 32 * 2**10, 8 * 2**10, 100  # bytes, bytes, lines
MAX_PIPELINED = 16  # requests that are sent before the first is answered
HEAD_SECONDS = 10  # until a head is complete
BODY_SECONDS = 40  # until a body is complete; the application answers 408 before
ANSWER_SECONDS = 120  # until a complete request is answered and the answer is received


def max_connections() -> int:
    """The number of connections of a process, so that descriptors are left for its files."""
    try:
        import resource
    except ImportError:  # Windows
        return MAX_CONNECTIONS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, soft // 2)


class Connection(HttpToolsProtocol):
    """A connection with limits. One that exceeds them is refused with a problem document, or closed."""

    # Those of this process that have sent no complete request, in the order in which they began to wait.
    waiting: ClassVar[dict[Connection, None]] = {}
    limit: ClassVar[int] = max_connections()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._timer: asyncio.TimerHandle | None = None
        self._complete = self._in_head = False  # whether the request is, and whether its head is being read
        self._head = 0  # bytes since the request began, or since the latest byte of its body
        self._refusal = HTTPStatus.BAD_REQUEST, "the request is not HTTP/1.1"
        self._expect_request(HEAD_SECONDS)
        if len(self.connections) > self.limit:
            self._evict()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.waiting.pop(self, None)
        super().connection_lost(exc)

    def _allow(self, seconds: float) -> None:
        """Close the connection after this time, unless `_allow` is called again before."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self.transport.abort)

    def _evict(self) -> None:
        """Close the connection that has waited longest, of the address that has most of those that wait."""
        ((address, _),) = Counter(one.client and one.client[0] for one in self.waiting).most_common(1)
        oldest = next(one for one in self.waiting if (one.client and one.client[0]) == address)
        self.waiting.pop(oldest)
        self.connections.discard(oldest)
        oldest.transport.abort()

    def data_received(self, data: bytes) -> None:
        self._head += len(data)
        self._unset_keepalive_if_required()
        while data:
            try:
                self.parser.feed_data(data)
                data = b""
            except HttpParserUpgrade as end_of_head:
                data = self._head_without_upgrade() + data[end_of_head.args[0] :]
                self.parser = HttpRequestParser(self)  # after "Connection: close" the old one reads no more
            except HttpParserError:
                self.send_400_response("")
                return
        if self._head > MAX_HEAD and not self.transport.is_closing():
            self._refuse_head()
            self.send_400_response("")

    def _head_without_upgrade(self) -> bytes:
        """The latest head without its Upgrade, which is not accepted: the parser takes no body after it."""
        version = self.parser.get_http_version().encode()
        lines = [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version), *lines, b"\r\n"])

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._complete, self._in_head = False, True
        self._allow(HEAD_SECONDS)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer is no header (RFC 9110, 6.5.1)
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            self._refuse_head()
            raise ValueError("too many headers")  # the parser stops, and `send_400_response` is called

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_HEAD or len(self.url) > MAX_PATH or len(self.pipeline) > MAX_PIPELINED:
            self._refuse_head()
            raise ValueError("too much")
        if self.parser.get_method() == b"CONNECT":
            raise ValueError("no tunnels")
        self._in_head = False
        if self.parser.should_upgrade():
            return  # `data_received` reads this head again
        super().on_headers_complete()
        self._allow(BODY_SECONDS)

    def on_body(self, body: bytes) -> None:
        self._head = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._head, self._complete = 0, True
        self.waiting.pop(self, None)
        self._allow(ANSWER_SECONDS)
        if self.cycle.response_complete:  # the answer did not wait for the body
            self._expect_request(HEAD_SECONDS)

    def on_response_complete(self) -> None:
        super().on_response_complete()  # closes the connection once it is idle for `timeout_keep_alive`
        if self._complete and self.cycle.response_complete and not self.transport.is_closing():
            self._expect_request(ANSWER_SECONDS)  # within which the answer is received

    def _expect_request(self, seconds: float) -> None:
        self.waiting[self] = None
        self._allow(seconds)

    def _refuse_head(self) -> None:
        detail = f"the head of a request may have {MAX_HEAD:,} bytes ({MAX_PATH:,} of the path) and {MAX_HEADERS} lines"
        self._refusal = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser or the bounds above do not accept, and close the connection."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()  # another answer is being written
            return
        status, detail = self._refusal
        answer = problem(status, detail, {"Connection": "close"})
        lines = [f"HTTP/1.1 {status} {status.phrase}".encode(), *(b": ".join(pair) for pair in answer.raw_headers)]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))
        self.transport.close()
