"""Where the trials of a study are stored: SQLite in its folder, a journal file there, or PostgreSQL.

SQLite is safe on one machine. Workers on other machines need the journal, which is safe on shared file systems, or
PostgreSQL.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from msm4sr.errors import InputError, first_line
from msm4sr.locks import locked

if TYPE_CHECKING:
    from psycopg import Connection

    from msm4sr.postgresql import Database

STUDY_LOCK = ".study.lock"
SQLITE, JOURNAL = "sqlite", "journal"
DATABASE, JOURNAL_FILE = "study.db", "study.journal"
POSTGRESQL = ("postgresql://", "postgres://")


def check_storage(storage: str) -> None:
    """Raise InputError for a storage that there is not, and for a database that does not answer."""
    if storage.startswith(POSTGRESQL):
        if find_spec("psycopg") is None:
            raise InputError("--storage: PostgreSQL needs psycopg: pip install 'msm4sr[postgres]'")
        _connect(storage).close()
    elif storage not in (SQLITE, JOURNAL):
        shown = re.sub("://.*", "://...", storage)  # without a password
        raise InputError(f"--storage {shown}: give {SQLITE}, {JOURNAL} or postgresql://USER:PASSWORD@HOST/DATABASE")


def study_file(storage: str, folder: Path) -> Path | None:
    """The file of the study in its folder; None for PostgreSQL."""
    return {SQLITE: folder / DATABASE, JOURNAL: folder / JOURNAL_FILE}.get(storage)


def study_name(storage: str, folder: Path) -> str:
    """The name of the study in its storage: a database may have those of many folders."""
    return str(folder.absolute()) if study_file(storage, folder) is None else "study"


def open_storage(storage: str, folder: Path) -> BaseStorage:
    """The storage of the study in `folder`, made if it is missing."""
    file = study_file(storage, folder.absolute())
    if file is None:
        settings = _read_url(storage).settings
        user, password, name = (settings.pop(key, None) for key in ("user", "password", "dbname"))
        url = URL.create("postgresql+psycopg", user, password, database=name, query=settings)
        return RDBStorage(url.render_as_string(hide_password=False), engine_kwargs={"pool_pre_ping": True})
    if storage == JOURNAL:
        return JournalStorage(JournalFileBackend(str(file)))
    file.touch()  # SQLite would make it 0644, whatever the umask is
    return RDBStorage(f"sqlite:///{file}", engine_kwargs={"connect_args": {"timeout": 60, "factory": _Durable}})


def _read_url(storage: str) -> Database:
    from msm4sr.postgresql import read_url  # needs psycopg

    return read_url(storage, "--storage")


def _connect(storage: str) -> Connection:
    """A connection to the database. Raises InputError if there is none."""
    import psycopg

    database = _read_url(storage)
    try:
        return psycopg.connect(**{"connect_timeout": 10, **database.settings}, autocommit=True)
    except psycopg.Error as error:
        raise InputError(
            f"--storage {database.name}: the database cannot be used ({first_line(error)}); correct its URL, or start "
            "it, and rerun the command"
        ) from None


@contextmanager
def locked_study(storage: str, folder: Path, refusal: str) -> Iterator[None]:
    """Lock a study during the block; one in a database for processes on other machines too.

    Raises InputError, with this message, if another process holds the lock.
    """
    with locked(folder / STUDY_LOCK, refusal):
        if study_file(storage, folder) is not None:
            yield
            return
        with _connect(storage) as connection:  # the lock ends with it
            lock = "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"
            if connection.execute(lock, [study_name(storage, folder)]).fetchone() != (True,):
                raise InputError(refusal)
            yield


class _Durable(sqlite3.Connection):
    """A connection whose commits survive a power cut; by default SQLite does not sync the folder of its journal."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.execute("PRAGMA synchronous = EXTRA")


@contextmanager
def usable(storage: str, folder: Path) -> Iterator[None]:
    """Raise errors of the storage as InputError; a file that did not exist, or was empty, is removed then."""
    file = study_file(storage, folder)
    is_new = file is not None and (not file.exists() or not file.stat().st_size)
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, json.JSONDecodeError) as error:
        if file is not None and is_new:
            file.unlink(missing_ok=True)
        cause = error.__cause__ or error
        why = first_line(getattr(cause, "orig", None) or cause)
        if file is None:
            raise InputError(
                f"--storage: the database cannot be used ({why}); start it, and rerun the command"
            ) from None
        raise InputError(
            f"{file}: cannot be used ({why}); make it writable, with space on its disk, and rerun the command; if it "
            "is damaged, restore it or choose another --out"
        ) from None
