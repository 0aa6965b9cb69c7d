"""Tables (CSV, TSV, Parquet; see `table_files`) and a folder of images.

White space around a value is removed; an empty value is null. What is an error (then nothing is written), and what is
dropped and counted:

- A **time** that cannot be read is an error that names the row, unless `max_invalid_fraction` allows for some. A rating
  that cannot be read is an error wherever ratings are filtered.
- A row without user or item ID, under `min_rating`, or with an item that ITEMS lacks is dropped and counted.
- Of items with the same ID the first is kept. Unseen items stay: content can recommend them.
- An image path that leaves the folder of images (symbolic links followed) is an error; a file that does not exist is
  counted, and the item is kept without it.

In messages, data rows count from 1, the header not included.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import polars as pl
from pydantic import Field, field_validator

from msm4sr.data.items import is_url
from msm4sr.data.preparation.reading import END_OF_TIME, MICROSECONDS, read_table
from msm4sr.data.preparation.source import SOURCES, PrepareReport, Rules, Source
from msm4sr.data.schema import id_strings, require_columns
from msm4sr.errors import InputError

MILLISECONDS_FROM = 1e11  # as seconds the year 5138, as milliseconds 1973
UNITS = {"s": "seconds since 1970", "ms": "milliseconds since 1970", "iso": "an ISO 8601 date or time"}


@SOURCES.register("parquet")
@SOURCES.register("csv")
class Tables(Source):
    """From tables (CSV, TSV or Parquet) and a folder of images to a prepared folder.

    A column that is named must exist; by default, title, text, categories and image may be missing.
    """

    format: ClassVar[str] = "tables"
    # A value that cannot be read means a wrong column or unit more often than an invalid row.
    rules: ClassVar[Rules] = Rules(unknown_items="drop", max_invalid_fraction=0)
    unit: ClassVar[str] = "data row"

    interactions: Path = Field(description="The interactions.")
    items: Path | None = Field(description="The items.")  # None: those of the interactions
    user: str = Field("user_id", description="User column of the interactions.")
    item: str = Field("item_id", description="Item column of the interactions.")
    time: str | None = Field("timestamp", description="Time column of the interactions; '' if the rows are in order.")
    time_unit: Literal["auto", "s", "ms", "iso"] = Field(
        "auto",
        description="s or ms since 1970, or iso (ISO 8601; UTC without an offset). auto: iso for dates and texts; for "
        "numbers ms if their median is 1e11 or more, else s.",
    )
    rating: str = Field("rating", description="Rating column of the interactions; used with --min-rating.")
    item_id: str = Field("item_id", description="ID column of the items.")
    title: str | None = Field("title", description="Title column of the items.")
    text: tuple[str, ...] = Field(("text",), description="Text column of the items; several are joined by line breaks.")
    categories: str | None = Field("categories", description="Categories column of the items.")
    image: str | None = Field(
        "image",
        description="Image column of the items: paths in --images, or URLs. Else: <item_id>.jpg (png, webp, gif).",
    )
    separator: str = Field("|", min_length=1, description="Between several categories or images.")
    delimiter: str | None = Field(
        None, min_length=1, max_length=1, description="Field separator, if not a comma (.tsv, .txt: a tab)."
    )

    @field_validator("time", "title", "categories", "image", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value

    @property
    def files(self) -> list[Path]:
        return [self.interactions, *([] if self.items is None else [self.items])]

    def read_interactions(self, report: PrepareReport) -> Iterator[pl.DataFrame]:
        path, lowest = self.interactions, report.rules.min_rating
        if "rating" in self.model_fields_set and lowest is None:
            raise InputError("rating is used only with min_rating (--min-rating), which is not set")
        table = read_table(path, self.delimiter)
        report.interactions_read = len(table)
        require_columns(path, (self.user, self.item, *([] if lowest is None else [self.rating])), table.columns)
        if self.time is not None:
            advice = "; if there is no time and the rows are in time order, set time to nothing (--time '')"
            require_columns(path, [self.time], table.columns, advice)
        columns = {"user_id": _ids(table[self.user], path), "item_id": _ids(table[self.item], path)}
        if lowest is not None:
            columns["rating"] = _ratings(table[self.rating], path)
        user, item = columns["user_id"].is_null(), columns["item_id"].is_null()
        _drop(user, "interactions without a user ID", path, report)
        _drop(~user & item, "interactions without an item ID", path, report)
        kept = (~user & ~item).arg_true()
        block = pl.DataFrame({"row": range(1, len(table) + 1), **columns})[kept]
        report.order = "the order of the rows in the file (no time column)"
        yield block if self.time is None else self._timed(block, _stripped(table[self.time][kept]), report)

    def _timed(self, block: pl.DataFrame, times: pl.Series, report: PrepareReport) -> pl.DataFrame:
        """The rows whose time can be read, with `time`, int64 microseconds since 1970; the others are counted."""
        path, unit = self.interactions, self.time_unit
        numbers = None if times.dtype.is_temporal() else times.cast(pl.Float64, strict=False)
        if unit == "auto":  # most values decide, so that one invalid value does not
            unit = "iso"
            if numbers is not None and 2 * numbers.count() > times.count():
                unit = "ms" if np.nanmedian(numbers.drop_nulls().to_numpy()) >= MILLISECONDS_FROM else "s"
        report.order = f"column '{self.time}' ({unit})"
        seconds = _seconds(times, numbers, unit, path)
        wrong = seconds.is_null() | seconds.is_nan() | (seconds < 0) | (seconds >= END_OF_TIME)
        if wrong.any():
            first = int(wrong.arg_max() or 0)
            row, value, second = block["row"][first], times[first], seconds[first]
            if wrong.sum() > report.rules.max_invalid_fraction * report.interactions_read:
                problem = "no time" if value is None else f"{value!r} is no time"
                if second is not None and second == second:
                    problem = f"{value!r} is {'before 1970' if second < 0 else 'after the year 9999'}"
                expected = f"expected {UNITS[unit]} (time_unit {self.time_unit})"
                raise InputError(f"{path}: column '{times.name}', data row {row}: {problem}; {expected}")
            report.drop("interactions whose time cannot be read", int(wrong.sum()), f"{path.name}, data row {row}")
        timed = block.with_columns(time=(seconds * MICROSECONDS).round().cast(pl.Int64, strict=False))
        return timed.filter(~wrong)

    def read_items(self, report: PrepareReport) -> Iterator[pl.DataFrame] | None:
        return None if self.items is None else self._read_items(self.items, report)

    def _read_items(self, path: Path, report: PrepareReport) -> Iterator[pl.DataFrame]:
        table = read_table(path, self.delimiter)
        report.items_read = len(table)
        require_columns(path, [self.item_id], table.columns)
        ids = _ids(table[self.item_id], path)
        _drop(ids.is_null(), "items without an ID", path, report)
        content = {"row": pl.Series(range(1, len(table) + 1)), "item_id": ids}
        for name in ("title", "text", "categories", "image"):
            if not (columns := self._content(name, path, table, report)):
                continue
            if name in ("title", "text"):
                parts = pl.DataFrame([_text(column, path) for column in columns])
                content[name] = _stripped(parts.select(pl.concat_str("*", separator="\n", ignore_nulls=True))[:, 0])
            else:
                content[name] = _list(columns[0], path, self.separator)
        if self.images is None and "image" in content and not any(map(is_url, content["image"].explode().drop_nulls())):
            if "image" in self.model_fields_set:
                raise InputError(f"column '{self.image}' holds images: name their folder (--images)")
            report.notes.append(f"column '{self.image}' is not used: no folder of images was named (--images)")
        yield pl.DataFrame(content).filter(ids.is_not_null())

    def _content(self, name: str, path: Path, table: pl.DataFrame, report: PrepareReport) -> list[pl.Series]:
        """The existing columns for `title`, `text`, ...; a column that the user named must exist."""
        chosen = getattr(self, name) or ()
        columns = [chosen] if isinstance(chosen, str) else chosen
        if name in self.model_fields_set:
            require_columns(path, columns, table.columns)
        for column in columns:
            if column not in table.columns:
                report.notes.append(f"{path.name} has no column '{column}': items have no {name} from it")
        return [table[column] for column in columns if column in table.columns]


def _drop(dropped: pl.Series, reason: str, path: Path, report: PrepareReport) -> None:
    report.drop(reason, int(dropped.sum()), f"{path.name}, data row {(dropped.arg_max() or 0) + 1}")


def _seconds(times: pl.Series, numbers: pl.Series | None, unit: str, path: Path) -> pl.Series:
    """Seconds since 1970 (float64), null if a value cannot be read."""
    where = f"{path}: column '{times.name}'"
    if unit != "iso":
        if numbers is None:
            raise InputError(f"{where} holds dates ({times.dtype}); set time_unit to iso")
        return numbers / (1000 if unit == "ms" else 1)
    if times.dtype in (pl.Date, pl.Datetime):
        return times.dt.epoch("us") / MICROSECONDS
    if times.dtype != pl.String:
        raise InputError(f"{where} is {times.dtype}; time_unit iso needs dates or texts")
    texts = times.drop_nulls().unique()
    return times.replace_strict(texts, [_from_iso(text) for text in texts], default=None, return_dtype=pl.Float64)


def _from_iso(text: str) -> float | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _ratings(column: pl.Series, path: Path) -> pl.Series:
    """The column as float64, null if it is empty."""
    column = _stripped(column)
    numbers = column.cast(pl.Float64, strict=False)
    invalid = column.is_not_null() & (numbers.is_null() | numbers.is_nan())
    if invalid.any():
        row = int(invalid.arg_max() or 0)
        found = f"column '{column.name}', data row {row + 1}: {column[row]!r}"
        raise InputError(f"{path}: {found} is no number, so no rating")
    return numbers


def _stripped(column: pl.Series) -> pl.Series:
    """Texts without the white space around them, null where nothing is left; other types as they are."""
    if column.dtype != pl.String:
        return column
    stripped = column.str.strip_chars()
    return stripped.set(stripped == "", None)


def _text(column: pl.Series, path: Path) -> pl.Series:
    """Texts, and numbers as texts; null where empty."""
    if column.dtype.is_nested() or column.dtype in (pl.Binary, pl.Object):
        raise InputError(f"{path}: column '{column.name}' is {column.dtype}; it should hold one text a row")
    return _stripped(column.cast(pl.String))


def _ids(column: pl.Series, path: Path) -> pl.Series:
    """Texts; null where empty."""
    return _stripped(id_strings(column, path))


def _list(column: pl.Series, path: Path, separator: str) -> pl.Series:
    """Lists of texts: the parts of a cell between separators, or a list column as it is; null where empty."""
    nested = isinstance(column.dtype, pl.List)
    parts = column.cast(pl.List(pl.String)) if nested else _text(column, path).str.split(separator)
    stripped = parts.list.eval(pl.element().str.strip_chars()).list.eval(pl.element().filter(pl.element() != ""))
    return stripped.to_frame("list").select(pl.when(pl.col("list").list.len() > 0).then("list")).to_series()
