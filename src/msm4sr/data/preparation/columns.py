"""Columns of tables as texts, or an error that names the file and the column."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from msm4sr.data.preparation.lists import LISTED, written_list
from msm4sr.errors import InputError


def stripped(column: pl.Series) -> pl.Series:
    """Texts without the white space around them, null where nothing is left; other types as they are."""
    if column.dtype != pl.String:
        return column
    stripped = column.str.strip_chars()
    return stripped.set(stripped == "", None)


def plain_column(column: pl.Series, path: Path, wanted: str) -> pl.Series:
    """The column. Raises InputError if its values are lists, objects or bytes."""
    if column.dtype.is_nested() or column.dtype in (pl.Binary, pl.Object, pl.Boolean, pl.Time, pl.Duration):
        raise InputError(f"{path}: column '{column.name}' is {column.dtype}; it should hold {wanted} a row")
    return column


def text_column(column: pl.Series, path: Path, separator: str = "\n") -> pl.Series:
    """Texts, and numbers as texts; the texts of a list that is written as a text are joined; null where empty."""
    texts = stripped(plain_column(column, path, "one text").cast(pl.String))
    listed = texts.str.contains(LISTED.pattern).fill_null(False)
    if listed.any():
        texts = stripped(
            texts.scatter(listed.arg_true(), [separator.join(written_list(text)) for text in texts.filter(listed)])
        )
    return texts
