"""Values that no model or service should see: malformed IDs, control characters, and `nan` for a missing value."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from msm4sr.data.items import CONTROL, LONGEST_ID
from msm4sr.data.preparation.source import Drop, PrepareReport, Source, TableName
from msm4sr.errors import InputError, excerpt

IN_TEXTS = f"[{CONTROL}]"
NOT_IN_IDS = r"[\x00-\x1f\x7f-\x9f\x{2028}\x{2029}]"  # line breaks and tabs too
MISSING_VALUES = ("nan", "NaN", "NaT", "<NA>", "None", "NULL", "null")  # what programs export for an empty cell


class Cleaner:
    """Cleans the blocks of a source, and counts what it finds."""

    def __init__(self, source: Source, report: PrepareReport) -> None:
        self._source, self._report = source, report
        self._found: dict[str, Drop] = {}

    def ids(self, block: pl.DataFrame, table: TableName) -> pl.DataFrame:
        """The rows whose IDs the service accepts."""
        for column in ("user_id", "item_id"):
            if column in block.columns:
                ids, name = block[column], column.replace("_id", " ID")
                self._count(block, ids.is_in(MISSING_VALUES), f"{table} have {name}s like 'nan' or 'NULL'", table, ids)
                malformed = ids.str.contains(NOT_IN_IDS) | (ids.str.len_chars() > LONGEST_ID)
                if malformed.any():
                    example = self._example(block, malformed, table, ids)
                    self._report.drop_invalid(table, self._malformed(table, name), int(malformed.sum()), example)
                    block = block.filter(~malformed)
        return block

    def texts(self, block: pl.DataFrame) -> pl.DataFrame:
        """The block with blanks for control characters, and null for what means a missing value."""
        for column in [name for name in ("title", "text", "categories") if name in block.columns]:
            lists, value = column == "categories", pl.element() if column == "categories" else pl.col(column)
            wrong = {
                f"values of {column} have control characters, which become blanks": value.str.contains(IN_TEXTS),
                f"values of {column} are 'nan', 'NULL' or alike, and count as empty": value.is_in(MISSING_VALUES),
            }
            for what, condition in wrong.items():
                found = pl.col(column).list.eval(condition).list.any() if lists else condition
                self._count(block, block.select(found).to_series().fill_null(False), what, "items", block[column])
            cleaned = value.str.replace_all(IN_TEXTS, " ").str.strip_chars()
            empty = (cleaned == "") | cleaned.is_in(MISSING_VALUES)
            if lists:
                kept = pl.col(column).list.eval(cleaned.filter(~empty))
                block = block.with_columns(pl.when(kept.list.len() > 0).then(kept).alias(column))
            else:
                block = block.with_columns(pl.when(~empty).then(cleaned).alias(column))
        return block

    def check(self, table: TableName, path: Path) -> None:
        """Add the notes. Raises InputError if IDs are malformed and more rows invalid than allowed."""
        self._report.notes += [f"{drop.count:,} {drop.reason} (first: {drop.example})" for drop in self._found.values()]
        self._found.clear()
        reasons = [self._malformed(table, name) for name in ("user ID", "item ID")]
        wrong = [drop for drop in self._report.dropped if drop.reason in reasons]
        if wrong and self._report.too_many_invalid(table):
            raise InputError(
                f"{path}: {wrong[0].count:,} {wrong[0].reason} (first: {wrong[0].example}); correct them, or drop such "
                "rows with --max-invalid-fraction"
            )

    @staticmethod
    def _malformed(table: str, name: str) -> str:
        return f"{table} whose {name} has a control character or over {LONGEST_ID} characters"

    def _count(self, block: pl.DataFrame, found: pl.Series, what: str, table: TableName, values: pl.Series) -> None:
        if found.any():
            case = self._found.setdefault(what, Drop(what, 0, self._example(block, found, table, values)))
            case.count += int(found.sum())

    def _example(self, block: pl.DataFrame, found: pl.Series, table: TableName, values: pl.Series) -> str:
        first = int(found.arg_max() or 0)
        value = values[first].to_list() if values.dtype == pl.List else values[first]
        return f"{self._source.place(table, block['row'][first])}: {excerpt(value)}"
