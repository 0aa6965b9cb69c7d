"""`users.parquet` of a prepared folder, which is optional: `user_id` and any columns that reports compare users by.

A column holds strings, booleans or numbers, or null where a value is not known. Users need not have a row.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from msm4sr.data.preparation.columns import stripped
from msm4sr.data.schema import id_strings, read_parquet, require_columns
from msm4sr.errors import InputError

USERS = "users.parquet"


def read_users(folder: Path) -> pl.DataFrame | None:
    """The table of users of a prepared folder: `user_id` str, then the other columns; None if there is none.

    Raises InputError, which names file, column and row, as `check_users`.
    """
    path = folder / USERS
    return check_users(read_parquet(path), path) if path.exists() else None


def check_users(table: pl.DataFrame, path: Path, user: str = "user_id") -> pl.DataFrame:
    """The table with `user_id` as strings and first; `user` is the name of that column in the file.

    Raises InputError for a missing column, an ID that is null, empty or repeated, or a column of another type.
    """
    require_columns(path, [user], table.columns)
    if table.is_empty():
        raise InputError(f"{path}: no rows; add the users, or omit the table")
    ids = stripped(id_strings(table[user], path)).rename("user_id")
    if ids.has_nulls():
        row = int(ids.is_null().arg_max() or 0) + 1
        raise InputError(f"{path}: column '{user}', row {row}: no ID; every user needs one")
    first = ids.is_first_distinct()
    if not first.all():
        row = int(first.arg_min() or 0)
        rows = f"rows {ids.index_of(ids[row]) + 1} and {row + 1}"  # type: ignore[operator]
        raise InputError(f"{path}: column '{user}', {rows}: both are {ids[row]!r}; a user has one row")
    columns = [_values(table[name], path) for name in table.columns if name not in (user, "user_id")]
    if not columns:
        raise InputError(f"{path}: only the column '{user}'; add columns to compare users by, or omit the table")
    return pl.DataFrame([ids, *columns])


def parse_users(table: pl.DataFrame) -> pl.DataFrame:
    """A table as read from text: a column of which every value is a number becomes one; empty values become null.

    Numbers with leading zeros are codes, which stay texts.
    """
    return table.with_columns(_parsed(table[name]) for name in table.columns if name != "user_id")


def _parsed(column: pl.Series) -> pl.Series:
    if column.dtype != pl.String:
        return column
    column = stripped(column)
    if column.str.contains(r"^0\d").any():
        return column
    for kind in (pl.Int64, pl.Float64):
        numbers = column.cast(kind, strict=False)
        if numbers.null_count() == column.null_count() and column.null_count() < len(column):
            return numbers.fill_nan(None)
    return column


def _values(column: pl.Series, path: Path) -> pl.Series:
    """The column as strings, booleans or numbers."""
    kind = column.dtype
    if kind in (pl.Categorical, pl.Enum, pl.Null):
        return column.cast(pl.String)
    if kind in (pl.String, pl.Boolean) or kind.is_integer():
        return column
    if kind.is_float():
        return column.fill_nan(None)
    raise InputError(f"{path}: column '{column.name}' is {kind}; it should hold strings, booleans or numbers")
