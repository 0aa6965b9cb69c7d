"""Downloads from a local server that misbehaves in every respect."""

from __future__ import annotations

import asyncio
import io
import ipaddress
import json
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import trustme
from aiohttp import web
from PIL import Image

from msm4sr.data.dataset import load_dataset
from msm4sr.data.images import BrokenImage
from msm4sr.errors import InputError
from msm4sr.features import fetch
from msm4sr.features.fetch import FetchReport, FetchSettings, fetch_images, is_public
from msm4sr.features.images import load_image
from msm4sr.locks import try_lock

QUICK = FetchSettings(first_wait=0.01, timeout=5, max_mib=0.1, attempts=3)


def image(kind: str = "JPEG", side: int = 32, colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, kind)
    return buffer.getvalue()


def bomb() -> bytes:
    """Some kilobytes that unpack to 64 megapixels."""
    buffer = io.BytesIO()
    Image.new("1", (8000, 8000)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


BOMB = bomb()


class Server:
    """https://localhost:PORT; the path determines the answer. Runs in its own thread."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self.asked: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self.times: list[float] = []
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(tls,), daemon=True)
        self._thread.start()
        assert self._started.wait(20)

    def _run(self, tls: ssl.SSLContext) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        self._loop.run_until_complete(site.start())
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        self._started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)

    def url(self, path: str) -> str:
        return f"https://localhost:{self.port}/{path}"

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"]
        self.asked[path] += 1
        self.times.append(time.monotonic())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self._respond(path, request)
        finally:
            self.at_once -= 1

    async def _respond(self, path: str, request: web.Request) -> web.StreamResponse:
        first = self.asked[path] == 1
        match path.split("/"):
            case ["good", *_]:
                await asyncio.sleep(0.02)
                return web.Response(body=image(), content_type="text/plain")  # only the content counts
            case ["png"]:
                return web.Response(body=image("PNG"))
            case ["agent"]:
                wanted = (
                    request.headers["User-Agent"].startswith("msm4sr/") and "Accept-Encoding" not in request.headers
                )
                return web.Response(body=image()) if wanted else web.Response(status=400)
            case ["status", status]:
                return web.Response(status=int(status))
            case ["once", status]:
                return web.Response(status=int(status)) if first else web.Response(body=image())
            case ["rest", after]:
                return web.Response(status=429, headers={"Retry-After": after}) if first else web.Response(body=image())
            case ["html"]:
                return web.Response(text="<html>Not an image</html>", content_type="image/jpeg")
            case ["svg"]:
                return web.Response(text="<svg xmlns='http://www.w3.org/2000/svg'/>", content_type="image/svg+xml")
            case ["half"]:
                return web.Response(body=image(side=64)[:400])
            case ["dot"]:
                return web.Response(body=image("GIF", side=1))
            case ["empty"]:
                return web.Response(body=b"")
            case ["bomb"]:
                return web.Response(body=BOMB)
            case ["huge"]:
                return web.Response(body=b"x" * 200_000)
            case ["endless"]:
                return await self._stream(request, {}, [b"x" * 65_536] * 1000)
            case ["liar"]:  # announces less than it sends: the rest does not belong to the answer
                return await self._stream(request, {"Content-Length": "5"}, [image()])
            case ["cut"]:
                return await self._stream(request, {"Content-Length": "100000"}, [image()], hang_up=True)
            case ["hangup"]:
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            case ["slow"]:
                return await self._stream(request, {"Content-Length": "100000"}, [b"x"] * 1000, pause=0.05)
            case ["silent"]:
                await asyncio.sleep(30)
                return web.Response()
            case ["loop"]:
                raise web.HTTPFound("/loop")
            case ["hop", count]:
                raise web.HTTPFound(f"/hop/{int(count) - 1}" if int(count) > 1 else "/good/hopped")
            case ["to", scheme, host, *rest]:
                location = f"{scheme}://{host}/{'/'.join(rest)}"  # as it is: HTTPFound would normalize the host
                return web.Response(status=302, headers={"Location": location})
        return web.Response(status=404)

    async def _stream(
        self, request: web.Request, headers: dict[str, str], parts: list[bytes], pause: float = 0, hang_up: bool = False
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        try:
            for part in parts:
                await response.write(part)
                await asyncio.sleep(pause)
        except (ConnectionError, asyncio.CancelledError):
            return response
        if hang_up:
            assert request.transport is not None
            request.transport.abort()
        return response


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def server(authority: trustme.CA) -> Iterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    server = Server(context)
    yield server
    server.stop()


def shop(folder: Path, *images: str | list[str] | None) -> Path:
    """A prepared folder; item n has the n-th image."""
    (folder / "images").mkdir(parents=True)
    lists = [[image] if isinstance(image, str) else image for image in images]
    ids = [f"i{n}" for n in range(len(images))]
    pl.DataFrame({"item_id": ids, "title": ids, "image": pl.Series(lists, dtype=pl.List(pl.String))}).write_parquet(
        folder / "items.parquet"
    )
    rows = len(ids) * 3
    log = {"user_id": ["u"] * rows, "item_id": ids * 3, "timestamp": list(range(rows))}
    pl.DataFrame(log).write_parquet(folder / "interactions.parquet")
    (folder / "provenance.json").write_text('{"format": "test"}')
    return folder


def images_of(folder: Path) -> list[list[str] | None]:
    return pl.read_parquet(folder / "items.parquet")["image"].to_list()


def failures(folder: Path) -> dict[str, str]:
    lines = (folder / "failed-images.jsonl").read_text().splitlines()
    return {row["url"]: row["reason"] for row in map(json.loads, lines)}


@pytest.fixture
def fetched(trusting: ssl.SSLContext) -> Any:
    """`fetch_images` that trusts the server and may connect to this machine, and to nothing else that is not public."""

    def run(folder: Path, settings: FetchSettings = QUICK, **changes: Any) -> FetchReport:
        options = {"allowed": lambda address: address.is_loopback or is_public(address), "tls": trusting} | changes
        return fetch_images(folder, settings, **options)

    return run


def test_addresses_become_paths_of_complete_images(tmp_path: Path, server: Server, fetched: Any) -> None:
    twice = server.url("good/shared")
    folder = shop(
        tmp_path / "shop", [server.url("png"), twice], None, twice, "images/mine.jpg", server.url("status/404")
    )
    report = fetched(folder)
    assert images_of(folder) == [
        ["images/i0.png", "images/i0-1.jpg"],
        None,
        ["images/i0-1.jpg"],
        ["images/mine.jpg"],
        [server.url("status/404")],
    ]
    assert (report.fetched, report.already, len(report.failed)) == (2, 0, 1)
    assert server.asked["good/shared"] == 1, "one image of two items is requested once"
    assert load_image(folder, "images/i0.png").size == (32, 32)
    assert sorted(path.name for path in folder.iterdir()) == [
        ".fetch.lock", "failed-images.jsonl", "images", "interactions.parquet", "items.parquet", "provenance.json",
    ]  # fmt: skip
    [failure] = map(json.loads, (folder / "failed-images.jsonl").read_text().splitlines())
    assert failure == {"items": ["i4"], "url": server.url("status/404"), "reason": "HTTP 404"}
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["format"] == "test"
    assert provenance["result"]["images"]["files"] == 2
    assert load_dataset(folder).n_items == 5


BEHAVIOURS = {
    "good/a": None,
    "agent": None,
    "once/429": None,
    "once/500": None,
    "once/503": None,
    "once/408": None,
    "rest/0": None,
    "hop/5": None,
    "status/404": "HTTP 404",
    "status/403": "HTTP 403",
    "status/204": "HTTP 204",
    "status/500": r"HTTP 500 \(3 tries\)",
    "rest/3600": "HTTP 429, try again in 3600 seconds",
    "html": "not an image",
    "svg": "not an image",
    "half": "damaged or cut short",
    "empty": "not an image",
    "dot": "1 x 1 pixels: a placeholder",
    "bomb": "8000 x 8000 pixels: more than 50 megapixels",
    "huge": "larger than 0.1 MiB",
    "endless": "larger than 0.1 MiB",
    "liar": "not an image|damaged",
    "cut": r"cut short \(3 tries\)",
    "hangup": r"no connection \(ServerDisconnectedError\) \(3 tries\)",
    "loop": "more than 5 redirects",
    "hop/6": "more than 5 redirects",
    "to/http/localhost/x": "not https but http",
    "to/file/localhost/etc/passwd": "not https but file",
    "to/https/10.0.0.1/x": "the host's address is not public",
    "to/https/169.254.169.254/latest/meta-data": "the host's address is not public",
    "to/https/[::ffff:192.168.1.1]/x": "the host's address is not public",
    "to/https/①⓪.⓪.⓪.①/x": "the host's address is not public",
    "to/https/169。254。169。254/x": "the host's address is not public",
    "to/https/user:word@localhost/x": "not a valid address",
    "to/https/:word@localhost/x": "not a valid address",
}


@pytest.mark.parametrize("path", BEHAVIOURS)
def test_every_answer_gives_an_image_or_a_reason(tmp_path: Path, server: Server, fetched: Any, path: str) -> None:
    folder = shop(tmp_path / "shop", server.url(path))
    fetched(folder)
    reason = BEHAVIOURS[path]
    if reason is None:
        assert images_of(folder) == [["images/i0.jpg"]]
        assert not (folder / "failed-images.jsonl").exists()
    else:
        assert images_of(folder) == [[server.url(path)]]
        with pytest.raises(BrokenImage, match="fetch-images"):
            load_image(folder, server.url(path))
        assert list((folder / "images").iterdir()) == []
        [found] = failures(folder).values()
        assert re.search(reason, found), found
    permanent = reason is not None and "tries" not in reason
    assert not permanent or server.asked[path] <= (6 if path == "loop" else 1), "a permanent failure is not tried again"


@pytest.mark.parametrize("path", ["slow", "silent"])
def test_a_slow_server_costs_the_timeout_and_no_more(tmp_path: Path, server: Server, fetched: Any, path: str) -> None:
    folder = shop(tmp_path / "shop", server.url(path))
    start = time.monotonic()
    fetched(folder, QUICK.model_copy(update={"timeout": 0.3, "attempts": 2}))
    assert time.monotonic() - start < 15
    assert failures(folder) == {server.url(path): "no answer within 0.3 seconds (2 tries)"}


@pytest.mark.parametrize("as_date", [False, True])
def test_a_server_that_asks_to_wait_gets_no_request_meanwhile(
    tmp_path: Path, server: Server, fetched: Any, as_date: bool
) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
    rest = f"rest/{date}" if as_date else "rest/1"
    folder = shop(tmp_path / "shop", server.url(rest), *(server.url(f"good/{n}") for n in range(6)))
    fetched(folder, QUICK.model_copy(update={"parallel": 1}))
    assert server.asked[rest] == 2
    assert server.times[1] - server.times[0] > 0.9
    assert all(paths and paths[0].startswith("images/") for paths in images_of(folder))


def test_requests_are_bounded(tmp_path: Path, server: Server, fetched: Any) -> None:
    folder = shop(tmp_path / "shop", *(server.url(f"good/{n}") for n in range(20)))
    fetched(folder, QUICK.model_copy(update={"parallel": 3}))
    assert server.most_at_once <= 3
    assert sum(server.asked.values()) == 20


def test_a_second_run_requests_only_what_failed(tmp_path: Path, server: Server, fetched: Any) -> None:
    folder = shop(tmp_path / "shop", server.url("good/a"), server.url("status/404"), server.url("png"))
    fetched(folder)
    before = (folder / "items.parquet").read_bytes()
    report = fetched(folder)
    assert server.asked == {"good/a": 1, "png": 1, "status/404": 2}
    assert (report.fetched, report.already) == (0, 0), "the first two are paths by now"
    assert (folder / "items.parquet").read_bytes() == before


def test_an_interrupted_run_resumes(
    tmp_path: Path, server: Server, fetched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [server.url(f"good/{n}") for n in range(10)]
    folder = shop(tmp_path / "shop", *urls)

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    other = shop(tmp_path / "other", *urls[:4])
    with monkeypatch.context() as patched:
        patched.setattr(fetch, "_rewrite", cut_off)
        with pytest.raises(KeyboardInterrupt):
            fetched(other)
    assert images_of(tmp_path / "other") == [[url] for url in urls[:4]], "the table is written at the end"
    for path in (tmp_path / "other" / "images").iterdir():
        path.rename(folder / "images" / path.name)
    (folder / "images" / ".i9.jpg.0123.unfinished").write_bytes(b"half an image")
    report = fetched(folder)
    assert (report.already, report.fetched) == (4, 6)
    assert sum(server.asked.values()) == 10
    assert images_of(folder) == [[f"images/i{n}.jpg"] for n in range(10)]
    assert len(list((folder / "images").iterdir())) == 10


def test_one_process_at_a_time_fetches_images(tmp_path: Path, server: Server, fetched: Any) -> None:
    folder = shop(tmp_path / "shop", server.url("good/a"))
    (folder / "images" / ".a.jpg.0123.unfinished").touch()
    lock = try_lock(folder / ".fetch.lock")
    assert lock is not None
    with pytest.raises(InputError, match="shop: another process fetches its images; wait until it ends"):
        fetched(folder)
    assert (folder / "images" / ".a.jpg.0123.unfinished").exists()
    lock.release()
    assert fetched(folder).fetched == 1


def test_a_certificate_that_is_not_trusted_is_a_failure(tmp_path: Path, server: Server, fetched: Any) -> None:
    folder = shop(tmp_path / "shop", server.url("good/a"))
    fetched(folder, tls=ssl.create_default_context())
    assert failures(folder) == {server.url("good/a"): "the host's certificate is not trusted"}
    assert not server.asked


# Addresses


HOSTS_OF_THIS_MACHINE = [
    "localhost", "localhost.", "localhost。", "ｌｏｃａｌｈｏｓｔ", "ⓛocalhost", "127.0.0.1", "127.1", "127.0.1",
    "2130706433", "0x7f.0.0.1", "0x7f000001", "0177.0.0.1", "017700000001", "①②⑦.⓪.⓪.①", "127。0。0。1",
    "127．0｡0.1", "１２７.０.０.１", "₁₂₇.₀.₀.₁", "𝟏𝟐𝟕.𝟎.𝟎.𝟏", "①②⑦.1", "⓪x7f.1", "0.0.0.0", "⓪", "[::1]", "[::]",
    "[0:0::1]", "[::1%25lo]", "[::1%lo]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]",
]  # fmt: skip


def test_no_spelling_of_this_machine_is_connected_to(tmp_path: Path, trusting: ssl.SSLContext) -> None:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    with socket.create_server(("", 0), family=family, dualstack_ipv6=both) as listener:
        port = listener.getsockname()[1]
        urls = [f"https://{host}:{port}/a.png" for host in HOSTS_OF_THIS_MACHINE]
        folder = shop(tmp_path / "shop", *urls)
        fetch_images(folder, QUICK.model_copy(update={"attempts": 1, "timeout": 2}), tls=trusting)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):  # there was no connection
            listener.accept()
    assert set(failures(folder)) == set(urls)


def test_a_proxy_of_the_environment_is_not_asked(
    tmp_path: Path, server: Server, fetched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would resolve the host itself."""
    for name in ("https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    folder = shop(tmp_path / "shop", server.url("good/a"))
    fetched(folder)
    assert images_of(folder) == [["images/i0.jpg"]]


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:{port}/good/a",
        "https:///good",
        "https://[::1/good",
        "https://a..b/x",
        "https://localhost:{port}\\@example.org/good/a",
        "https://example.org@localhost:{port}/good/a",
        "https://@localhost:{port}/good/a",
    ],
)
def test_by_default_this_machine_gets_no_request(
    tmp_path: Path, server: Server, trusting: ssl.SSLContext, url: str
) -> None:
    url = url.format(port=server.port)
    folder = shop(tmp_path / "shop", url)
    fetch_images(folder, QUICK, tls=trusting)
    assert not server.asked
    assert failures(folder)[url]


def test_a_host_is_resolved_once_and_the_checked_address_is_used(
    tmp_path: Path, server: Server, fetched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that resolves to another address after the check would evade it."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def turning(host: Any, *arguments: Any, **options: Any) -> Any:
        if host != "localhost":
            return real(host, *arguments, **options)
        asked.append(host)
        address = "127.0.0.1" if len(asked) == 1 else "10.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, server.port))]

    monkeypatch.setattr(socket, "getaddrinfo", turning)
    folder = shop(tmp_path / "shop", server.url("good/a"))
    fetched(folder)
    assert asked == ["localhost"]
    assert images_of(folder) == [["images/i0.jpg"]]


def test_one_private_address_among_several_is_refused(
    tmp_path: Path, server: Server, fetched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def both(*_: Any, **__: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in ("127.0.0.1", "192.168.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    folder = shop(tmp_path / "shop", server.url("good/a"))
    fetched(folder)
    assert set(failures(folder).values()) == {"the host's address is not public"}


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "240.0.0.1", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:10.0.0.1",
        "64:ff9b::7f00:1", "64:ff9b:1::808:808", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:db8::1", "3fff::1",
        "fec0::1", "::7f00:1", "::ffff:0:7f00:1", "5f00::1", "2001:0:7f00:1::1", "2606:4700::5efe:7f00:1",
        "2606:4700::200:5efe:a00:1", "192.0.0.192", "192.88.99.1", "168.63.129.16", "100.100.100.200", "fe80::1%eth0",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]
)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_a_full_disk_ends_the_run_with_the_error_of_the_system(
    tmp_path: Path, server: Server, fetched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    folder = shop(tmp_path / "shop", server.url("good/a"), server.url("good/b"))
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        fetched(folder)
    assert list((folder / "images").iterdir()) == []


def test_a_data_set_of_ids_only_has_no_images(tmp_path: Path) -> None:
    folder = shop(tmp_path / "shop", "https://example.com/x.jpg")
    (folder / "items.parquet").unlink()
    with pytest.raises(fetch.InputError, match="a data set of IDs only"):
        fetch_images(folder)


def test_without_aiohttp_the_command_names_the_extra(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['aiohttp'] = None\n"
        "from msm4sr.cli import main\n"
        f"sys.argv = ['msm4sr', 'fetch-images', {str(tmp_path)!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "error: fetching images needs the extra 'fetch': pip install 'msm4sr[fetch]'" in done.stderr
