"""Who may send a request: hosts, pages of other sites, proxies, the key, and a service at a sub-path."""

from __future__ import annotations

import re
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from service import Server, serving
from test_app import assert_problem

from msm4sr.serving.access import Access
from msm4sr.serving.app import create_app
from msm4sr.serving.problems import Refused
from msm4sr.serving.service import ServeSettings

KEY = "a secret"


def check(
    settings: dict[str, Any],
    host: str | None = "localhost:8000",
    method: str = "DELETE",
    client: str = "1.2.3.4",
    **more: str,
) -> int:
    """0 for a request that is allowed, else the status of its refusal."""
    headers = [] if host is None else [(b"host", host.encode())]
    headers += [(name.replace("_", "-").encode(), value.encode()) for name, value in more.items()]
    scope = {
        "type": "http",
        "method": method,
        "path": "/items/a",
        "headers": headers,
        "client": (client, 5),
        "scheme": "http",
    }
    try:
        Access(ServeSettings.model_validate({"run": "r", "state": "s"} | settings)).check(scope)
    except Refused as refused:
        return refused.status
    return 0


LOCAL: dict[str, Any] = {"hosts": [], "address": "127.0.0.5"}
SHOP = {"hosts": ["shop.example.", "other.example:8443"]}


@pytest.mark.parametrize(
    ("settings", "host", "expected"),
    [
        (LOCAL, "localhost", 0),
        (LOCAL, "LOCALHOST:8000", 0),
        (LOCAL, "127.0.0.1:8000", 0),
        (LOCAL, "[::1]:8000", 0),
        (LOCAL, "127.0.0.5:8000", 0),
        (LOCAL, "localhost.", 0),
        (LOCAL, "localhost.:8000", 0),
        (LOCAL, "localhost..", 403),
        (LOCAL, "localhost:\u00b2", 403),
        (LOCAL, "evil.example", 403),
        (LOCAL, "evil.example:8000", 403),
        (LOCAL, "localhost.evil.example", 403),
        (LOCAL, "evil.example@localhost", 403),
        (LOCAL, "localhost:80:80", 403),
        (LOCAL, "localhost:evil", 403),
        (LOCAL, "", 403),
        (LOCAL, None, 403),
        (SHOP, "shop.example", 0),
        (SHOP, "Shop.Example:443", 0),
        (SHOP, "shop.example.", 0),
        (SHOP, "other.example:8443", 0),
        (SHOP, "other.example", 403),
        (SHOP, "evil.example", 403),
        (SHOP, "a.shop.example", 403),
        ({}, "any.example", 0),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_only_the_hosts_of_the_service_are_answered(
    settings: dict[str, Any], host: str | None, expected: int, method: str
) -> None:
    assert check(settings, host, method) == expected


def test_two_hosts_are_none() -> None:
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": [(b"host", b"localhost"), (b"host", b"evil.example")],
    }
    for settings in (LOCAL, {}):
        with pytest.raises(Refused, match="one Host and one Origin"):
            Access(ServeSettings.model_validate({"run": "r", "state": "s"} | settings)).check(scope)


@pytest.mark.parametrize(
    ("settings", "host", "origin", "expected"),
    [
        (LOCAL, "localhost:8000", "http://localhost:8000", 0),
        (LOCAL, "localhost:8000", "http://localhost:3000", 403),
        (LOCAL, "127.0.0.5:8000", "http://127.0.0.5:8000", 0),
        (LOCAL, "127.0.0.5:8000", "http://127.0.0.5:9999", 403),
        (LOCAL, "127.0.0.5:8000", "http://127.0.0.5", 403),
        (LOCAL, "127.0.0.5:8000", "file://127.0.0.5:8000", 403),
        (LOCAL, "127.0.0.5:8000", "https://127.0.0.5:8000", 403),
        (LOCAL, "localhost", "http://localhost:80", 0),
        (LOCAL, "localhost", "https://localhost", 403),
        (LOCAL, "localhost.:8000", "http://localhost.:8000", 0),
        (LOCAL, "localhost:8000", "", 403),
        (LOCAL, "localhost:8000", "https://evil.example", 403),
        (LOCAL, "localhost:8000", "https://evil.example/localhost:8000", 403),
        (LOCAL, "localhost:8000", "null", 403),
        (LOCAL, "localhost:8000", "localhost:8000", 403),
        (LOCAL, "evil.example", "http://evil.example", 403),  # DNS rebinding
        (SHOP, "127.0.0.1:8000", "https://shop.example", 0),  # a proxy has rewritten Host
        (SHOP, "127.0.0.1:8000", "https://other.example:8443", 0),
        (SHOP, "127.0.0.1:8000", "https://shop.example:443", 0),
        (SHOP, "127.0.0.1:8000", "https://shop.example:9999", 403),
        (SHOP, "127.0.0.1:8000", "ftp://shop.example", 403),
        (SHOP, "shop.example:8443", "https://shop.example:8443", 0),  # a proxy has kept Host
        (SHOP, "127.0.0.1:8000", "https://evil.example", 403),
        ({}, "any.example", "https://any.example", 0),
        ({}, "any.example", "https://evil.example", 403),
    ],
)
def test_only_pages_of_the_service_may_change_items(
    settings: dict[str, Any], host: str, origin: str, expected: int
) -> None:
    assert check(settings, host, origin=origin) == expected


@pytest.mark.parametrize(
    ("client", "expected"), [("10.1.2.3", 0), ("::ffff:10.1.2.3", 0), ("fd00::1", 0), ("11.1.2.3", 403), ("::1", 403)]
)
def test_forwarded_hosts_of_proxies_alone_are_used(client: str, expected: int) -> None:
    settings = SHOP | {"hosts": ["shop.example"], "proxies": ["10.0.0.0/8", "fd00::1"]}
    forwarded = {"x_forwarded_host": "evil.example, shop.example", "x_forwarded_proto": "https"}
    assert check(settings, "backend:8000", client=client, origin="https://shop.example", **forwarded) == expected
    assert check(settings, "shop.example", client="10.1.2.3", x_forwarded_host="evil.example") == 403
    assert check(settings, "evil.example", client="1.2.3.4", x_forwarded_host="shop.example") == 403


def test_every_change_needs_the_key_but_recommendations_do_not() -> None:
    scope = {"type": "http", "headers": [(b"host", b"localhost")]}
    access = Access(ServeSettings.model_validate({"run": "r", "state": "s", "api_key": KEY, "root_path": "/shop"}))
    for method, path in (
        ("POST", "/items"), ("DELETE", "/items/a"), ("POST", "/reload"), ("PUT", "/items/a"), ("POST", "/to/come"),
        ("POST", "/shop/items"), ("POST", "/shop/reload"), ("POST", "/shoprecommend"), ("POST", "/recommend/"),
    ):  # fmt: skip
        with pytest.raises(Refused, match="needs the API key"):
            access.check(scope | {"method": method, "path": path})
    for method, path in (
        ("GET", "/items/a"), ("HEAD", "/"), ("POST", "/recommend"), ("POST", "/recommend/batch"), ("POST", "/explain"),
        ("POST", "/page/recommend"), ("POST", "/shop/recommend"),
    ):  # fmt: skip
        access.check(scope | {"method": method, "path": path})


@pytest.fixture(scope="module")
def server(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("access")
    (folder / "key").write_text(KEY)
    with serving(run_folder, folder / "state", "--api-key-file", str(folder / "key")) as server:
        yield server


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("Host: localhost", 401),
        ("Host: localhost\r\nX-API-Key: wrong", 401),
        ("Host: evil.example\r\nX-API-Key: a secret", 403),
        ("Host: localhost\r\nX-API-Key: a secret\r\nOrigin: https://evil.example", 403),
        ("Host: 127.0.0.1:8000\r\nX-API-Key: a secret\r\nOrigin: http://127.0.0.1:9999", 403),
        ("Host: localhost\r\nX-API-Key: a secret\r\nOrigin: http://localhost\r\nOrigin: https://evil.example", 400),
        (
            "Host: localhost\r\nX-API-Key: a secret\r\nContent-Type: multipart/form-data; boundary=x; charset=punycode",
            415,
        ),
        ("Host: localhost\r\nX-API-Key: a secret\r\nContent-Type: multipart/form-data; boundary=" + "x" * 300, 415),
    ],
)
def test_a_refused_request_is_answered_before_its_body_is_sent(server: Server, lines: str, expected: int) -> None:
    """With a body that is never sent: a service that waited for it would answer 408."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as caller:
        caller.sendall(f"POST /items HTTP/1.1\r\n{lines}\r\nContent-Length: 1000\r\n\r\n".encode())
        assert caller.recv(65536).startswith(f"HTTP/1.1 {expected} ".encode())


def test_the_service_bounds_heads(server: Server) -> None:
    """`test_connections` has all bounds; this is that `msm4sr serve` uses them."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as caller:
        caller.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 1000 + b"\r\n")
        assert caller.recv(65536).startswith(b"HTTP/1.1 431 ")


def test_health_is_answered_while_a_form_is_parsed(server: Server) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="a' + b";" * 3900 + b'"\r\n\r\nb\r\n'  # slow to split
    body = part * 190 + b"--x--\r\n"
    lines = f"Host: localhost\r\nX-API-Key: {KEY}\r\nContent-Type: multipart/form-data; boundary=x"
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as caller:
        caller.sendall(f"POST /items HTTP/1.1\r\n{lines}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        answers = 0
        while not select.select([caller], [], [], 0)[0]:
            answers += server.client.get("/health").status_code == 200
        assert caller.recv(65536).startswith(b"HTTP/1.1 422 ")  # it has no item_id
    assert answers > 15


@pytest.mark.parametrize("prefix", ["", "/shop"], ids=["the proxy strips the path", "the proxy keeps it"])
def test_every_path_is_below_the_root_path(run_folder: Path, tmp_path: Path, prefix: str) -> None:
    client = TestClient(create_app(ServeSettings(run=run_folder, state=tmp_path / "state", root_path="/shop")))
    found = client.get(f"{prefix}/items?limit=200").json()["items"]
    shown = next(one for one in found if one["image"])
    assert shown["page"].startswith("/shop/item/")
    pages = [client.get(f"{prefix}/?page=1"), client.get(prefix + shown["page"].removeprefix("/shop"))]
    paths = {path for page in pages for path in re.findall(r'(?:href|src|action)="(/[^"]*)"', page.text)}
    assert {"/shop/", "/shop/static/style.css", "/shop/static/catalogue.js", shown["image"], shown["page"]} <= paths
    for path in paths:
        assert client.get(prefix + path.removeprefix("/shop")).status_code == 200, path
    assert client.get(f"{prefix}/openapi.json").json()["servers"] == [{"url": "/shop"}]
    asked = {"history": [shown["item_id"]], "k": 3}
    recommended = client.post(f"{prefix}/page/recommend", json=asked).json()["items"]
    assert all(one["page"].startswith("/shop/item/") for one in recommended)


def test_an_unknown_host_is_a_problem(run_folder: Path, tmp_path: Path) -> None:
    client = TestClient(create_app(ServeSettings(run=run_folder, state=tmp_path / "state", hosts=("shop.example",))))
    assert_problem(client.get("/health"), 403, "'testserver'", "--allowed-host")
    assert client.get("/health", headers={"Host": "shop.example"}).status_code == 200
