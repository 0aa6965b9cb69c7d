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
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import SQLAlchemyError

from msm4sr.errors import InputError, first_line

SQLITE, JOURNAL = "sqlite", "journal"
DATABASE, JOURNAL_FILE = "study.db", "study.journal"
POSTGRESQL = ("postgresql://", "postgres://")


def check_storage(storage: str) -> None:
    """Raise InputError for a storage that there is not."""
    if storage.startswith(POSTGRESQL):
        if find_spec("psycopg") is None:
            raise InputError("--storage: PostgreSQL needs psycopg: pip install 'msm4sr[postgres]'")
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
        _, _, rest = storage.partition("://")
        return RDBStorage(f"postgresql+psycopg://{rest}", engine_kwargs={"pool_pre_ping": True})
    if storage == JOURNAL:
        return JournalStorage(JournalFileBackend(str(file)))
    file.touch()  # SQLite would make it 0644, whatever the umask is
    return RDBStorage(f"sqlite:///{file}", engine_kwargs={"connect_args": {"timeout": 60, "factory": _Durable}})


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
                f"--storage: the database cannot be used ({why}); correct its URL, or start it, and rerun the command"
            ) from None
        raise InputError(
            f"{file}: cannot be used ({why}); make it writable, with space on its disk, and rerun the command; if it "
            "is damaged, restore it or choose another --out"
        ) from None
