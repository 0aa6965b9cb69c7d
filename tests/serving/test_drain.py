"""The end of replicas behind a load balancer: no request is lost."""

from __future__ import annotations

import http.client
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2 as httpx
import pytest
from callers import asking, wait_for_more, wait_until
from service import serving

from msm4sr.data.dataset import load_dataset

CHECK = 0.1  # seconds between two checks of /ready


class Balancer(ThreadingHTTPServer):
    """Passes each request to one of the replicas whose /ready answered 200 last, and repeats none."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Passed)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.replicas: list[str] = []  # host and port
        self.ready: list[str] = []
        self.asked, self.ended = 0, threading.Event()

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=None)

    def check(self) -> None:
        while not self.ended.wait(CHECK):
            self.ready = [one for one in list(self.replicas) if status(one, "/ready") == 200]


class Passed(BaseHTTPRequestHandler):
    server: Balancer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked += 1
        ready = self.server.ready
        connection = http.client.HTTPConnection(ready[self.server.asked % len(ready)])
        try:
            connection.request("POST", self.path, body, {"Content-Type": self.headers["Content-Type"]})
            answer = connection.getresponse()
            code, content = answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            code, content = 502, b""
        finally:
            connection.close()
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


def status(replica: str, path: str) -> int:
    connection = http.client.HTTPConnection(replica)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


@pytest.fixture
def balancer() -> Iterator[Balancer]:
    with Balancer() as balancer:
        threads = [threading.Thread(target=work) for work in (balancer.serve_forever, balancer.check)]
        for thread in threads:
            thread.start()
        yield balancer
        balancer.ended.set()
        balancer.shutdown()


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_no_request_is_lost_when_a_replica_ends(
    run_folder: Path, toyshop: Path, tmp_path: Path, balancer: Balancer, workers: str
) -> None:
    history, options = load_dataset(toyshop).item_ids[:2], ("--drain", "2", "--workers", workers)
    with serving(run_folder, tmp_path / "a", *options) as first, serving(run_folder, tmp_path / "b") as second:
        balancer.replicas = [first.address, second.address]
        wait_until(lambda: len(balancer.ready) == 2)
        with asking(balancer.client, history) as answers:
            wait_for_more(answers, 50)
            first.process.send_signal(signal.SIGTERM)
            wait_until(lambda: balancer.ready == [second.address])
            first.process.wait()
            wait_for_more(answers, 50)
        assert set(answers) == {200}


def test_a_draining_replica_is_not_ready_but_answers_and_closes_connections(run_folder: Path, tmp_path: Path) -> None:
    with serving(run_folder, tmp_path / "state", "--drain", "600") as server:
        assert "connection" not in server.client.get("/ready").headers
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: status(server.address, "/ready") == 503)
        refused = server.client.get("/ready")
        assert refused.json()["detail"] == "the service is ending; send requests to another replica"
        assert refused.headers["retry-after"] == "5"
        server.process.send_signal(signal.SIGTERM)  # as systemd may, once more
        time.sleep(0.5)
        asked = server.client.get("/items")
        assert (asked.status_code, asked.headers["connection"]) == (200, "close")
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)  # Ctrl-C does not wait
        server.process.wait()


def test_without_drain_the_end_is_at_once(run_folder: Path, tmp_path: Path) -> None:
    with serving(run_folder, tmp_path / "state") as server:
        server.stop()
        assert server.process.returncode == -signal.SIGTERM


@pytest.mark.slow
def test_workers_of_a_killed_supervisor_do_not_drain(run_folder: Path, tmp_path: Path) -> None:
    with serving(run_folder, tmp_path / "state", "--drain", "3600", "--workers", "2") as server:
        server.process.kill()
        server.process.wait()
        wait_until(lambda: status(server.address, "/health") == 0)
