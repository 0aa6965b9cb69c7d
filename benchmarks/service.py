"""`msm4sr serve` in a separate process, with its memory and CPU time. The tests use it too."""

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

    def __init__(self, run: Path, state: Path | str, *options: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "msm4sr", "serve", str(run), "--port", str(port), "--state", str(state)]
        # a new process group, so that `kill` reaches the workers
        self.process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, start_new_session=True)
        self.client = httpx.Client(base_url=self.url, timeout=None)
        while True:
            assert self.process.poll() is None, "the server process ended"
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
        """MiB of all its processes: allocated memory, and mapped pages of files.

        A mapped page counts for each process that has read it; the system may reclaim it at any time.
        """
        found = [one.memory_info() for one in self._processes()]
        mapped = sum(getattr(memory, "shared", 0) for memory in found)
        return (sum(memory.rss for memory in found) - mapped) / 2**20, mapped / 2**20

    def cpu(self) -> float:
        """CPU seconds of all its processes."""
        return sum(one.cpu_times().user + one.cpu_times().system for one in self._processes())

    def _processes(self) -> list[psutil.Process]:
        first = psutil.Process(self.process.pid)
        return [first, *first.children(recursive=True)]


@contextmanager
def serving(run: Path, state: Path | str, *options: str) -> Iterator[Server]:
    server = Server(run, state, *options)
    try:
        yield server
    finally:
        server.client.close()
        if server.process.poll() is None:
            server.kill()
