"""The store in an SQLite file, for the processes of one machine.

A committed change is on disk (write-ahead log, synchronous FULL): it survives `kill -9` and a power cut.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock, RLock
from typing import Any

from msm4sr.data.items import Item, check_item
from msm4sr.errors import InputError
from msm4sr.files import make_folder
from msm4sr.serving.state.store import (
    COLUMNS,
    FORMAT,
    TIMEOUT,
    Change,
    Counter,
    StoreUnavailable,
    check_absent,
    check_present,
    encoded,
    merged_changes,
    row_of,
)

logger = logging.getLogger(__name__)

FILE = "items.sqlite"
MAGIC = b"SQLite format 3\0"  # the start of the file
CHECK = 1.0  # seconds between checks that the file is still there
_SCHEMA = """
CREATE TABLE IF NOT EXISTS items (
    item_id TEXT PRIMARY KEY,
    change INTEGER NOT NULL UNIQUE,
    removed INTEGER NOT NULL,
    replaces INTEGER NOT NULL,
    title TEXT, text TEXT, categories TEXT, images INTEGER,
    encoded_by TEXT, features BLOB, words TEXT
);
CREATE TABLE IF NOT EXISTS images (
    item_id TEXT NOT NULL, number INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (item_id, number)
);
CREATE TABLE IF NOT EXISTS availability (
    item_id TEXT PRIMARY KEY, change INTEGER NOT NULL UNIQUE, available INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""
_LATEST = "(SELECT value FROM counters WHERE name = 'change')"
_TABLES = ("items", "availability")  # of numbered changes
# Damaged counters continue after the latest plausible change; a row with another number gets a new one.
_RENUMBER = [
    "DELETE FROM counters WHERE typeof(value) != 'integer' OR value NOT BETWEEN 0 AND 1 << 62",
    "INSERT OR IGNORE INTO counters VALUES ('change', 0), ('reload', 0)",
    *(
        f"""UPDATE counters SET value = max(
            value, (SELECT CAST(coalesce(max(change), 0) AS INTEGER) FROM {table} WHERE change < 1 << 53)
        ) WHERE name = 'change'"""
        for table in _TABLES
    ),
    *(
        statement
        for table in _TABLES
        for statement in (
            f"""UPDATE {table} SET change = number FROM (
                SELECT damaged.rowid AS place, value + row_number() OVER (ORDER BY change) AS number
                FROM {table} AS damaged JOIN counters ON name = 'change' WHERE change < 1 OR change > value
            ) WHERE {table}.rowid = place""",
            f"""UPDATE counters SET value = (SELECT max(value, coalesce(max(change), 0)) FROM {table})
                WHERE name = 'change'""",
        )
    ),
]
_IS_IMAGE = "typeof(data) = 'blob'"
_MARKS = ", ".join("?" * len(COLUMNS))
_STORED = f"(SELECT count(*) FROM images WHERE images.item_id = items.item_id AND {_IS_IMAGE})"


class SQLiteStore:
    """The store in a folder; it is created if it does not exist.

    Raises InputError if the file is damaged, of a later version, or cannot be written.
    """

    at_once = True

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE
        self.name = str(self.file)
        self._lock, self._reading_lock = RLock(), Lock()
        try:
            make_folder(folder)
            # SQLite would make it 0644, whatever the umask is. Never closed: to close any descriptor of a file removes
            # all locks of this process on it, SQLite's too, and another process would then delete the log.
            self._descriptor = os.open(self.file, os.O_RDONLY | os.O_CREAT | os.O_NONBLOCK, 0o666)
            self._connection = self._connect()
            self._reading = self._connect()
            # invalid UTF-8 then damages one row instead of failing the query
            self._reading.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                (version,) = self._connection.execute("PRAGMA user_version").fetchone()
                if version > FORMAT:
                    known = f"(format {version}, not {FORMAT})"
                    raise InputError(f"{self.file}: made by a later version of msm4sr {known}")
                for statement in _SCHEMA.split(";"):
                    self._connection.execute(statement)
                self._drop_without_id()
                self._renumber()
                self._connection.execute(f"PRAGMA user_version = {FORMAT}")
            self._files, self._checked = self._identities(), time.monotonic()
        except (OSError, sqlite3.Error, StoreUnavailable) as error:
            raise self.unusable(error) from None

    def unusable(self, error: object) -> InputError:
        return InputError(f"{self.file}: cannot be used ({error}); restore it from a copy, or choose another --state")

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.file, timeout=TIMEOUT, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def close(self) -> None:
        self._connection.close()
        self._reading.close()

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def version(self) -> int:
        if time.monotonic() > self._checked + CHECK:
            self._check_file()
            self._checked = time.monotonic()
        return int(self._read("PRAGMA data_version")[0][0])

    def counter(self, name: Counter) -> int:
        for (value,) in self._read("SELECT value FROM counters WHERE name = ?", name):
            if isinstance(value, int):
                return value
        raise StoreUnavailable(f"the counter {name!r} is missing")

    def changes(self, since: int = 0) -> list[Change]:
        new = f"change > ? AND change <= {_LATEST}"
        with self._reading_lock, _errors():
            self._reading.execute("BEGIN")  # both queries see one state
            try:
                query = f"SELECT {', '.join([*COLUMNS, _STORED])} FROM items WHERE {new}"
                rows = self._reading.execute(query, (since,)).fetchall()
                query = f"SELECT change, item_id, available FROM availability WHERE {new}"
                switched = self._reading.execute(query, (since,)).fetchall()
            finally:
                self._reading.execute("ROLLBACK")
        return merged_changes(rows, switched)

    def images(self, item_id: str) -> list[bytes]:
        query = f"SELECT data FROM images WHERE item_id = ? AND {_IS_IMAGE} ORDER BY number"
        return [data for (data,) in self._read(query, item_id)]

    def image(self, item_id: str, number: int) -> bytes | None:
        query = f"SELECT data FROM images WHERE item_id = ? AND number = ? AND {_IS_IMAGE}"
        return next((data for (data,) in self._read(query, item_id, number)), None)

    def _read(self, query: str, *values: str | int) -> list[Any]:
        with self._reading_lock, _errors():
            return self._reading.execute(query, values).fetchall()

    def add(self, items: Sequence[Item], encoded_by: str, replaces: Sequence[bool]) -> None:
        with self.transaction():
            for item, in_place in zip(items, replaces, strict=True):
                check_absent(item.item_id, self._removed(item.item_id))
                self._clear(item.item_id)
                row = row_of(item, self._next("change"), in_place, encoded_by)
                self._connection.execute(f"INSERT OR REPLACE INTO items ({', '.join(COLUMNS)}) VALUES ({_MARKS})", row)
                self._connection.executemany(
                    "INSERT INTO images VALUES (?, ?, ?)",
                    [(item.item_id, number, data) for number, data in enumerate(item.images)],
                )

    def remove(self, item_id: str, of_the_run: bool) -> None:
        with self.transaction():
            check_present(item_id, self._removed(item_id), of_the_run)
            self._clear(item_id)
            self._connection.execute(
                "INSERT OR REPLACE INTO items (item_id, change, removed, replaces) VALUES (?, ?, 1, ?)",
                (item_id, self._next("change"), of_the_run),
            )

    def _clear(self, item_id: str) -> None:
        for table in ("images", "availability"):
            self._connection.execute(f"DELETE FROM {table} WHERE item_id = ?", (item_id,))

    def set_available(self, item_ids: Sequence[str], available: bool) -> None:
        with self.transaction():
            self._connection.executemany(
                "INSERT OR REPLACE INTO availability VALUES (?, ?, ?)",
                [(item_id, self._next("change"), available) for item_id in item_ids],
            )

    def request_reload(self) -> None:
        with self.transaction():
            self._next("reload")

    def replace_features(self, changes: Sequence[Change], encoded_by: str) -> None:
        with self.transaction():
            self._connection.executemany(
                "UPDATE items SET features = ?, words = ?, encoded_by = ? WHERE item_id = ? AND change = ?",
                [(*encoded(one.item), encoded_by, one.item_id, one.number) for one in changes if one.item is not None],
            )

    def _removed(self, item_id: str) -> bool | None:
        """Whether the latest change of an item removed it; None for an item without changes."""
        row = self._connection.execute("SELECT removed FROM items WHERE item_id = ?", (item_id,)).fetchone()
        return None if row is None else row[0] == 1

    def _next(self, counter: Counter) -> int:
        (value,) = self._connection.execute(
            "UPDATE counters SET value = value + 1 WHERE name = ? RETURNING value", (counter,)
        ).fetchone()
        return int(value)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self._lock:
            if self._connection.in_transaction:
                yield
                return
            self._check_file()
            with _errors(), self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                self._renumber()
                yield

    def _drop_without_id(self) -> None:
        """Delete the rows whose id is none, since no request can name them, and the images that belong to no row."""
        self._connection.create_function("is_id", 1, _is_id, deterministic=True)
        damaged = "typeof(item_id) != 'text' OR NOT is_id(CAST(item_id AS BLOB))"
        dropped = sum(self._connection.execute(f"DELETE FROM {table} WHERE {damaged}").rowcount for table in _TABLES)
        if dropped:
            logger.warning("%s: %d damaged rows without a valid item id were removed", self.file, dropped)
        self._connection.execute("DELETE FROM images WHERE item_id NOT IN (SELECT item_id FROM items)")

    def _renumber(self) -> None:
        for statement in _RENUMBER:
            self._connection.execute(statement)

    def _identities(self) -> list[tuple[int, int]]:
        """Of the file, and of the log with the latest changes."""
        stats = [os.stat(f"{self.file}{suffix}") for suffix in ("", "-wal", "-shm")]
        return [(stat.st_dev, stat.st_ino) for stat in stats]

    def _check_file(self) -> None:
        """Raise StoreUnavailable if the file was removed or overwritten: SQLite would still write to it in memory."""
        try:
            same = self._identities() == self._files and os.pread(self._descriptor, len(MAGIC), 0) == MAGIC
        except OSError:
            same = False
        if not same:
            raise StoreUnavailable(f"{self.file} was removed or overwritten; restart the service")


def _is_id(data: bytes | None) -> bool:
    try:
        check_item(Item((data or b"").decode()))
    except (InputError, UnicodeDecodeError):
        return False
    return True


@contextmanager
def _errors() -> Iterator[None]:
    """Raise StoreUnavailable for errors of SQLite."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreUnavailable(str(error)) from error
