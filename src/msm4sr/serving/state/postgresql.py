"""The store in a PostgreSQL database, for services on several machines.

Each change locks the counter of changes first, so changes are committed in the order of their numbers. A commit
notifies the listening processes; without a notification they look once a second.
"""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from os import dup
from threading import Event, Timer, local
from typing import Any

import psycopg
from psycopg import Connection
from psycopg_pool import ConnectionPool

from msm4sr.data.items import Item
from msm4sr.errors import InputError, first_line
from msm4sr.postgresql import read_url
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

SCHEMA = "msm4sr"  # the default one
MARK = "msm4sr_state"  # the table with the format
# The statements that make each format from the one before.
MIGRATIONS = (
    f"""
    CREATE TABLE {{schema}}.{MARK} (format integer NOT NULL);
    INSERT INTO {{schema}}.{MARK} VALUES (0);
    CREATE TABLE {{schema}}.items (
        item_id text PRIMARY KEY, change bigint NOT NULL UNIQUE, removed boolean NOT NULL, replaces boolean NOT NULL,
        title text, text text, categories text, images integer, encoded_by text, features bytea, words text
    );
    CREATE TABLE {{schema}}.images (
        item_id text NOT NULL, number integer NOT NULL, data bytea NOT NULL, PRIMARY KEY (item_id, number)
    );
    CREATE TABLE {{schema}}.counters (name text PRIMARY KEY, value bigint NOT NULL);
    INSERT INTO {{schema}}.counters VALUES ('change', 0), ('reload', 0);
    """,
    """
    CREATE TABLE {schema}.availability (
        item_id text PRIMARY KEY, change bigint NOT NULL UNIQUE, available boolean NOT NULL
    );
    """,
)
# A process that stops in the middle of a change must not stop the others; a commit must be on disk.
_BEGIN = f"""
    BEGIN;
    SET LOCAL lock_timeout = '{TIMEOUT}s';
    SET LOCAL idle_in_transaction_session_timeout = '30s';
    SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off';
"""
DEADLINE = 10.0  # seconds for an answer of the database
AT_ONCE = 500  # rows of a query
CONNECTIONS = 4  # of a process, besides the one that listens


class _Transaction(local):
    """The connection of the transaction that a thread has begun."""

    connection: Connection | None = None


class PostgreSQLStore:
    """The store in a schema of a database, `postgresql://USER@HOST/DATABASE?schema=msm4sr`.

    The schema is created if it does not exist. Raises InputError if the URL is wrong, the database cannot be reached,
    or the schema is of a later version or of another program.
    """

    at_once = False

    def __init__(self, url: str) -> None:
        self.name, schema, settings = read_state_url(url)
        self._schema = f'"{schema}"'
        self._connect_with = {
            "connect_timeout": TIMEOUT,
            "tcp_user_timeout": int(1000 * DEADLINE),
            "keepalives_idle": 10,
            "fallback_application_name": "msm4sr",
            **settings,
            "client_encoding": "utf8",
            "autocommit": True,
            "prepare_threshold": None,  # some proxies of PostgreSQL know no prepared statements
        }
        self._away = ""  # why the database cannot be reached; empty if it can
        self._latest = 0  # the number of the latest change that was seen
        self._transaction = _Transaction()
        self._closed = Event()
        self._listener: Connection | None = None
        try:
            psycopg.connect(**self._connect_with).close()  # for the reason, which the pool only logs
        except psycopg.Error as error:
            raise self.unusable(first_line(error)) from None
        # A failed attempt is not repeated by the pool, whose pauses become minutes, but by the next change.
        self._pool = ConnectionPool(
            kwargs=self._connect_with, min_size=0, max_size=CONNECTIONS, timeout=TIMEOUT, reconnect_timeout=0, open=True
        )
        try:
            self._migrate()
        except BaseException as error:
            self.close()
            if isinstance(error, StoreUnavailable):
                raise self.unusable(error) from None
            raise

    def unusable(self, error: object) -> InputError:
        return InputError(
            f"--state {self.name}: cannot be used ({error}); check that the database runs, its address, user, password "
            "and rights, or choose another --state"
        )

    def close(self) -> None:
        self._closed.set()
        if self._listener is not None:
            self._listener.close()
        self._pool.close()

    def _migrate(self) -> None:
        """Make the tables in their latest format, unless they are there."""
        with self._pooled() as connection:
            _ask(connection, _BEGIN)
            _ask(connection, "SELECT pg_advisory_xact_lock(hashtext(%s))", self._schema)
            ((encoding,),) = _ask(connection, "SELECT current_setting('server_encoding')")
            if encoding != "UTF8":
                raise InputError(f"--state {self.name}: the database stores {encoding}; create it with ENCODING 'UTF8'")
            there = self._format(connection)
            if there > FORMAT:
                known = f"(format {there}, not {FORMAT})"
                raise InputError(f"--state {self.name}: made by a later version of msm4sr {known}")
            if there < FORMAT:
                for statements in MIGRATIONS[there:]:
                    _ask(connection, statements.format(schema=self._schema))
                _ask(connection, f"UPDATE {self._schema}.{MARK} SET format = %s", FORMAT)
                logger.info("%s: the tables are now of format %d", self.name, FORMAT)
            try:
                self._version(connection)
                _ask(connection, f"SELECT {', '.join(COLUMNS)} FROM {self._schema}.items LIMIT 0")
                _ask(connection, f"SELECT item_id, change, available FROM {self._schema}.availability LIMIT 0")
                _ask(connection, f"SELECT item_id, number, data FROM {self._schema}.images LIMIT 0")
            except psycopg.errors.InsufficientPrivilege:
                raise
            except (psycopg.ProgrammingError, StoreUnavailable) as error:
                raise self._foreign(first_line(error)) from None
            _ask(connection, "COMMIT")

    def _format(self, connection: Connection) -> int:
        """The format of the tables; 0 without any. Raises InputError for those of another program."""
        query = """
            SELECT relname FROM pg_namespace LEFT JOIN pg_class ON relnamespace = pg_namespace.oid AND relkind != 'i'
            WHERE nspname = %s ORDER BY relname
        """
        found = _ask(connection, query, self._schema.strip('"'))
        if not found:
            _ask(connection, f"CREATE SCHEMA {self._schema}")
        tables = [name for (name,) in found if name is not None]
        if not tables:
            return 0
        if MARK not in tables:
            raise self._foreign(f"it has {', '.join(tables[:5])}, and no {MARK}")
        try:
            ((number,),) = _ask(connection, f"SELECT format FROM {self._schema}.{MARK} WHERE format > 0")
            return int(number)
        except psycopg.errors.InsufficientPrivilege:
            raise
        except (psycopg.ProgrammingError, ValueError) as error:
            raise self._foreign(f"{MARK}: {first_line(error)}") from None

    def _foreign(self, reason: str) -> InputError:
        what = f"the schema {self._schema} is not one of msm4sr, or damaged ({reason})"
        return InputError(f"--state {self.name}: {what}; choose another with ?schema=NAME, or restore it from a copy")

    def wait(self, seconds: float) -> None:
        """Also finds out whether the database can be reached."""
        try:
            if self._listener is None:
                self._listener = psycopg.connect(**self._connect_with)
                _ask(self._listener, f"LISTEN {self._schema}")
                self._pool.check()  # drops the connections to a server that has ended
                self._away = ""
                return
            for _ in self._listener.notifies(timeout=seconds, stop_after=1):
                pass
        except psycopg.Error as error:
            self._away, listener = first_line(error), self._listener
            self._listener = None
            if listener is not None:
                listener.close()
            self._closed.wait(seconds)

    def version(self) -> int:
        before = self._latest  # before the query: meanwhile another thread may see a later change
        with self._pooled() as connection:
            version = self._version(connection)
        if version < before:
            lost = f"the latest change is {version}, it was {before}"
            raise StoreUnavailable(f"the database was replaced by an older copy ({lost}); restart the service")
        self._latest = max(self._latest, version)
        return version

    def _version(self, connection: Connection, counter: Counter = "change") -> int:
        for (value,) in _ask(connection, f"SELECT value FROM {self._schema}.counters WHERE name = %s", counter):
            return int(value)
        raise StoreUnavailable(f"the counter {counter!r} is missing")

    def counter(self, name: Counter) -> int:
        with self._pooled() as connection:
            return self._version(connection, name)

    def changes(self, since: int = 0) -> list[Change]:
        schema, rows = self._schema, list[Any]()
        stored = f"(SELECT count(*) FROM {schema}.images WHERE images.item_id = items.item_id)"
        select = f"SELECT {', '.join(COLUMNS)}, {stored} FROM {schema}.items"
        new = "WHERE change > %s AND change <= %s"
        with self._pooled() as connection:
            latest, last = self._version(connection), since  # what changes meanwhile is read the next time
            while found := _ask(connection, f"{select} {new} ORDER BY change LIMIT {AT_ONCE}", last, latest):
                rows += found
                last = found[-1][COLUMNS.index("change")]
            query = f"SELECT change, item_id, available FROM {schema}.availability {new}"
            return merged_changes(rows, _ask(connection, query, since, latest))

    def images(self, item_id: str) -> list[bytes]:
        query = f"SELECT data FROM {self._schema}.images WHERE item_id = %s ORDER BY number"
        with self._pooled() as connection:
            return [data for (data,) in _ask(connection, query, item_id)]

    def image(self, item_id: str, number: int) -> bytes | None:
        query = f"SELECT data FROM {self._schema}.images WHERE item_id = %s AND number = %s"
        with self._pooled() as connection:
            return next((data for (data,) in _ask(connection, query, item_id, number)), None)

    def add(self, items: Sequence[Item], encoded_by: str, replaces: Sequence[bool]) -> None:
        insert = f"INSERT INTO {self._schema}.items ({', '.join(COLUMNS)}) VALUES ({', '.join(['%s'] * len(COLUMNS))})"
        with self._changing() as connection:
            for item, in_place in zip(items, replaces, strict=True):
                check_absent(item.item_id, self._removed(connection, item.item_id))
                self._clear(connection, item.item_id)
                _ask(connection, insert, *row_of(item, self._next(connection), in_place, encoded_by))
                for number, data in enumerate(item.images):
                    _ask(
                        connection, f"INSERT INTO {self._schema}.images VALUES (%s, %s, %s)", item.item_id, number, data
                    )

    def remove(self, item_id: str, of_the_run: bool) -> None:
        insert = f"INSERT INTO {self._schema}.items (item_id, change, removed, replaces) VALUES (%s, %s, true, %s)"
        with self._changing() as connection:
            check_present(item_id, self._removed(connection, item_id), of_the_run)
            self._clear(connection, item_id)
            _ask(connection, insert, item_id, self._next(connection), of_the_run)

    def _removed(self, connection: Connection, item_id: str) -> bool | None:
        """Whether the latest change of an item removed it; None for an item without changes."""
        found = _ask(connection, f"SELECT removed FROM {self._schema}.items WHERE item_id = %s", item_id)
        return found[0][0] if found else None

    def _clear(self, connection: Connection, item_id: str) -> None:
        for table in ("items", "images", "availability"):
            _ask(connection, f"DELETE FROM {self._schema}.{table} WHERE item_id = %s", item_id)

    def set_available(self, item_ids: Sequence[str], available: bool) -> None:
        upsert = (
            f"INSERT INTO {self._schema}.availability VALUES (%s, %s, %s) ON CONFLICT (item_id) "
            "DO UPDATE SET change = excluded.change, available = excluded.available"
        )
        with self._changing() as connection:
            for item_id in item_ids:
                _ask(connection, upsert, item_id, self._next(connection), available)

    def request_reload(self) -> None:
        with self._changing() as connection:
            self._next(connection, "reload")

    def replace_features(self, changes: Sequence[Change], encoded_by: str) -> None:
        update = f"UPDATE {self._schema}.items SET features = %s, words = %s, encoded_by = %s"
        with self._changing() as connection:
            for one in changes:
                if one.item is not None:
                    values = (*encoded(one.item), encoded_by, one.item_id, one.number)
                    _ask(connection, f"{update} WHERE item_id = %s AND change = %s", *values)

    def _next(self, connection: Connection, counter: Counter = "change") -> int:
        query = f"UPDATE {self._schema}.counters SET value = value + 1 WHERE name = %s RETURNING value"
        return int(_ask(connection, query, counter)[0][0])

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self._changing():
            yield

    @contextmanager
    def _changing(self) -> Iterator[Connection]:
        """A connection in a transaction that has locked the counter of changes."""
        if self._transaction.connection is not None:
            with self._pooled() as connection:
                yield connection
            return
        with self._pooled() as connection:
            _ask(connection, _BEGIN)
            _ask(connection, f"SELECT value FROM {self._schema}.counters WHERE name = 'change' FOR UPDATE")
            self._transaction.connection = connection
            try:
                yield connection
            finally:
                self._transaction.connection = None
            _ask(connection, f"NOTIFY {self._schema}")
            try:
                _ask(connection, "COMMIT")
            except psycopg.Error as error:
                if not connection.broken:
                    raise
                unknown = "it is not known whether this change was stored: look at the items before you repeat it"
                raise StoreUnavailable(f"{first_line(error)}; {unknown}") from error

    @contextmanager
    def _pooled(self) -> Iterator[Connection]:
        """The connection of the transaction in progress, else one of the pool."""
        if self._away:
            raise StoreUnavailable(self._away)
        inside = self._transaction.connection
        try:
            with self._pool.connection() if inside is None else nullcontext(inside) as connection:
                yield connection
        except psycopg.Error as error:
            raise StoreUnavailable(first_line(error)) from error


def _ask(connection: Connection, query: str, *values: object) -> list[Any]:
    """The rows that a statement returns.

    A connection without an answer within `DEADLINE` seconds is cut, since a server can hang without ending it.
    """
    try:
        line = socket.socket(fileno=dup(connection.fileno()))
    except OSError as error:  # too many open files
        raise psycopg.OperationalError(str(error)) from error
    with line:
        timer = Timer(DEADLINE, _cut, [line])
        timer.daemon = True
        timer.start()
        try:
            cursor = connection.execute(query.encode(), values or None, binary=bool(values))
            return cursor.fetchall() if cursor.description else []
        finally:
            timer.cancel()


def _cut(line: socket.socket) -> None:
    with suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)


def read_state_url(url: str) -> tuple[str, str, dict[str, Any]]:
    """What to call the database in messages, the schema, and what to connect with. InputError for a wrong URL."""
    database = read_url(url, "--state", {"schema": SCHEMA})
    schema = database.own["schema"]
    name = database.name + f"?schema={schema}" * (schema != SCHEMA)
    if not re.fullmatch("[a-z_][a-z0-9_]{0,62}", schema) or schema == "public" or schema.startswith("pg_"):
        raise InputError(
            f"--state {name}: no schema can have this name; use letters, digits and _, such as ?schema=shop"
        )
    return name, schema, database.settings
