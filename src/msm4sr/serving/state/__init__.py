"""The items that were added and removed while a run is served, so that they survive a restart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from msm4sr.errors import InputError
from msm4sr.registry import Registry
from msm4sr.serving.state.sqlite import SQLiteStore
from msm4sr.serving.state.store import StateStore

STORES = Registry[Callable[[str], StateStore]]("state store", "msm4sr.stores")
"""From the scheme of a URL to a function that opens the store of that URL. It raises InputError if it cannot."""


def open_store(folder: Path, database: str | None = None) -> StateStore:
    """The store in the database with this URL, whose scheme is in `STORES`; None: in an SQLite file in `folder`.

    Raises InputError if it cannot be used.
    """
    if database is None:
        return SQLiteStore(folder)
    return STORES.find(database.partition("://")[0], "--state")(database)


@STORES.register("postgres")
@STORES.register("postgresql")
def _open_postgresql(url: str) -> StateStore:
    try:
        from msm4sr.serving.state.postgresql import PostgreSQLStore
    except ImportError:
        raise InputError("--state: PostgreSQL needs the extra 'postgres': pip install 'msm4sr[postgres]'") from None
    return PostgreSQLStore(url)


def default_state(run: Path) -> Path:
    """RUN.state beside the run, so that a link to a newer run keeps the added items."""
    absolute = run.absolute()
    return absolute.with_name(absolute.name + ".state")


def state_of(state: str | None, run: Path) -> dict[str, Path | str]:
    """The settings `state` and `database` of an option --state. Raises InputError for the URL of something else."""
    if state is None:
        return {"state": default_state(run)}
    kind, colon, rest = state.partition(":")
    if rest.startswith("//") and kind in STORES:
        return {"state": default_state(run), "database": state}
    if rest.startswith("//") or (colon and kind in ("postgresql", "postgres")):
        raise InputError(f"--state {kind}:...: give a folder, or postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    return {"state": Path(state)}
