"""The table of users of a source, as `users.parquet` of the prepared folder."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from msm4sr.data.preparation.source import PrepareReport, Source
from msm4sr.data.preparation.table_files import read_table
from msm4sr.data.schema import INTERACTIONS, scan_parquet, writing
from msm4sr.data.user_table import USERS, check_users, parse_users
from msm4sr.errors import InputError


def read_user_table(source: Source) -> pl.DataFrame | None:
    """The table of users of a source, checked; None if it has none. Raises InputError as `check_users`."""
    if source.users is None:
        return None
    return parse_users(check_users(read_table(source.users), source.users, source.user_column))


def write_user_table(table: pl.DataFrame, source: Source, folder: Path, report: PrepareReport) -> None:
    """Write the rows of the users who are in the interactions of the folder, in the order of the table.

    Raises InputError if there is none: the IDs are others.
    """
    ids = scan_parquet(folder / INTERACTIONS).select("user_id").unique().collect(engine="streaming")["user_id"]
    kept = table.filter(pl.col("user_id").is_in(ids.implode()))
    if kept.is_empty():
        raise InputError(
            f"{source.users}: none of its users is in the interactions: it has {table['user_id'][0]!r}, they have "
            f"{ids.min()!r}; do both use the same IDs?"
        )
    with writing(folder / USERS):
        kept.write_parquet(folder / USERS)
    report.user_columns = [name for name in table.columns if name != "user_id"]
    report.users_described = len(kept)
    if len(kept) < len(ids):
        report.notes.append(f"{len(ids) - len(kept):,} of {len(ids):,} users have no row in the table of users")
