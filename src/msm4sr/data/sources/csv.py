"""From tables of your own (CSV, TSV, Parquet) and a folder of images to a prepared folder.

The suffix decides how a table is read: `.csv` (comma), `.tsv` and `.txt` (tab), each with `.gz` too, and
`.parquet`. Text files are UTF-8 with a header. White space around a value is taken off; an empty one is null.

What is an error (nothing is written then), and what is dropped and counted:

- A **broken row** (more or fewer fields than the header, quotation marks that do not pair) is an error that
  names the line: everything after it may have shifted.
- A **time** that cannot be read is an error that names the row, unless `max_invalid_fraction` allows for some. So is a
  rating, where ratings are filtered, always.
- A row without user or item ID, under `min_rating`, or with an item that ITEMS lacks is dropped and
  counted.
- Of items with the same ID the first is kept. Items that nobody took stay: content can recommend them.
- An image path that leaves the image folder (symbolic links followed) is an error; a file that is not there
  is counted, and the item is kept without it.

In messages, data rows count from 1, the header not included. What happens to the rows then: `pipeline`.
"""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from msm4sr.data.schema import missing_column
from msm4sr.data.sources.images import is_url
from msm4sr.data.sources.pipeline import END_OF_TIME, PrepareReport, Rules, Source, prepare
from msm4sr.errors import InputError

DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
MILLISECONDS_FROM = 1e11  # as seconds the year 5138, as milliseconds 1973

TABLE_RULES = Rules(unknown_items="drop", max_invalid_fraction=0)
"""Of a table of one's own a value that cannot be read means a wrong column or unit more often than a bad row."""


class CsvColumns(BaseModel):
    """Which column of the tables means what, and how its values are written.

    A column that is named here must exist. Of those that keep their default name, `user`, `item`, `time` and
    `item_id` must exist; `title`, `text`, `categories` and `image` are left out, and reported, where they do
    not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    user: str = "user_id"
    """Who, in the interactions."""
    item: str = "item_id"
    """What, in the interactions."""
    time: str | None = "timestamp"
    """When, in the interactions. None (or ""): the rows are in time order, and `position` is written."""
    time_unit: Literal["auto", "s", "ms", "iso"] = "auto"
    """Seconds or milliseconds since 1970, or ISO 8601 (without an offset it is UTC). "auto": dates, and
    texts that are no numbers, are "iso"; numbers are "ms" if their median is 1e11 or more, else "s"."""
    rating: str = "rating"
    """Rating in the interactions; read only with `min_rating`."""
    min_rating: float | None = None
    """Keep interactions with at least this rating; None keeps all."""
    item_id: str = "item_id"
    """ID in the items."""
    title: str | None = "title"
    text: tuple[str, ...] = ("text",)
    """One or several columns, joined by line breaks in this order."""
    categories: str | None = "categories"
    image: str | None = "image"
    """Path inside the image folder. Without it: the file `<item_id>.jpg` (jpeg, png, webp, gif) there."""
    separator: str = Field("|", min_length=1)
    """Stands between several categories, or several images, of one cell."""
    delimiter: str | None = Field(None, min_length=1, max_length=1)
    """Stands between the fields of a text file; None: what the suffix says."""

    @field_validator("time", "title", "categories", "image", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("text", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return ((value,) if value else ()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _rating_is_used(self) -> Self:
        if "rating" in self.model_fields_set and self.min_rating is None:
            raise ValueError("rating is read only with min_rating, which is not set")
        return self


def prepare_csv(
    interactions: Path,
    items: Path | None,
    images: Path | None,
    out: Path,
    columns: CsvColumns = CsvColumns(),
    rules: Rules = TABLE_RULES,
) -> PrepareReport:
    """Write the prepared folder `out` from a table of interactions, one of items, and a folder of images.

    Without `items` the catalogue is what the log mentions. The folder appears whole or not at all.

    Raises InputError: `out` exists and is not empty; a file or column is missing; everything that the
    module's docstring calls an error; nothing is left.
    """
    for path in filter(None, (interactions, items)):
        if not path.is_file():
            raise InputError(f"{path}: no such file")
    source = Source(
        format="tables",
        files=[interactions, *filter(None, [items])],
        interactions=lambda report: _read_interactions(interactions, columns, report),
        items=None if items is None else lambda report: _read_items(items, columns, images, report),
        settings=columns.model_dump(mode="json"),
        unit="data row",
    )
    if columns.min_rating is not None:
        rules = rules.model_copy(update={"min_rating": columns.min_rating})
    return prepare(source, out, rules, images)


# Interactions


def _read_interactions(path: Path, columns: CsvColumns, report: PrepareReport) -> Iterator[pl.DataFrame]:
    """One block, see `Source`; with `rating` where ratings are filtered."""
    table = read_table(path, columns.delimiter)
    report.interactions_read = len(table)
    for name in (columns.user, columns.item):
        _require(table, path, name)
    if columns.time is not None and columns.time not in table.columns:
        error = missing_column(path, columns.time, table.columns)
        raise InputError(f"{error}; if there is no time and the rows are in time order, set time to nothing")

    user, item = _ids(table[columns.user], path), _ids(table[columns.item], path)
    log = pl.DataFrame({"row": range(1, len(table) + 1), "user_id": user, "item_id": item})
    if columns.min_rating is not None:
        _require(table, path, columns.rating)
        log = log.with_columns(rating=_numbers(table[columns.rating], path, "rating"))
    for met, reason in (
        (user.is_not_null(), "interactions without a user ID"),
        (user.is_null() | item.is_not_null(), "interactions without an item ID"),
    ):
        _count_failed(met, reason, path, report)
    kept = (user.is_not_null() & item.is_not_null()).arg_true()
    log = log[kept]
    report.order = "the order of the rows in the file (no time column)"
    if columns.time is not None:
        log, unit = _with_time(log, table[columns.time][kept], path, columns, report)
        report.order = f"column '{columns.time}' ({unit})"
    yield log


def _count_failed(met: pl.Series, reason: str, path: Path, report: PrepareReport) -> None:
    failed = (~met).arg_true()
    if len(failed):
        report.drop(reason, len(failed), f"{path.name}, data row {failed[0] + 1}")


def _with_time(
    log: pl.DataFrame, column: pl.Series, path: Path, columns: CsvColumns, report: PrepareReport
) -> tuple[pl.DataFrame, str]:
    """`log` with `time`, int64 microseconds since 1970, and the unit in which the column was read."""
    column, unit = _stripped(column), columns.time_unit
    numbers = column.cast(pl.Float64, strict=False) if not column.dtype.is_temporal() else None
    if unit == "auto":
        unit = _guess_unit(column, numbers)
    if unit == "iso":
        seconds = _iso_seconds(column, path)
    elif numbers is None:
        raise InputError(f"{path}: column '{column.name}' holds dates ({column.dtype}); set time_unit to iso")
    else:
        seconds = numbers / (1000 if unit == "ms" else 1)
    wrong = seconds.is_null() | seconds.is_nan() | (seconds < 0) | (seconds >= END_OF_TIME)
    bad = wrong.arg_true()
    if len(bad) > report.rules.max_invalid_fraction * report.interactions_read:
        value, number = column[bad[0]], seconds[bad[0]]
        if value is None:
            problem = "no time"
        elif number is None or number != number:
            problem = f"{value!r} is no time"
        else:
            problem = f"{value!r} is {'before 1970' if number < 0 else 'after the year 9999'}"
        meant = {
            "s": "seconds since 1970",
            "ms": "milliseconds since 1970",
            "iso": "an ISO 8601 date or time",
        }[unit]
        where = f"column '{column.name}', data row {log['row'][bad[0]]}"
        raise InputError(f"{path}: {where}: {problem}; expected {meant} (time_unit {columns.time_unit})")
    if len(bad):
        report.drop("interactions whose time cannot be read", len(bad), f"{path.name}, data row {log['row'][bad[0]]}")
    timed = log.with_columns(time=(seconds * 1e6).round().cast(pl.Int64, strict=False))
    return timed.filter(~wrong), unit


def _guess_unit(column: pl.Series, numbers: pl.Series | None) -> Literal["s", "ms", "iso"]:
    """The rule of `CsvColumns.time_unit`; most values decide, so that one bad value does not."""
    if numbers is None or 2 * numbers.count() <= column.count():
        return "iso"
    return "ms" if np.nanmedian(numbers.drop_nulls().to_numpy()) >= MILLISECONDS_FROM else "s"


def _iso_seconds(column: pl.Series, path: Path) -> pl.Series:
    """Seconds since 1970 (float64) of dates, times or ISO 8601 texts; null where a text is none of them."""
    if column.dtype in (pl.Date, pl.Datetime):
        return column.dt.epoch("us") / 1e6
    if column.dtype != pl.String:
        raise InputError(f"{path}: column '{column.name}' is {column.dtype}; time_unit iso needs dates or texts")

    def seconds(text: str) -> float | None:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            return None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()

    texts = column.drop_nulls().unique()
    known = pl.DataFrame({"text": texts, "seconds": pl.Series([seconds(text) for text in texts], dtype=pl.Float64)})
    return pl.DataFrame({"text": column}).join(known, on="text", how="left", maintain_order="left")["seconds"]


def _numbers(column: pl.Series, path: Path, what: str) -> pl.Series:
    """The column as float64, null where it is empty."""
    column = _stripped(column)
    numbers = column.cast(pl.Float64, strict=False)
    bad = (column.is_not_null() & (numbers.is_null() | numbers.is_nan())).arg_true()
    if len(bad):
        where = f"column '{column.name}', data row {bad[0] + 1}"
        raise InputError(f"{path}: {where}: {column[bad[0]]!r} is no number, so no {what}")
    return numbers


# Items


def _read_items(path: Path, columns: CsvColumns, images: Path | None, report: PrepareReport) -> Iterator[pl.DataFrame]:
    """One block, see `Source`."""
    table = read_table(path, columns.delimiter)
    report.items_read = len(table)
    _require(table, path, columns.item_id)

    def wanted(field_name: str, names: tuple[str, ...]) -> list[str]:
        """Those of the columns that are there; one that was asked for must be."""
        for name in names:
            if name in table.columns:
                continue
            if field_name in columns.model_fields_set:
                raise missing_column(path, name, table.columns)
            report.notes.append(f"{path.name} has no column '{name}': items have no {field_name} from it")
        return [name for name in names if name in table.columns]

    ids = _ids(table[columns.item_id], path)
    content = [ids.alias("item_id")]
    for name in wanted("title", (columns.title,) if columns.title else ()):
        content.append(_text(table[name], path).alias("title"))
    if texts := wanted("text", columns.text):
        parts = pl.DataFrame([_text(table[name], path) for name in texts])
        joined = parts.select(text=pl.concat_str(pl.all(), separator="\n", ignore_nulls=True))["text"]
        content.append(_stripped(joined))
    for name in wanted("categories", (columns.categories,) if columns.categories else ()):
        content.append(_list(table[name], path, columns.separator).alias("categories"))
    for name in wanted("image", (columns.image,) if columns.image else ()):
        content.append(_list(table[name], path, columns.separator).alias("image"))
    if images is None and content[-1].name == "image" and not _has_url(content[-1]):
        if "image" in columns.model_fields_set:
            raise InputError(f"column '{columns.image}' holds images: name their folder (--images)")
        report.notes.append(f"column '{columns.image}' is not used: no folder of images was named (--images)")
    _count_failed(ids.is_not_null(), "items without an ID", path, report)
    frame = pl.DataFrame([pl.Series("row", range(1, len(table) + 1)), *content])
    yield frame.filter(ids.is_not_null())


def _has_url(images: pl.Series) -> bool:
    return any(is_url(name) for name in images.explode().drop_nulls())


def _require(table: pl.DataFrame, path: Path, name: str) -> None:
    if name not in table.columns:
        raise missing_column(path, name, table.columns)


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
    """As `_text`; a float is refused, since 7.0 and 7 would be two items."""
    if column.dtype.is_float():
        raise InputError(f"{path}: column '{column.name}' is {column.dtype}; an ID is a string or an integer")
    return _text(column, path)


def _list(column: pl.Series, path: Path, separator: str) -> pl.Series:
    """Lists of texts: the parts of a cell between separators, or a list column as it is; null where empty."""
    parts = column.cast(pl.List(pl.String)) if isinstance(column.dtype, pl.List) else None
    if parts is None:
        parts = _text(column, path).str.split(separator)
    stripped = parts.list.eval(pl.element().str.strip_chars()).list.eval(pl.element().filter(pl.element() != ""))
    return _null_if_empty(stripped)


def _null_if_empty(lists: pl.Series) -> pl.Series:
    frame = pl.DataFrame([lists])
    return frame.select(pl.when(pl.col(lists.name).list.len() > 0).then(pl.col(lists.name)))[lists.name]


# Tables


def read_table(path: Path, delimiter: str | None = None) -> pl.DataFrame:
    """The table; every value of a text file is a string, so that an ID keeps its zeros."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    suffix = path.with_suffix("").suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
    if suffix == ".parquet":
        try:
            return pl.read_parquet(path, glob=False, hive_partitioning=False)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
            raise InputError(f"{path}: cannot be read as a parquet file ({_first_line(error)})") from error
    if suffix not in DELIMITERS:
        raise InputError(f"{path}: unknown kind of file; expected .csv, .tsv, .txt (also with .gz) or .parquet")
    delimiter = delimiter or DELIMITERS[suffix]
    try:
        table = pl.read_csv(path, separator=delimiter, infer_schema=False, glob=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        problem = _broken_row(path, delimiter) or f"cannot be read as a text table ({_first_line(error)})"
        raise InputError(f"{path}: {problem}") from error
    # A row with too few fields is filled with nulls; only a table with nulls in its last column can have one.
    suspicious = bool(table.columns) and table[table.columns[-1]].null_count() > 0
    if suspicious and (broken := _broken_row(path, delimiter)):
        raise InputError(f"{path}: {broken}")
    return table


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _broken_row(path: Path, delimiter: str) -> str | None:
    """The first line of a text file that is no proper row, and why; None if all are."""
    apart = re.escape(delimiter)
    proper = re.compile(rf'(?:(?:"(?:[^"]|"")*"|[^"{apart}]*)(?:{apart}|$))*')
    header: list[str] | None = None
    try:
        for line, record in _records(path):
            if not record:
                continue
            if record.count('"') % 2:
                return f"line {line}: a quotation mark opens and none closes"
            if not proper.fullmatch(record):
                return f'line {line}: a quotation mark inside a value; quote the value and write "" for it'
            fields = next(csv.reader([record], delimiter=delimiter))
            header = header or fields
            if len(fields) != len(header):
                return f"line {line}: {len(fields)} fields where the header has {len(header)}"
    except UnicodeDecodeError:
        return "is not UTF-8 text; convert it first (for example `iconv -f latin1 -t utf8`)"
    except (OSError, EOFError) as error:
        return f"cannot be read ({_first_line(error)})"
    return None


def _records(path: Path) -> Iterator[tuple[int, str]]:
    """Rows of a text file with the number of their first line; quoted line breaks stay within their row."""
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig", newline="") as lines:
        start, parts, quotes = 1, list[str](), 0
        for number, line in enumerate(lines, start=1):
            parts.append(line)
            quotes += line.count('"')
            if quotes % 2 == 0:
                yield start, "".join(parts).rstrip("\r\n")
                start, parts, quotes = number + 1, [], 0
        if parts:
            yield start, "".join(parts).rstrip("\r\n")
