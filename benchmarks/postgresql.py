"""A PostgreSQL server with an empty database. The tests use it too."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psutil
import psycopg

from msm4sr.errors import InputError

BIN = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
USER = "postgres" if os.getuid() == 0 else None  # the server refuses to run as root


class PostgreSQL:
    """A server in a folder of its own.

    Args:
        durable: commits survive a crash of the machine; else they survive only one of the server, and are faster.

    Raises InputError if PostgreSQL is not installed.
    """

    def __init__(self, durable: bool = False) -> None:
        if not BIN:
            raise InputError("PostgreSQL is not installed; run apt-get install postgresql")
        self._options = () if durable else ("-F",)
        self.folder = Path(tempfile.mkdtemp(prefix="msm4sr-"))  # short: the path of a socket has at most 107 bytes
        if USER:
            shutil.chown(self.folder, USER)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = self.url_of("postgres")
        self._numbers = count()
        subprocess.run(
            [BIN[-1] / "initdb", "-D", self.folder / "data", "-U", "msm4sr", "--auth=trust", "--no-sync", "-E", "UTF8"],
            user=USER, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        self.start()

    def url_of(self, database: str) -> str:
        return f"postgresql://msm4sr@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        data, port = self.folder / "data", str(self.port)
        self.process = subprocess.Popen(
            [BIN[-1] / "postgres", "-D", data, "-k", self.folder, "-p", port, *self._options],
            user=USER, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while True:
            try:
                psycopg.connect(self.url).close()
                return
            except psycopg.OperationalError:
                assert self.process.poll() is None
                time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: connections are closed; SIGQUIT: as after a crash."""
        self.process.send_signal(how)
        self.process.wait()

    def signal_all(self, number: signal.Signals) -> None:
        main = psutil.Process(self.process.pid)
        for one in (main, *main.children()):
            one.send_signal(number)

    def new_database(self, options: str = "") -> str:
        """The URL of a new, empty database."""
        name = f"shop{next(self._numbers)}"
        self.execute(self.url, f"CREATE DATABASE {name} {options}")
        return self.url_of(name)

    @staticmethod
    def execute(url: str, statement: str) -> list[tuple[object, ...]]:
        with psycopg.connect(url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def remove(self) -> None:
        if self.process.poll() is None:
            self.stop()  # clients may still be connected
        shutil.rmtree(self.folder)


@contextmanager
def postgresql(durable: bool = False) -> Iterator[PostgreSQL]:
    """Start a server with an empty database."""
    server = PostgreSQL(durable)
    try:
        yield server
    finally:
        server.remove()
