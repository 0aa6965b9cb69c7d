"""`msm4sr serve` in a process of its own, and what it takes of the machine. The tests use it too."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import psutil


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

    def memory(self) -> tuple[float, float]:
        """MiB of all its processes: what they have allocated, and beside it the pages of files that they have mapped.

        The pages count for each process that has touched them, and the system takes them back when it needs room.
        """
        found = [one.memory_info() for one in self._processes()]
        mapped = sum(getattr(memory, "shared", 0) for memory in found)
        return (sum(memory.rss for memory in found) - mapped) / 2**20, mapped / 2**20

    def cpu(self) -> float:
        """CPU seconds that they have taken."""
        return sum(one.cpu_times().user + one.cpu_times().system for one in self._processes())

    def _processes(self) -> list[psutil.Process]:
        first = psutil.Process(self.process.pid)
        return [first, *first.children(recursive=True)]


@contextmanager
def serving(run: Path, state: Path, *options: str) -> Iterator[Server]:
    server = Server(run, state, *options)
    try:
        yield server
    finally:
        server.client.close()
        if server.process.poll() is None:
            server.kill()
