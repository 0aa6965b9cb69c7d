"""What was added to a run and removed from it while it was served, in an SQLite file, so that it survives a restart.

A row an item that has changed, with the number of its latest change. A change that is committed is on disk (write-ahead
log, synchronous FULL): it is there after `kill -9` and a power cut. Several processes may use one store; each asks for
the changes since the last one that it knows.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from safetensors import SafetensorError
from safetensors.numpy import load, save

from msm4sr.data.items import Item
from msm4sr.errors import InputError
from msm4sr.recommend.catalogue import EncodedItem, ItemExists, NewItem, UnknownItem

FILE = "items.sqlite"
FORMAT = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS items (
    item_id TEXT PRIMARY KEY,
    change INTEGER NOT NULL UNIQUE,
    removed INTEGER NOT NULL,
    replaces INTEGER NOT NULL,
    title TEXT, text TEXT, categories TEXT, pictures INTEGER,
    made_by TEXT, features BLOB, words TEXT
);
CREATE TABLE IF NOT EXISTS pictures (
    item_id TEXT NOT NULL, number INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (item_id, number)
);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT OR IGNORE INTO counters VALUES ('change', 0), ('reload', 0);
"""
PATIENCE = 30  # seconds that a change waits for another process


@dataclass(frozen=True)
class Change:
    """The latest that happened to an item: it was removed, or it was added as `item`.

    `replaces`: it was added in the place of an item of the run. `made_by` names what its features were made by.
    """

    number: int
    item_id: str
    item: EncodedItem | None
    replaces: bool
    made_by: str


class ItemStore:
    """The store in a folder; made if it is not there. Safe under threads.

    Raises InputError for a file that is damaged, of a later version, or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._connection = self._connect()
            self._watching = self._connect()
            with self._change():
                self._prepare()
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"{self.file}: cannot be used ({error}); name another --state, or remove it") from None
        self._lock, self._watch_lock = Lock(), Lock()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.file, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _prepare(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > FORMAT:
            raise InputError(f"{self.file}: made by a later version of msm4sr (format {version}, known is {FORMAT})")
        for statement in _SCHEMA.split(";"):
            self._connection.execute(statement)
        self._connection.execute(f"PRAGMA user_version = {FORMAT}")

    def close(self) -> None:
        self._connection.close()
        self._watching.close()

    # -- reading

    def version(self) -> int:
        """A number that is another one whenever any process has changed something. Costs microseconds."""
        with self._watch_lock:
            (version,) = self._watching.execute("PRAGMA data_version").fetchone()
        return int(version)

    def counter(self, name: str) -> int:
        """The number of the latest change ("change"), or how often a reload was asked for ("reload")."""
        with self._watch_lock:
            (value,) = self._watching.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()
        return int(value)

    def changes(self, since: int = 0) -> list[Change]:
        """What happened after change number `since`, in order; of each item only the latest."""
        with self._watch_lock:
            rows = self._watching.execute(
                "SELECT change, item_id, removed, replaces, title, text, categories, pictures, made_by, features, "
                "words FROM items WHERE change > ? ORDER BY change",
                (since,),
            ).fetchall()
        return [self._read(*row) for row in rows]

    def _read(
        self,
        number: int,
        item_id: str,
        removed: int,
        replaces: int,
        title: str | None,
        text: str | None,
        categories: str,
        pictures: int,
        made_by: str,
        features: bytes,
        words: str,
    ) -> Change:
        if removed:
            return Change(number, item_id, None, bool(replaces), "")
        try:
            encoded = Item(item_id, features=load(features), **json.loads(words))
        except (SafetensorError, ValueError, TypeError) as error:
            raise InputError(f"{self.file}: what is stored of item {item_id!r} is damaged ({error})") from None
        item = EncodedItem(item_id, title, text, tuple(json.loads(categories)), pictures, encoded)
        return Change(number, item_id, item, bool(replaces), made_by)

    def pictures(self, item_id: str) -> list[bytes]:
        """The files that were uploaded for an item."""
        with self._watch_lock:
            rows = self._watching.execute("SELECT data FROM pictures WHERE item_id = ? ORDER BY number", (item_id,))
            return [data for (data,) in rows]

    def picture(self, item_id: str, number: int) -> tuple[bytes, int] | None:
        """One of them, and the change that it came with; None if there is none."""
        with self._watch_lock:
            row = self._watching.execute(
                "SELECT data, change FROM pictures JOIN items USING (item_id) WHERE item_id = ? AND number = ?",
                (item_id, number),
            ).fetchone()
        return None if row is None else (row[0], int(row[1]))

    # -- changing

    def add(
        self, items: Sequence[NewItem], encoded: Sequence[EncodedItem], made_by: str, replaces: Sequence[bool]
    ) -> None:
        """Keep new items. Raises ItemExists for one that another process has added meanwhile."""
        with self._lock, self._change():
            for item, one, instead in zip(items, encoded, replaces, strict=True):
                if self._is_there(item.item_id):
                    raise ItemExists(f"item {item.item_id!r} is in the catalogue already; remove it first")
                words = {"sentences": one.encoded.sentences, "keywords": one.encoded.keywords}
                self._connection.execute(
                    "INSERT OR REPLACE INTO items VALUES (?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        item.item_id,
                        self._next("change"),
                        instead,
                        item.title,
                        item.text,
                        json.dumps(list(item.categories)),
                        len(item.pictures),
                        made_by,
                        save(dict(one.encoded.features)),
                        json.dumps(words),
                    ),
                )
                self._connection.executemany(
                    "INSERT INTO pictures VALUES (?, ?, ?)",
                    [(item.item_id, number, data) for number, data in enumerate(item.pictures)],
                )

    def remove(self, item_id: str, of_the_run: bool) -> None:
        """Keep that an item is gone. Raises UnknownItem where another process has removed it meanwhile."""
        with self._lock, self._change():
            row = self._connection.execute("SELECT removed FROM items WHERE item_id = ?", (item_id,)).fetchone()
            if (row is None and not of_the_run) or (row is not None and row[0]):
                raise UnknownItem(f"no item {item_id!r} in the catalogue")
            self._connection.execute("DELETE FROM pictures WHERE item_id = ?", (item_id,))
            self._connection.execute(
                "INSERT OR REPLACE INTO items (item_id, change, removed, replaces) VALUES (?, ?, 1, ?)",
                (item_id, self._next("change"), of_the_run),
            )

    def ask_for_reload(self) -> None:
        """Tell every process that the run is to be read again."""
        with self._lock, self._change():
            self._next("reload")

    def keep_features(self, items: Sequence[EncodedItem], made_by: str) -> None:
        """Put features that were made anew, by other encoders, in the place of the old ones. No change to the items."""
        with self._lock, self._change():
            for one in items:
                words = {"sentences": one.encoded.sentences, "keywords": one.encoded.keywords}
                self._connection.execute(
                    "UPDATE items SET features = ?, words = ?, made_by = ? WHERE item_id = ? AND removed = 0",
                    (save(dict(one.encoded.features)), json.dumps(words), made_by, one.item_id),
                )

    def _is_there(self, item_id: str) -> bool:
        row = self._connection.execute("SELECT removed FROM items WHERE item_id = ?", (item_id,)).fetchone()
        return row is not None and not row[0]

    def _next(self, counter: str) -> int:
        (value,) = self._connection.execute(
            "UPDATE counters SET value = value + 1 WHERE name = ? RETURNING value", (counter,)
        ).fetchone()
        return int(value)

    @contextmanager
    def _change(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")
