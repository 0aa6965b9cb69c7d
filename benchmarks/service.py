"""`msm4sr serve` in a process of its own, and locust to ask it; tests use it too."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Server:
    """A server process and a client for it."""

    def __init__(self, run: Path, state: Path, *options: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "msm4sr.cli", "serve", str(run), "--port", str(port), "--state", str(state)]
        # a process group of its own: its workers are killed with it
        self.process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, start_new_session=True)
        self.client = httpx.Client(base_url=self.url, timeout=None)
        while True:
            assert self.process.poll() is None, "the server ended"
            try:
                self.client.get("/health")
                return
            except httpx.TransportError:
                time.sleep(0.1)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


@contextmanager
def serving(run: Path, state: Path, *options: str) -> Iterator[Server]:
    server = Server(run, state, *options)
    try:
        yield server
    finally:
        server.client.close()
        if server.process.poll() is None:
            server.kill()


@dataclass(frozen=True)
class Measured:
    """What locust saw of one kind of request: seconds at the percentiles, to the millisecond."""

    name: str
    requests: int
    failures: int
    per_second: float
    p50: float
    p95: float
    p99: float


def start_load(
    url: str, histories: Sequence[Sequence[str]], rate: float, seconds: float, users: int = 50, mix: bool = False
) -> subprocess.Popen[str]:
    """locust in a process of its own; `read_load` waits for it."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
        json.dump([list(history) for history in histories], file)
    script = Path(__file__).with_name("load.py")
    settings = {"HISTORIES": file.name, "RATE": str(rate), "USERS": str(users), "MIX": str(int(mix))}
    command = [sys.executable, "-m", "locust", "-f", str(script), "--headless", "--host", url, "--json"]
    return subprocess.Popen(
        [*command, "-u", str(users), "-r", str(users), "-t", f"{seconds:g}s", "--exit-code-on-error", "0"],
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def read_load(process: subprocess.Popen[str]) -> list[Measured]:
    """By kind of request, when the load is over."""
    text, _ = process.communicate()
    return [_measured(entry) for entry in json.loads(text[text.index("[") :])]


def _measured(entry: dict[str, object]) -> Measured:
    counts = {float(str(ms)): int(str(n)) for ms, n in dict(entry["response_times"]).items()}  # type: ignore[call-overload]
    total = sum(counts.values())

    def percentile(share: float) -> float:
        seen = 0
        for ms in sorted(counts):
            seen += counts[ms]
            if seen >= share * total:
                return ms / 1000
        return 0.0

    took = float(str(entry["last_request_timestamp"])) - float(str(entry["start_time"]))
    return Measured(
        str(entry["name"]),
        int(str(entry["num_requests"])),
        int(str(entry["num_failures"])),
        total / took if took > 0 else 0.0,
        percentile(0.5),
        percentile(0.95),
        percentile(0.99),
    )


def print_load(measured: Sequence[Measured]) -> None:
    """A line a kind of request."""
    for one in measured:
        print(
            f"{one.name:24} {one.per_second:.0f} requests/s  p50 {one.p50 * 1e3:.0f} ms  p95 {one.p95 * 1e3:.0f} ms  "
            f"p99 {one.p99 * 1e3:.0f} ms  {one.requests} requests, {one.failures} failed"
        )
