"""A real PostgreSQL server for tests."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

BIN = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
USER = "postgres" if os.getuid() == 0 else None  # the server refuses to run as root


@contextmanager
def postgresql() -> Iterator[str]:
    """Start a server with an empty database; yields its URL."""
    if not BIN:
        pytest.skip("PostgreSQL is not installed")
    folder = Path("/tmp") / f"msm4sr-postgresql-{os.getpid()}"  # short: the path of a socket has at most 107 bytes
    folder.mkdir()
    if USER:
        shutil.chown(folder, USER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    subprocess.run(
        [BIN[-1] / "initdb", "-D", folder / "data", "-U", "msm4sr", "--auth=trust", "--no-sync"],
        user=USER, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    command = [BIN[-1] / "postgres", "-D", folder / "data", "-k", folder, "-p", str(port), "-F"]
    server = subprocess.Popen(command, user=USER, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"postgresql://msm4sr@127.0.0.1:{port}/postgres"
    try:
        while True:
            try:
                psycopg.connect(url).close()
                break
            except psycopg.OperationalError:
                assert server.poll() is None
                time.sleep(0.05)
        yield url
    finally:
        server.send_signal(signal.SIGINT)  # fast: clients may still be connected
        server.wait()
        shutil.rmtree(folder)
