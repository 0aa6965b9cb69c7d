"""A PostgreSQL server with an empty database. The tests use it too."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count
from pathlib import Path

import psutil
import psycopg

from msm4sr.errors import InputError

BIN = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
USER = "postgres" if os.getuid() == 0 else None  # the server refuses to run as root


class PostgreSQL:
    """A server with its data in a folder. `options` are settings such as fsync=on."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self._options = folder, [word for option in options for word in ("-c", option)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = self.url_of("postgres")
        self._numbers = count()
        subprocess.run(
            [BIN[-1] / "initdb", "-D", folder / "data", "-U", "msm4sr", "--auth=trust", "--no-sync", "-E", "UTF8",
             "--wal-segsize=1"],
            user=USER, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        self.start()

    def url_of(self, database: str) -> str:
        return f"postgresql://msm4sr@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        data, port = self.folder / "data", str(self.port)
        self.process = subprocess.Popen(
            [BIN[-1] / "postgres", "-D", data, "-k", self.folder, "-p", port, "-F", *self._options],
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


@contextmanager
def postgresql(
    *options: str, disk: Callable[[Path], AbstractContextManager[object]] = nullcontext
) -> Iterator[PostgreSQL]:
    """Start a server with an empty database, in a folder of its own; raises InputError if it is not installed.

    Args:
        options: settings such as "fsync=on": commits then survive a crash of the machine, not only one of the server.
        disk: makes the folder of the data, so that it can be a disk of its own.
    """
    if not BIN:
        raise InputError("PostgreSQL is not installed; run apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="msm4sr-"))  # short: the path of a socket has at most 107 bytes
    try:
        if USER:
            shutil.chown(folder, USER)
        with disk(folder / "data"):
            server = PostgreSQL(folder, *options)
            try:
                yield server
            finally:
                if server.process.poll() is None:
                    server.stop()  # clients may still be connected
    finally:
        shutil.rmtree(folder)
