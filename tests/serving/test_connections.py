"""Bounds on connections: a real listener with short times, over a tiny application, and raw sockets."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from msm4sr.serving import connections
from msm4sr.serving.connections import Connection

LARGE = 16_000_000  # bytes, more than the buffers of a connection
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
HEAD = "the head of a request may have 32,768 bytes (8,192 of the path) and 100 lines"
Address = tuple[str, int]


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers a GET at once, and another request, when its body is complete, with its hosts and its body."""
    body = b"x" * LARGE if scope["path"] == "/large" else b"ok"
    if scope["method"] != "GET":
        message, body = await receive(), b""
        while message.get("more_body"):
            body += message["body"]
            message = await receive()
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        body = b"<%b>" % b" ".join([*hosts, scope["method"].encode(), body + message.get("body", b"")])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def address() -> Iterator[Address]:
    """A listener with limits of 8 connections and a fraction of a second."""
    config = uvicorn.Config(application, http=Connection, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as listener:
        allow(0.3, patch)
        patch.setattr(Connection, "limit", 8)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield listener.getsockname()
        server.should_exit = True
        thread.join()


def allow(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_SECONDS", "BODY_SECONDS", "ANSWER_SECONDS"):
        monkeypatch.setattr(connections, name, seconds)


def ask(address: Address, *parts: bytes) -> bytes:
    """All that is answered on a connection that sends `parts` and then waits until the other side closes it."""
    with socket.create_connection(address) as caller:
        try:
            for part in parts:
                caller.sendall(part)
        except OSError:
            pass  # closed while sending
        return rest(caller)


def rest(caller: socket.socket) -> bytes:
    received = b""
    try:
        while data := caller.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return received


def status(answer: bytes) -> int:
    return int(answer.split()[1])


def is_answered(address: Address) -> bool:
    return ask(address, GET + b"Connection: close\r\n\r\n").endswith(b"ok")


@pytest.mark.parametrize(
    "parts",
    [
        [GET + b"X-A: ", *[b"a" * 2**16] * 16],
        [GET, *[b"a: b\r\n" * 100] * 100, b"\r\n"],
        [GET, b"a: b\r\n" * 100, b"\r\n"],  # 101 lines with Host
        [GET, b"X-A: " + b"a" * 32_768, b"\r\n\r\n"],
        [b"GET /", *[b"a" * 2**16] * 16],
        [b"GET /" + b"a" * 8_192 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"],
        [b"\r\n" * 2**19],
    ],
    ids=["long value", "10,000 lines", "101 lines", "32 KiB in one piece", "endless path", "long path", "blank lines"],
)
def test_a_head_over_the_bounds_is_refused(address: Address, parts: list[bytes]) -> None:
    answer = ask(address, *parts)
    assert status(answer) == 431
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    assert json.loads(body)["detail"] == HEAD
    assert is_answered(address)


def test_a_head_within_the_bounds_is_accepted(address: Address) -> None:
    lines = b"".join(b"X-%d: %s\r\n" % (number, b"a" * 300) for number in range(98))
    assert status(ask(address, GET + lines + b"Connection: close\r\n\r\n")) == 200


def test_what_is_not_http_is_a_problem(address: Address) -> None:
    answer = ask(address, bytes(range(256)))
    assert status(answer) == 400
    assert b"application/problem+json" in answer


@pytest.mark.parametrize(
    "endless", [b"0\r\nX-A: " + b"a" * 2**20, b"0\r\n" + b"X: a\r\n" * 2**17, b"5;" + b"a" * 2**20]
)
def test_an_endless_trailer_or_extension_closes_the_connection(
    address: Address, endless: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(3600, monkeypatch)
    assert ask(address, CHUNKED, endless) == b""
    assert is_answered(address)


@pytest.mark.parametrize(
    "body", [b"Content-Length: %d\r\n\r\n%b", b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"]
)
@pytest.mark.parametrize("size", [1000, 100, 1])
def test_an_upgrade_is_ignored_and_its_body_read(
    address: Address, body: bytes, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(60, monkeypatch)
    inner = b"DELETE / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
    last = b"PUT / HTTP/1.1\r\nHost: localhost\r\nConnection: close, upgrade\r\nUpgrade: websocket\r\n\r\n"
    sent = (head + body % (len(inner), inner)) * 2 + last
    answer = ask(address, *(sent[start : start + size] for start in range(0, len(sent), size)))
    assert re.findall(rb"<.*?>", answer, re.DOTALL) == [b"<localhost POST " + inner + b">"] * 2 + [b"<localhost PUT >"]


def test_tunnels_are_refused(address: Address) -> None:
    assert status(ask(address, b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", GET + b"\r\n")) == 400


@pytest.mark.parametrize("parts", [1, 2])
def test_trailers_are_no_headers(address: Address, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    allow(60, monkeypatch)
    trailers = b"0\r\nHost: evil.example\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"
    sent = CHUNKED + b"1\r\na\r\n" + trailers + CHUNKED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    sent += b"1\r\nb\r\n0\r\nHost: evil.example\r\n\r\n"
    cut = sent.index(b"evil") if parts == 2 else len(sent)
    answer = ask(address, sent[:cut], sent[cut:])
    assert re.findall(rb"<.*?>", answer) == [b"<localhost POST a>", b"<localhost POST b>"]


def test_many_requests_at_once_are_refused(address: Address) -> None:
    answer = ask(address, (GET + b"\r\n") * 1000)
    assert answer.count(b"HTTP/1.1 200") <= connections.MAX_PIPELINED + 2
    assert ask(address, (GET + b"\r\n") * 10).count(b"HTTP/1.1 200") == 10


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"", b""),
        (b"", b"\r\n"),
        (GET, b""),
        (GET + b"X-A: ", b"a"),
        (GET, b"a: b\r\n"),
        (GET + b"\r\n", b""),
        (GET + b"\r\n", b"\r\n"),
        (GET + b"\r\n" + GET + b"X-A: ", b"a"),
        (GET + b"Content-Length: 1000\r\n\r\n", b"a"),
        (CHUNKED, b"1\r\na\r\n"),
    ],
    ids=[
        "nothing", "blank lines", "half a head", "slow value", "slow lines", "nothing after an answer",
        "blank lines after an answer", "slow second head", "slow body that is not read", "slow body",
    ],
)  # fmt: skip
def test_a_caller_that_does_not_finish_is_closed(address: Address, start: bytes, piece: bytes) -> None:
    with socket.create_connection(address) as caller:
        caller.sendall(start)
        caller.settimeout(0.05)
        received = b""
        while True:  # until the other side closes the connection
            try:
                data = caller.recv(65536)
                received += data
                if not data:
                    break
            except TimeoutError:
                pass
            except OSError:
                break
            try:
                caller.sendall(piece)
            except OSError:
                break
    assert received.count(b"HTTP/1.1 200") == start.startswith(GET + b"\r\n") + start.startswith(GET + b"Content")
    assert is_answered(address)


def test_an_answer_that_is_not_received_is_given_up(address: Address) -> None:
    with socket.socket() as caller:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        caller.connect(address)
        caller.sendall(GET.replace(b"/health", b"/large") + b"\r\n")
        while Connection.waiting or not is_answered(address):
            pass
        assert len(rest(caller)) < LARGE


@pytest.mark.parametrize("start", [b"", GET, CHUNKED, GET + b"\r\n"], ids=["idle", "head", "body", "answered"])
def test_more_connections_than_allowed_replace_those_that_wait_longest(
    address: Address, start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(3600, monkeypatch)
    callers = []
    for _ in range(40):
        callers.append(socket.create_connection(address))
        callers[-1].sendall(start)
    assert is_answered(address)  # its connection replaced the oldest
    for caller in callers[:33]:
        assert rest(caller).count(b"HTTP/1.1") <= 1  # and is closed
    assert len(Connection.waiting) <= 8
    for caller in callers:
        caller.close()


def test_the_number_of_connections_leaves_descriptors_for_files(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    for soft, expected in ((200, 100), (1024, 500), (1_000_000, 500), (resource.RLIM_INFINITY, 500)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert connections.max_connections() == expected
