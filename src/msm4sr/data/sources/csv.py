"""From tables of your own (CSV, TSV, Parquet) and a folder of images to a prepared folder.

The suffix decides how a table is read: `.csv` (comma), `.tsv` and `.txt` (tab), each with `.gz` too, and
`.parquet`. Text files are UTF-8 with a header. White space around a value is taken off; an empty one is null.

What is an error (nothing is written then), and what is dropped and counted:

- A **broken row** (more or fewer fields than the header, quotation marks that do not pair) is an error that
  names the line: everything after it may have shifted.
- A **time** that cannot be read is an error that names the row; so is a rating, where ratings are filtered.
- A row without user or item ID, under `min_rating`, or with an item that ITEMS lacks is dropped and
  counted.
- Of items with the same ID the first is kept. Items that nobody took stay: content can recommend them.
- An image path that leaves the image folder (symbolic links followed) is an error; a file that is not there
  is counted, and the item is kept without it.

Rows are sorted by user (first appearance), time, order in the file. In messages, data rows count from 1, the
header not included.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from msm4sr.data.schema import INTERACTIONS, ITEMS, missing_column
from msm4sr.errors import InputError

DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif")
MILLISECONDS_FROM = 1e11  # as seconds the year 5138, as milliseconds 1973
END_OF_TIME = 253_402_300_800  # seconds: the year 10000; what lies beyond was written in another unit


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


@dataclass(frozen=True)
class Drop:
    """What was left out for one reason, with the first case."""

    reason: str
    count: int
    example: str


@dataclass
class PrepareReport:
    """What was read, kept and dropped; `prepare.json` of the folder holds the same."""

    out: Path
    interactions_read: int = 0
    interactions_kept: int = 0
    users: int = 0
    items_read: int | None = None
    """None without an ITEMS table: the items are those of the log."""
    items_kept: int = 0
    with_title: int = 0
    with_text: int = 0
    with_categories: int = 0
    with_image: int = 0
    order: str = ""
    """What the order of a history rests on."""
    dropped: list[Drop] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def drop(self, reason: str, count: int, example: str) -> None:
        if count:
            self.dropped.append(Drop(reason, count, example))

    def lines(self) -> list[str]:
        """The report, a line a fact, to be printed."""
        read = "the log's" if self.items_read is None else f"{self.items_read:,} read"
        kept = f"{self.interactions_kept:,} kept of {self.interactions_read:,}"
        return [
            f"interactions  {kept}, {self.users:,} users",
            f"order         {self.order}",
            f"items         {self.items_kept:,} kept ({read}): {self.with_title:,} with title, "
            f"{self.with_text:,} text, {self.with_categories:,} categories, {self.with_image:,} image",
            *(f"dropped       {drop.count:,} {drop.reason} (first: {drop.example})" for drop in self.dropped),
            *(f"note          {note}" for note in self.notes),
            f"written       {self.out}",
        ]


def prepare_csv(
    interactions: Path,
    items: Path | None,
    images: Path | None,
    out: Path,
    columns: CsvColumns = CsvColumns(),  # noqa: B008 (frozen)
) -> PrepareReport:
    """Write the prepared folder `out` from a table of interactions, one of items, and a folder of images.

    Without `items` the catalogue is what the log mentions. The folder appears whole or not at all.

    Raises InputError: `out` exists and is not empty; a file or column is missing; everything that the
    module's docstring calls an error; nothing is left.
    """
    out = out.resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: exists already; name a new or an empty folder")
    if images is not None and not images.is_dir():
        raise InputError(f"{images}: no such folder of images")
    report = PrepareReport(out)
    catalogue = None if items is None else _read_items(items, columns, report)
    log = _read_interactions(interactions, columns, catalogue, report)
    if catalogue is None:
        catalogue = pl.DataFrame([log["item_id"].unique(maintain_order=True)])
    sources = _find_images(catalogue, items, images, columns, report)
    _count(catalogue, sources, report)

    unfinished = out.parent / f".{out.name}.{secrets.token_hex(4)}.unfinished"
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made ({error})") from error
    try:
        log.write_parquet(unfinished / INTERACTIONS, compression="zstd")
        paths = _copy_images(catalogue["item_id"].to_list(), sources, unfinished)
        if items is not None or any(paths):
            image = pl.Series("image", [path or None for path in paths], dtype=pl.List(pl.String))
            catalogue.drop("image", strict=False).with_columns(image).write_parquet(
                unfinished / ITEMS, compression="zstd"
            )
        settings = columns.model_dump(mode="json")
        (unfinished / "prepare.json").write_text(
            json.dumps({**asdict(report), "out": str(out), "columns": settings}, indent=2, ensure_ascii=False) + "\n",
            encoding="utf-8",
        )
        if out.exists():
            out.rmdir()  # empty, or the rename would lose what came since
        unfinished.rename(out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return report


# Interactions

Condition = tuple[pl.Series, str, str | None]
"""Which rows meet it, the reason to report for those that do not, the column to show of the first of them."""


def _read_interactions(
    path: Path, columns: CsvColumns, catalogue: pl.DataFrame | None, report: PrepareReport
) -> pl.DataFrame:
    """`user_id`, `item_id`, `timestamp` or `position`: filtered; sorted by user, time, order in the file."""
    table = _read_table(path, columns)
    report.interactions_read = len(table)
    for name in (columns.user, columns.item):
        _require(table, path, name)
    if columns.time is not None and columns.time not in table.columns:
        error = missing_column(path, columns.time, table.columns)
        raise InputError(f"{error}; if there is no time and the rows are in time order, set time to nothing")

    user, item = _ids(table[columns.user], path), _ids(table[columns.item], path)
    frame = pl.DataFrame({"row": range(1, len(table) + 1), "user_id": user, "item_id": item})
    conditions: list[Condition] = [
        (user.is_not_null(), "interactions without a user ID", None),
        (item.is_not_null(), "interactions without an item ID", None),
    ]
    if columns.min_rating is not None:
        _require(table, path, columns.rating)
        rating = _numbers(table[columns.rating], path, "rating")
        low = f"interactions rated under {columns.min_rating:g}"
        conditions.append((rating.is_not_null(), "interactions without a rating", None))
        conditions.append((rating >= columns.min_rating, low, None))
    if catalogue is not None:
        known = item.is_in(catalogue["item_id"].implode())
        conditions.append((known, "interactions with an item that ITEMS lacks", "item_id"))
    kept = _keep(frame, path, report, conditions).arg_true()
    if kept.is_empty():
        reasons = "; ".join(f"{drop.count} {drop.reason}" for drop in report.dropped) or "the file has no rows"
        raise InputError(f"{path}: no interaction is left of {len(table)} ({reasons})")

    log = frame[kept]
    if columns.time is None:
        log = log.with_columns(time=pl.col("row"))
        report.order = "the order of the rows in the file (no time column)"
    else:
        log, unit = _with_time(log, table[columns.time][kept], path, columns)
        time = log["time"].to_numpy()
        first, last = (datetime.fromtimestamp(int(end) // 10**6, UTC) for end in (time.min(), time.max()))
        report.order = f"column '{columns.time}' ({unit}), from {first:%Y-%m-%d} to {last:%Y-%m-%d}"
    log = log.sort(pl.col("row").min().over("user_id"), "time", "row")
    report.interactions_kept = len(log)
    report.users = log["user_id"].n_unique()
    if columns.time is None:
        position = pl.int_range(pl.len(), dtype=pl.Int32).over("user_id").alias("position")
        return log.select("user_id", "item_id", position)
    return log.select("user_id", "item_id", (pl.col("time") // 10**6).alias("timestamp"))


def _keep(frame: pl.DataFrame, path: Path, report: PrepareReport, conditions: list[Condition]) -> pl.Series:
    """Which rows meet all conditions; each is counted for what it takes of what those before it left."""
    kept = pl.repeat(True, len(frame), eager=True, dtype=pl.Boolean)
    for met, reason, shown in conditions:
        met = met.fill_null(False)
        failed = (kept & ~met).arg_true()
        if len(failed):
            value = f": {frame[shown][failed[0]]!r}" if shown else ""
            report.drop(reason, len(failed), f"{path.name}, data row {failed[0] + 1}{value}")
        kept &= met
    return kept


def _with_time(log: pl.DataFrame, column: pl.Series, path: Path, columns: CsvColumns) -> tuple[pl.DataFrame, str]:
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
    bad = (seconds.is_null() | seconds.is_nan() | (seconds < 0) | (seconds >= END_OF_TIME)).arg_true()
    if len(bad):
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
    return log.with_columns(time=(seconds * 1e6).round().cast(pl.Int64)), unit


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


def _read_items(path: Path, columns: CsvColumns, report: PrepareReport) -> pl.DataFrame:
    """`item_id` and what there is of `title`, `text`, `categories`, `image` (list[str]), one row an item."""
    table = _read_table(path, columns)
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
    frame = pl.DataFrame(content)
    conditions: list[Condition] = [
        (ids.is_not_null(), "items without an ID", None),
        (ids.is_first_distinct(), "items with an ID that an earlier row has", "item_id"),
    ]
    frame = frame.filter(_keep(frame, path, report, conditions))
    if frame.is_empty():
        raise InputError(f"{path}: no item with an id in {len(table)} rows")
    return frame


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


# Images


def _find_images(
    catalogue: pl.DataFrame,
    items: Path | None,
    images: Path | None,
    columns: CsvColumns,
    report: PrepareReport,
) -> list[list[Path]]:
    """For each item the image files that exist, links resolved; what is missing is counted."""
    ids = catalogue["item_id"].to_list()
    if images is None:
        if "image" in catalogue.columns:
            if "image" in columns.model_fields_set:
                raise InputError(f"column '{columns.image}' holds images: name their folder (--images)")
            report.notes.append(f"column '{columns.image}' is not used: no folder of images was named (--images)")
        return [[] for _ in ids]
    root = Path(os.path.realpath(images))
    found: list[list[Path]] = []
    missing: list[str] = []
    if "image" in catalogue.columns:
        for item_id, names in zip(ids, catalogue["image"].to_list(), strict=True):
            paths = [(name, _inside(root, name, f"{items}: item {item_id!r}")) for name in names or []]
            found.append([path for _, path in paths if path is not None])
            missing += [f"item {item_id!r}: {name!r}" for name, path in paths if path is None]
        reason = "images that are not there, or are no " + ", ".join(IMAGE_SUFFIXES)
    else:
        # Looked up in a listing: an ID never becomes a path.
        listed = {(path.stem, path.suffix.lower()): path.name for path in sorted(root.iterdir(), reverse=True)}
        for item_id in ids:
            names = [listed[item_id, suffix] for suffix in IMAGE_SUFFIXES if (item_id, suffix) in listed]
            path = _inside(root, names[0], f"item {item_id!r}") if names else None
            found.append([] if path is None else [path])
            missing += [] if path else [f"item {item_id!r}"]
        reason = f"items without a file <{columns.item_id}>.jpg (or .jpeg, .png, .webp, .gif) in {images}"
    report.drop(reason, len(missing), missing[0] if missing else "")
    return found


def _inside(root: Path, name: str, where: str) -> Path | None:
    """The image file `name` in `root`, links resolved; None if there is none. InputError if it is outside."""
    if "\0" in name:
        return None
    path = Path(os.path.realpath(root / name))
    if not path.is_relative_to(root):
        raise InputError(f"{where}: image {name!r} lies outside {root}; give a path inside it")
    return path if path.suffix.lower() in IMAGE_SUFFIXES and os.path.isfile(path) else None


def _copy_images(ids: list[str], sources: list[list[Path]], folder: Path) -> list[list[str]]:
    """Copy under names that are safe on every file system; the paths relative to `folder`, per item."""
    used: set[str] = set()
    paths: list[list[str]] = []
    (folder / "images").mkdir()
    for item_id, files in zip(ids, sources, strict=True):
        names = [_safe_name(item_id, number, path.suffix.lower(), used) for number, path in enumerate(files)]
        for name, path in zip(names, files, strict=True):
            shutil.copyfile(path, folder / "images" / name)
        paths.append([f"images/{name}" for name in names])
    return paths


def _safe_name(item_id: str, number: int, suffix: str, used: set[str]) -> str:
    """The ID if it is plain and short, else what is plain of it and a hash; unique whatever the case."""
    stem = item_id
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}", item_id):
        digest = hashlib.sha256(item_id.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", item_id)[:40].strip("_") + f"-{digest}"
    name = f"{stem}-{number}{suffix}" if number else f"{stem}{suffix}"
    again = 1
    while name.lower() in used:
        again += 1
        name = f"{stem}-{number}-{again}{suffix}"
    used.add(name.lower())
    return name


def _count(catalogue: pl.DataFrame, sources: list[list[Path]], report: PrepareReport) -> None:
    report.items_kept = len(catalogue)
    for name in ("title", "text", "categories"):
        if name in catalogue.columns:
            setattr(report, f"with_{name}", catalogue[name].count())
    report.with_image = sum(bool(files) for files in sources)


# Tables


def _read_table(path: Path, columns: CsvColumns) -> pl.DataFrame:
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
    delimiter = columns.delimiter or DELIMITERS[suffix]
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
