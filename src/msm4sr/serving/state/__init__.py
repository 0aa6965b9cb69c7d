"""The items that were added and removed while a run is served, so that they survive a restart."""

from __future__ import annotations

from pathlib import Path

from msm4sr.errors import InputError
from msm4sr.serving.state.sqlite import SQLiteStore
from msm4sr.serving.state.store import StateStore

POSTGRESQL = ("postgresql://", "postgres://")


def open_store(folder: Path, database: str | None = None) -> StateStore:
    """The store in a PostgreSQL database with this URL; None: in an SQLite file in `folder`.

    Raises InputError if it cannot be used.
    """
    if database is None:
        return SQLiteStore(folder)
    try:
        from msm4sr.serving.state.postgresql import PostgreSQLStore
    except ImportError:
        raise InputError("--state: PostgreSQL needs the extra 'postgres': pip install 'msm4sr[postgres]'") from None
    return PostgreSQLStore(database)
