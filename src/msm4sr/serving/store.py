"""The items that were added and removed while a run is served, in an SQLite file, so that they survive a restart.

The table has a row for each item that changed, with the number of its latest change. A committed change is on disk
(write-ahead log, synchronous FULL): it survives `kill -9` and a power cut. Several processes may use one store; each
reads the changes since the last one that it knows.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, RLock
from typing import Annotated, Any

from pydantic import BaseModel, Field, Json, StrictStr, ValidationError
from safetensors.numpy import load, save

from msm4sr.data.items import LONGEST_TEXT, LONGEST_TITLE, Item, check_item
from msm4sr.errors import InputError, first_line
from msm4sr.files import make_folder
from msm4sr.recommend.catalogue import ItemExists, UnknownItem

logger = logging.getLogger(__name__)

FILE = "items.sqlite"
FORMAT = 1
MAGIC = b"SQLite format 3\0"  # the start of the file
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
"""
_LATEST = "(SELECT value FROM counters WHERE name = 'change')"
# Damaged counters continue after the latest plausible change; a row with another number gets a new one.
_RENUMBER = """
DELETE FROM counters WHERE typeof(value) != 'integer' OR value NOT BETWEEN 0 AND 1 << 62;
INSERT OR IGNORE INTO counters VALUES ('change', 0), ('reload', 0);
UPDATE counters SET value = max(
    value, (SELECT CAST(coalesce(max(change), 0) AS INTEGER) FROM items WHERE change < 1 << 53)
) WHERE name = 'change';
UPDATE items SET change = number FROM (
    SELECT damaged.rowid AS place, value + row_number() OVER (ORDER BY change) AS number
    FROM items AS damaged JOIN counters ON name = 'change' WHERE change < 1 OR change > value
) WHERE items.rowid = place;
UPDATE counters SET value = (SELECT max(value, coalesce(max(change), 0)) FROM items) WHERE name = 'change';
"""
_IS_IMAGE = "typeof(data) = 'blob'"
_STORED = f"(SELECT count(*) FROM images WHERE images.item_id = items.item_id AND {_IS_IMAGE})"
MOST_IMAGES = 1000  # of an item
TIMEOUT = 5  # seconds that a change waits for another process


@dataclass(frozen=True)
class Change:
    """The latest change of an item."""

    number: int  # ascending
    item_id: str
    item: Item | None = None  # with its features, and in place of its images their numbers; None: removed or damaged
    removed: bool = False
    replaces: bool = False  # whether it was added in place of an item of the run
    encoded_by: str = ""  # the name of the encoders of its features
    damage: str = ""  # what is wrong with its row


class ItemStore:
    """The store in a folder; it is created if it does not exist. Thread-safe.

    Raises InputError if the file is damaged, of a later version, or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE
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
            self._files = self._identities()
        except (OSError, sqlite3.Error) as error:
            raise self.unusable(error) from None

    def unusable(self, error: object) -> InputError:
        """The message about a file that cannot be read or written."""
        return InputError(f"{self.file}: cannot be used ({error}); restore it from a copy, or choose another --state")

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
        for (value,) in self._read("SELECT value FROM counters WHERE name = ?", name):
            if isinstance(value, int):
                return value
        raise sqlite3.DatabaseError(f"the counter {name!r} is missing")

    def changes(self, since: int = 0) -> list[Change]:
        """The changes after number `since`, in order; of each item only the latest."""
        columns = ", ".join([*_COLUMNS, _STORED])
        query = f"SELECT {columns} FROM items WHERE change > ? AND change <= {_LATEST} ORDER BY change"
        return [_change(dict(zip(_Row.model_fields, row, strict=True))) for row in self._read(query, since)]

    def images(self, item_id: str) -> list[bytes]:
        """The image files that were uploaded for an item."""
        query = f"SELECT data FROM images WHERE item_id = ? AND {_IS_IMAGE} ORDER BY number"
        return [data for (data,) in self._read(query, item_id)]

    def image(self, item_id: str, number: int) -> tuple[bytes, int] | None:
        """One of them, and the number of the change that added it; None if there is none."""
        wanted = f"item_id = ? AND number = ? AND {_IS_IMAGE}"
        query = f"SELECT data, change FROM images JOIN items USING (item_id) WHERE {wanted}"
        return next(iter(self._read(query, item_id, number)), None)

    def _read(self, query: str, *values: str | int) -> list[Any]:
        with self._reading_lock:
            return self._reading.execute(query, values).fetchall()

    def add(self, items: Sequence[Item], encoded_by: str, replaces: Sequence[bool]) -> None:
        """Store new items, images and features. Raises ItemExists if another process has added one of them."""
        with self.transaction():
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
        with self.transaction():
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
        with self.transaction():
            self._next("reload")

    def replace_features(self, items: Sequence[Item], encoded_by: str) -> None:
        """Store features that other encoders made, in place of the old ones. This does not count as a change."""
        with self.transaction():
            self._connection.executemany(
                "UPDATE items SET features = ?, words = ?, encoded_by = ? WHERE item_id = ? AND removed = 0",
                [(*_encoded(item), encoded_by, item.item_id) for item in items],
            )

    def _removed(self, item_id: str) -> bool | None:
        """Whether the latest change of an item removed it; None for an item without changes."""
        row = self._connection.execute("SELECT removed FROM items WHERE item_id = ?", (item_id,)).fetchone()
        return None if row is None else row[0] == 1

    def _next(self, counter: str) -> int:
        (value,) = self._connection.execute(
            "UPDATE counters SET value = value + 1 WHERE name = ? RETURNING value", (counter,)
        ).fetchone()
        return int(value)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """No other thread or process changes the store in this block; it changes the store completely or not at all."""
        with self._lock:
            if self._connection.in_transaction:
                yield
                return
            self._check_file()
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                self._renumber()
                yield

    def _drop_without_id(self) -> None:
        """Delete the rows whose id is none, since no request can name them, and the images that belong to no row."""
        self._connection.create_function("is_id", 1, _is_id, deterministic=True)
        damaged = "typeof(item_id) != 'text' OR NOT is_id(CAST(item_id AS BLOB))"
        if dropped := self._connection.execute(f"DELETE FROM items WHERE {damaged}").rowcount:
            logger.warning("%s: %d damaged rows without a valid item id were removed", self.file, dropped)
        self._connection.execute("DELETE FROM images WHERE item_id NOT IN (SELECT item_id FROM items)")

    def _renumber(self) -> None:
        for statement in _RENUMBER.split(";"):
            self._connection.execute(statement)

    def _identities(self) -> list[tuple[int, int]]:
        """Of the file, and of the log with the latest changes."""
        stats = [os.stat(f"{self.file}{suffix}") for suffix in ("", "-wal", "-shm")]
        return [(stat.st_dev, stat.st_ino) for stat in stats]

    def _check_file(self) -> None:
        """Raise DatabaseError if the file was removed or overwritten: SQLite has it in memory and would still write."""
        try:
            same = self._identities() == self._files and os.pread(self._descriptor, len(MAGIC), 0) == MAGIC
        except OSError:
            same = False
        if not same:
            raise sqlite3.DatabaseError(f"{self.file} was removed or overwritten; restart the service")


def _is_id(data: bytes | None) -> bool:
    try:
        check_item(Item((data or b"").decode()))
    except (InputError, UnicodeDecodeError):
        return False
    return True


_Sentence = Annotated[str, Field(max_length=LONGEST_TEXT)]


class _Words(BaseModel):
    sentences: list[_Sentence] = Field(max_length=LONGEST_TEXT)
    keywords: list[list[Annotated[str, Field(max_length=LONGEST_TITLE)]]] = Field(max_length=MOST_IMAGES)


class _Row(BaseModel):
    """A row of the table, as this module writes it; an item that was removed has no content."""

    item_id: StrictStr
    change: int
    removed: bool
    replaces: bool
    encoded_by: StrictStr | None
    title: StrictStr | None
    text: StrictStr | None
    categories: Json[list[str]] | None
    images: int | None = Field(ge=0, le=MOST_IMAGES)
    features: bytes | None
    words: Json[_Words] | None
    stored: int  # images

    def item(self) -> Item:
        if self.features is None or self.words is None or self.images is None or self.categories is None:
            raise ValueError("content is missing")
        if self.images > self.stored:
            raise ValueError(f"{self.images - self.stored} of its {self.images} images are missing")
        names, arrays = tuple(map(str, range(self.images))), load(self.features)
        content = (self.title, self.text, tuple(self.categories), names, arrays)
        item = Item(self.item_id, *content, self.words.sentences, self.words.keywords)
        check_item(item)
        return item


_COLUMNS = [name for name in _Row.model_fields if name != "stored"]


def _change(columns: dict[str, Any]) -> Change:
    """The change that a row describes, with `damage` if the row is malformed."""
    try:
        row = _Row.model_validate(columns)
        item = None if row.removed else row.item()
        return Change(row.change, row.item_id, item, row.removed, row.replaces, row.encoded_by or "")
    except Exception as error:  # safetensors raises all kinds of errors on damaged data
        damage = first_line(error)
        if isinstance(error, ValidationError):
            damage = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
    number, item_id = columns["change"], str(columns["item_id"]).encode("utf-8", "backslashreplace").decode()
    return Change(number if isinstance(number, int) else 0, item_id, replaces=bool(columns["replaces"]), damage=damage)


def _encoded(item: Item) -> tuple[bytes, str]:
    """The columns `features` and `words`."""
    return save(dict(item.features)), json.dumps({"sentences": item.sentences, "keywords": item.keywords})
