"""The prepared folder: its columns, and the errors if they are wrong.

    folder/
      interactions.parquet   user_id str, item_id str, timestamp int64 (seconds) or position int32;
                             with both, position orders and distinguishes rows of one second
      items.parquet          item_id str, title str?, text str?, categories list[str]?,
                             image str? or list[str]?
      images/                the files that `image` names, relative to the folder

Both readers keep the row order of the file and never repair: a missing or unreadable file, no rows, a missing column, a
wrong type, a null or empty ID, a null or negative order, a repeated item is an `InputError` that names the file, the
column and the row (counted from 1). Only two things are converted: IDs that are integers become strings, and an empty
string or list in `title`, `text`, `categories` or `image` becomes null.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from msm4sr.digests import file_digest
from msm4sr.errors import InputError, excerpt, first_line
from msm4sr.registry import closest

INTERACTIONS = "interactions.parquet"
ITEMS = "items.parquet"
PROVENANCE = "provenance.json"
ITEM_COLUMNS: dict[str, pl.DataType] = {
    "item_id": pl.String(),
    "title": pl.String(),
    "text": pl.String(),
    "categories": pl.List(pl.String()),
    "image": pl.List(pl.String()),
}
ORDER_COLUMNS = {"timestamp": "int64, seconds since 1970", "position": "int32, 0, 1, 2 ... within the user"}
BLOCK = 1 << 18  # interactions that are checked at a time
END_OF_TIME = 253_402_300_800  # seconds: the year 10000
UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)  # what polars raises for a damaged file


def read_interactions(folder: Path) -> pl.DataFrame:
    """The interactions: `user_id` str, `item_id` str, `order` int64, in the row order of the file.

    `order` is `timestamp` if the file has that column, else `position`; with both it is their rank, `timestamp` first.
    Other columns are dropped. Raises InputError (see the module).
    """
    path, schema, order = _open_interactions(folder)
    both = order == "timestamp" and schema.get("position", pl.Null()).is_integer()
    names = list(ORDER_COLUMNS) if both else [order]
    frame = pl.concat(_checked_blocks(path, names))
    rank = pl.struct(names).rank("dense") if both else pl.col(order)
    return frame.select("user_id", "item_id", rank.cast(pl.Int64).alias("order"))


def check_interactions(folder: Path) -> list[str]:
    """The columns that order the interactions, the most important first. Raises InputError as `read_interactions`."""
    path, schema, order = _open_interactions(folder)
    both = order == "timestamp" and schema.get("position", pl.Null()).is_integer()
    names = list(ORDER_COLUMNS) if both else [order]
    for _ in _checked_blocks(path, names):
        pass
    return names


def _checked_blocks(path: Path, order: list[str]) -> Iterator[pl.DataFrame]:
    """The rows of the interactions in blocks: IDs as strings, the columns of the order as int64."""
    start = 0
    while len(frame := read_parquet(path, ["user_id", "item_id", *order], (start, BLOCK))) or not start:
        if frame.is_empty():
            raise InputError(f"{path}: no rows; at least one user with 3 interactions is needed")
        ids = [_ids(frame[column], path, start) for column in ("user_id", "item_id")]
        yield pl.DataFrame([*ids, *(_order(frame[name], path, start) for name in order)])
        start += len(frame)


def scan_interactions(folder: Path) -> pl.LazyFrame:
    """The interactions as a stream: `user_id`, `item_id` str, `timestamp` or `position`, and `rating` if it exists.

    For tables that do not fit in memory. Names and types of the columns are checked, values are not.
    """
    path, schema, order = _open_interactions(folder)
    for column in ("user_id", "item_id"):
        id_strings(pl.Series(column, [], schema[column]), path)
    _order(pl.Series(order, [], schema[order]), path)
    columns: list[str | pl.Expr] = [pl.col("user_id", "item_id").cast(pl.String), pl.col(order)]
    if "rating" in schema and schema["rating"].is_numeric():
        columns.append("rating")
    return pl.scan_parquet(path, glob=False, hive_partitioning=False).select(columns)


def read_items(folder: Path) -> pl.DataFrame:
    """The catalogue in file order: `item_id`, `title`, `text` (str), `categories`, `image` (list[str]).

    Every column exists, null if the file has no value or lacks the column. A single image becomes a list of one;
    paths stay as written, relative to the folder. Without an `items.parquet` (a data set of IDs only) the items are
    those of the interactions, by first appearance, without content. Raises InputError (see the module).
    """
    if folder.is_dir() and not (folder / ITEMS).exists():
        ids = read_interactions(folder)["item_id"].unique(maintain_order=True)
        return _complete(pl.DataFrame([ids]))
    path, schema = _open(folder, ITEMS, ["item_id"])
    frame = read_parquet(path, [column for column in ITEM_COLUMNS if column in schema])
    if frame.is_empty():
        raise InputError(f"{path}: no rows; delete the file to use the items of {INTERACTIONS} as the catalogue")
    ids = _ids(frame["item_id"], path)
    if (repeated := _first_row(~ids.is_first_distinct())) is not None:
        rows = f"rows {ids.to_list().index(ids[repeated]) + 1} and {repeated + 1}: both are {ids[repeated]!r}"
        raise InputError(f"{path}: column 'item_id', {rows}; an item has one row")
    content = [_content(frame[column], path) for column in frame.columns if column != "item_id"]
    return _complete(pl.DataFrame([ids, *content]))


def require_columns(path: Path, columns: Iterable[str], existing: Iterable[str], advice: str = "") -> None:
    """Raise InputError for the first missing column: it names the file, its columns and the closest name."""
    existing = list(existing)
    for column in columns:
        if column not in existing:
            hint = closest(column, existing)
            names = ", ".join(name if len(name) <= 60 else f"{name[:60]}..." for name in existing[:30])
            more = f" and {len(existing) - 30} more" if len(existing) > 30 else ""
            raise InputError(f"{path}: no column '{column}'; the file has: {names}{more}{hint}{advice}")


def refuse_duplicates(path: Path, names: Sequence[str]) -> None:
    """Raise InputError if two columns of a file have the same name, but for case and blanks."""
    plain = ["".join(name.split()).casefold() for name in names]
    for place, name in enumerate(plain):
        if name and (first := plain.index(name)) < place:
            both = "" if names[first] == names[place] else f" and {excerpt(names[place])}"
            raise InputError(
                f"{path}: columns {first + 1} and {place + 1} are both named {excerpt(names[first])}{both}; rename one"
            )


def id_strings(column: pl.Series, path: Path) -> pl.Series:
    """IDs as strings. Raises InputError for a type that is neither string nor integer: 7.0 and 7 would differ."""
    if not (column.dtype.is_integer() or column.dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null)):
        raise InputError(f"{path}: column '{column.name}' is {column.dtype}; an ID is a string or an integer")
    return column.cast(pl.String)


def scan_parquet(*paths: Path) -> pl.LazyFrame:
    """The table in Parquet files, in whose paths no character has a special meaning."""
    return pl.scan_parquet(list(paths), glob=False, hive_partitioning=False)


def read_parquet(
    path: Path, columns: Sequence[str] | None = None, rows: tuple[int, int | None] = (0, None)
) -> pl.DataFrame:
    """Some columns of a Parquet file in this order, or all; `rows`: the first, and how many (None: to the end).

    Raises InputError if the file cannot be read.
    """
    try:
        table = scan_parquet(path).slice(*rows)
        return (table if columns is None else table.select(columns)).collect()
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise what polars cannot write in the block, for example on a full disk, as an OSError that names the file."""
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise OSError(errno.EIO, f"cannot be written ({first_line(error)})", str(path)) from error


def file_record(path: Path) -> dict[str, Any]:
    """Name, size and sha256 of a file; without its folder, which differs by machine."""
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": file_digest(path)}


def result_record(folder: Path) -> dict[str, Any]:
    """Hashes of the content of a prepared folder: each table, all images together, and everything as `sha256`."""
    tables = [file_record(path) for path in sorted(folder.glob("*.parquet"))]
    names = sorted(entry.name for entry in os.scandir(folder / "images")) if (folder / "images").is_dir() else []
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name} {file_record(folder / 'images' / name)['sha256']}\n".encode())
    record = {"tables": tables, "images": {"files": len(names), "sha256": digest.hexdigest()}}
    return {**record, "sha256": hashlib.sha256(json.dumps(record).encode()).hexdigest()}


def changed_tables(folder: Path) -> list[Path]:
    """The tables of a prepared folder that differ from what `msm4sr prepare` wrote, if it wrote the folder."""
    try:
        tables = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))["result"]["tables"]
        return [folder / record["file"] for record in tables if file_record(folder / record["file"]) != record]
    except (OSError, InputError, ValueError, KeyError, TypeError):  # no provenance, or not one of this version
        return []


def _open_interactions(folder: Path) -> tuple[Path, pl.Schema, str]:
    """The file of the interactions, its columns, and the one that histories are ordered by."""
    path, schema = _open(folder, INTERACTIONS, ["user_id", "item_id"])
    refuse_duplicates(path, list(schema))  # DuckDB ignores case
    if reserved := next((name for name in schema if name.casefold() == "file_row_number"), None):
        raise InputError(f"{path}: column '{reserved}' has a reserved name; rename or drop it")
    order = next((column for column in ORDER_COLUMNS if column in schema), None)
    if order is None:
        missing = "no column 'timestamp' (seconds) nor 'position' (0, 1, 2 ... within the user)"
        raise InputError(f"{path}: {missing}; the file has: {', '.join(schema)}")
    return path, schema, order


def _open(folder: Path, name: str, required: list[str]) -> tuple[Path, pl.Schema]:
    """The path of a table, and its columns."""
    path, content = folder / name, f"a prepared folder holds {INTERACTIONS} and {ITEMS}"
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {problem}; {content}")
    if not path.is_file():
        raise InputError(f"{path}: no such file; {content} (`msm4sr prepare csv` makes one from CSV files)")
    try:
        schema = pl.scan_parquet(path, glob=False, hive_partitioning=False).collect_schema()
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    require_columns(path, required, schema)
    return path, schema


def _unreadable(path: Path, error: BaseException) -> InputError:
    return InputError(f"{path}: cannot be read as a parquet file ({first_line(error)})")


def _first_row(mask: pl.Series) -> int | None:
    """0-based index of the first true value, or None."""
    return mask.arg_max() if mask.any() else None


def _ids(column: pl.Series, path: Path, start: int = 0) -> pl.Series:
    """The column, from row `start` on, as strings; no ID may be null or empty."""
    ids = id_strings(column, path)
    for wrong, problem in ((ids.is_null(), "null"), (ids == "", "empty")):
        if (row := _first_row(wrong)) is not None:
            raise InputError(f"{path}: column '{column.name}', row {start + row + 1}: {problem}; every row needs an ID")
    return ids


def _order(column: pl.Series, path: Path, start: int = 0) -> pl.Series:
    """The column, from row `start` on, as int64; it must hold integers of 0 or more."""
    name, dtype = column.name, column.dtype
    if not (dtype.is_integer() or dtype == pl.Null):
        why = _why_not_integers(column)
        raise InputError(f"{path}: column '{name}' is {dtype}; it should be {ORDER_COLUMNS[name]}{why}")
    integers = column.cast(pl.Int64, strict=False)  # null for an unsigned number beyond int64
    if (row := _first_row(integers.is_null() | (integers < 0))) is not None:
        found = f"row {start + row + 1}: {'null' if column[row] is None else column[row]}"
        raise InputError(f"{path}: column '{name}', {found}; it should be 0 or more ({ORDER_COLUMNS[name]})")
    if name == "timestamp" and (row := _first_row(integers >= END_OF_TIME)) is not None:
        raise InputError(
            f"{path}: column '{name}', row {start + row + 1}: {column[row]} is after the year 9999; it should be "
            "seconds, not milliseconds or another unit"
        )
    return integers


def _why_not_integers(column: pl.Series) -> str:
    """For the message about a wrong type: the first row that is not an integer, or that every row is one."""
    if not (column.dtype.is_float() or column.dtype == pl.String):
        return ""
    numbers = column.cast(pl.Int64, strict=False)
    failed = numbers.is_null() | (column.dtype.is_float() & (column != numbers.cast(column.dtype)))
    if (row := _first_row(failed)) is None:
        return "; every row would convert, so cast the column and write the file again"
    return f"; the first row that does not convert is row {row + 1}: {column[row]!r}"


def _content(column: pl.Series, path: Path) -> pl.Series:
    """The column in its type of `ITEM_COLUMNS`, with null for what is empty."""
    name, dtype, wanted = column.name, column.dtype, ITEM_COLUMNS[column.name]
    if dtype in (pl.Categorical, pl.Enum):
        column, dtype = column.cast(pl.String), pl.String()
    if dtype == pl.Null:
        return column.cast(wanted)
    frame = pl.DataFrame([column])
    if dtype == pl.String and (wanted == pl.String or name == "image"):
        value = pl.concat_list(name) if name == "image" else pl.col(name)
        return frame.select(pl.when(pl.col(name) != "").then(value))[name]
    if dtype in (pl.List(pl.String), pl.List(pl.Null)) and wanted == pl.List(pl.String):
        named = pl.col(name).cast(wanted).list.eval(pl.element().filter(pl.element() != ""))
        return frame.select(pl.when(named.list.len() > 0).then(named).alias(name))[name]
    kind = {"image": "a string or a list of strings", "categories": "a list of strings"}.get(name, "a string")
    raise InputError(f"{path}: column '{name}' is {dtype}; it should be {kind} (or null)")


def _complete(frame: pl.DataFrame) -> pl.DataFrame:
    """All columns of `ITEM_COLUMNS` in their order, null where `frame` lacks them."""
    return pl.DataFrame({name: frame.get_column(name, default=None) for name in ITEM_COLUMNS}, ITEM_COLUMNS)
