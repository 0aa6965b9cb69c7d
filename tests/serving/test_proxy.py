"""The service behind nginx with `deploy/nginx.conf`: TLS, hosts, a sub-path, and replicas that end."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2 as httpx
import pytest
from callers import asking, wait_for_more, wait_until
from proxy import NGINX, Proxy
from service import Server, serving

from msm4sr.data.dataset import load_dataset

pytestmark = pytest.mark.skipif(NGINX is None, reason="no nginx")


@contextmanager
def behind_nginx(
    run: Path, folder: Path, options: Sequence[str], changes: Sequence[tuple[str, str]] = (), replicas: int = 1
) -> Iterator[tuple[Proxy, list[Server]]]:
    with ExitStack() as stack:
        services = [stack.enter_context(serving(run, folder / f"state-{n}", *options)) for n in range(replicas)]
        proxy = Proxy(folder / "nginx", services, *changes)
        stack.callback(proxy.stop)
        yield proxy, services


def test_a_service_with_tls(run_folder: Path, toyshop: Path, tmp_path: Path) -> None:
    ids = load_dataset(toyshop).item_ids
    with behind_nginx(run_folder, tmp_path, ["--allowed-host", "shop.example"]) as (proxy, _):
        with proxy.client() as client:
            asked = client.post("/recommend", json={"history": ids[:2]}, headers={"Origin": "https://shop.example"})
            assert (asked.status_code, len(asked.json()["items"])) == (200, 10)
            assert re.fullmatch("[0-9a-f]{32}", asked.headers["x-request-id"])
            assert client.post("/items", data={"item_id": "a/b", "title": "A thing"}).status_code == 201
            assert client.get("/items/a%2Fb").json()["item_id"] == "a/b"
            assert client.delete("/items/a%2Fb").status_code == 204
            assert client.get("/metrics").status_code == 403
            other = {"Origin": "https://other.example"}
            assert client.post("/recommend", json={"history": ids[:2]}, headers=other).status_code == 403
        plain = httpx.get(f"http://127.0.0.1:{proxy.plain}/items?q=a", headers={"Host": "shop.example"})
        assert (plain.status_code, plain.headers["location"]) == (301, "https://shop.example/items?q=a")
        with pytest.raises(httpx.TransportError):  # another name: closed without an answer
            httpx.get(f"http://127.0.0.1:{proxy.plain}/items", headers={"Host": "other.example"})


def test_a_service_at_a_sub_path(run_folder: Path, tmp_path: Path) -> None:
    changes = [("location / {", "location /shop/ {"), ("~ ^/(", "~ ^/shop/("), ("= /metrics", "= /shop/metrics")]
    options = ["--allowed-host", "shop.example", "--root-path", "/shop"]
    with behind_nginx(run_folder, tmp_path, options, changes) as (proxy, _), proxy.client() as client:
        page = client.get("/shop/")
        assert page.status_code == 200
        links = set(re.findall(r'(?:href|src|action)="(/[^"]*)"', page.text))
        assert links
        assert all(link.startswith("/shop/") and client.get(link).status_code == 200 for link in links)
        assert "x-request-id" not in client.get("/items").headers  # nginx passes it on to no service
        assert client.get("/shop/metrics").status_code == 403


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_recommendation_is_lost_when_a_replica_ends(
    run_folder: Path, toyshop: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """nginx does not check /ready: it asks the other replica when one cannot be reached."""
    history = load_dataset(toyshop).item_ids[:2]
    options = ["--allowed-host", "shop.example", "--drain", "6"]
    with behind_nginx(run_folder, tmp_path, options, replicas=2) as (proxy, (first, second)):
        with asking(proxy.client, history) as answers:
            wait_for_more(answers, 50)
            first.process.send_signal(number)
            first.process.wait()
            wait_for_more(answers, 50)
        assert set(answers) == {200}
        assert second.process.poll() is None


def test_changes_of_a_draining_replica_are_answered(run_folder: Path, tmp_path: Path) -> None:
    options = ["--allowed-host", "shop.example", "--drain", "6"]
    with behind_nginx(run_folder, tmp_path, options) as (proxy, (service,)), proxy.client() as client:
        statuses: list[int] = []

        def add(number: int) -> None:
            data = {"item_id": f"n{number}", "title": "A thing"}
            statuses.append(client.post("/items", data=data).status_code)

        add(0)
        service.process.send_signal(signal.SIGTERM)
        wait_until(lambda: service.client.get("/ready").status_code == 503)
        for n in range(1, 5):
            add(n)
        assert statuses == [201] * 5
