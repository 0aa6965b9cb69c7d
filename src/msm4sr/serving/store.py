"""The items that were added and removed while a run is served, in an SQLite file, so that they survive a restart.

The table has a row for each item that changed, with the number of its latest change. A committed change is on disk
(write-ahead log, synchronous FULL): it survives `kill -9` and a power cut. Several processes may use one store; each
reads the changes since the last one that it knows.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load, save

from msm4sr.data.items import Item
from msm4sr.errors import InputError
from msm4sr.files import make_folder
from msm4sr.recommend.catalogue import ItemExists, UnknownItem

FILE = "items.sqlite"
FORMAT = 1
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
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT OR IGNORE INTO counters VALUES ('change', 0), ('reload', 0);
"""
TIMEOUT = 30  # seconds that a change waits for another process


@dataclass(frozen=True)
class Change:
    """The latest change of an item."""

    number: int  # ascending
    item_id: str
    item: Item | None  # with its features, and in place of its images their numbers; None: it was removed
    replaces: bool  # whether it was added in place of an item of the run
    encoded_by: str  # the name of the encoders of its features


class ItemStore:
    """The store in a folder; it is created if it does not exist. Thread-safe.

    Raises InputError if the file is damaged, of a later version, or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE
        self._lock, self._reading_lock = Lock(), Lock()
        try:
            make_folder(folder)
            self.file.touch()  # SQLite would make it 0644, whatever the umask is
            self._connection = self._connect()
            self._reading = self._connect()
            with self._transaction():
                (version,) = self._connection.execute("PRAGMA user_version").fetchone()
                if version > FORMAT:
                    known = f"(format {version}, not {FORMAT})"
                    raise InputError(f"{self.file}: made by a later version of msm4sr {known}")
                for statement in _SCHEMA.split(";"):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version = {FORMAT}")
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"{self.file}: cannot be used ({error}); choose another --state, or remove it") from None

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.file, timeout=TIMEOUT, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def close(self) -> None:
        self._connection.close()
        self._reading.close()

    def version(self) -> int:
        """A number that differs whenever any process has changed the store. Costs microseconds."""
        return int(self._read("PRAGMA data_version")[0][0])

    def counter(self, name: str) -> int:
        """The number of the latest change ("change"), or of the requests to reload the run ("reload")."""
        return int(self._read("SELECT value FROM counters WHERE name = ?", name)[0][0])

    def changes(self, since: int = 0) -> list[Change]:
        """The changes after number `since`, in order; of each item only the latest."""
        rows = self._read(
            "SELECT change, item_id, removed, replaces, encoded_by, title, text, categories, images, features, words "
            "FROM items WHERE change > ? ORDER BY change",
            since,
        )
        return [
            Change(number, item_id, None if removed else self._item(item_id, *item), bool(replaces), encoded_by or "")
            for number, item_id, removed, replaces, encoded_by, *item in rows
        ]

    def _item(self, item_id: str, *row: Any) -> Item:
        title, text, categories, images, features, words = row
        names = tuple(str(number) for number in range(images))
        try:
            words, arrays = json.loads(words), load(features)
        except (SafetensorError, ValueError, TypeError) as error:
            raise InputError(f"{self.file}: the stored item {item_id!r} is damaged ({error})") from None
        return Item(item_id, title, text, tuple(json.loads(categories)), names, arrays, **words)

    def images(self, item_id: str) -> list[bytes]:
        """The image files that were uploaded for an item."""
        return [data for (data,) in self._read("SELECT data FROM images WHERE item_id = ? ORDER BY number", item_id)]

    def image(self, item_id: str, number: int) -> tuple[bytes, int] | None:
        """One of them, and the number of the change that added it; None if there is none."""
        query = "SELECT data, change FROM images JOIN items USING (item_id) WHERE item_id = ? AND number = ?"
        return next(iter(self._read(query, item_id, number)), None)

    def _read(self, query: str, *values: str | int) -> list[Any]:
        with self._reading_lock:
            return self._reading.execute(query, values).fetchall()

    def add(self, items: Sequence[Item], encoded_by: str, replaces: Sequence[bool]) -> None:
        """Store new items, images and features. Raises ItemExists if another process has added one of them."""
        with self._transaction():
            for item, in_place in zip(items, replaces, strict=True):
                if self._removed(item.item_id) is False:
                    raise ItemExists(f"item {item.item_id!r} is in the catalogue already; remove it first")
                row = (item.item_id, self._next("change"), in_place, item.title, item.text)
                content = (json.dumps(list(item.categories)), len(item.images), encoded_by, *_encoded(item))
                self._connection.execute(
                    "INSERT OR REPLACE INTO items VALUES (?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, *content)
                )
                self._connection.executemany(
                    "INSERT INTO images VALUES (?, ?, ?)",
                    [(item.item_id, number, data) for number, data in enumerate(item.images)],
                )

    def remove(self, item_id: str, of_the_run: bool) -> None:
        """Store that an item was removed. Raises UnknownItem if another process has removed it meanwhile."""
        with self._transaction():
            removed = self._removed(item_id)
            if removed or (removed is None and not of_the_run):
                raise UnknownItem(f"no item {item_id!r} in the catalogue")
            self._connection.execute("DELETE FROM images WHERE item_id = ?", (item_id,))
            self._connection.execute(
                "INSERT OR REPLACE INTO items (item_id, change, removed, replaces) VALUES (?, ?, 1, ?)",
                (item_id, self._next("change"), of_the_run),
            )

    def request_reload(self) -> None:
        """Make every process reload the run."""
        with self._transaction():
            self._next("reload")

    def replace_features(self, items: Sequence[Item], encoded_by: str) -> None:
        """Store features that other encoders made, in place of the old ones. This does not count as a change."""
        with self._transaction():
            self._connection.executemany(
                "UPDATE items SET features = ?, words = ?, encoded_by = ? WHERE item_id = ? AND removed = 0",
                [(*_encoded(item), encoded_by, item.item_id) for item in items],
            )

    def _removed(self, item_id: str) -> bool | None:
        """Whether the latest change of an item removed it; None for an item without changes."""
        row = self._connection.execute("SELECT removed FROM items WHERE item_id = ?", (item_id,)).fetchone()
        return None if row is None else bool(row[0])

    def _next(self, counter: str) -> int:
        (value,) = self._connection.execute(
            "UPDATE counters SET value = value + 1 WHERE name = ? RETURNING value", (counter,)
        ).fetchone()
        return int(value)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield


def _encoded(item: Item) -> tuple[bytes, str]:
    """The columns `features` and `words`."""
    return save(dict(item.features)), json.dumps({"sentences": item.sentences, "keywords": item.keywords})
