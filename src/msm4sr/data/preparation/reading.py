"""How files are read: `read_blocks` parses a text line by line, `read_table` reads a complete table.

Lines may be gzipped; invalid ones are counted by reason, in bounded memory. A file that is cut short or damaged inside
its gzip stream counts as completely invalid, because the number of missing rows is unknown. The rows before the damage
are used only if `max_invalid_fraction` is 1.

The suffix of a table decides how it is read: `.csv` (comma), `.tsv` and `.txt` (tab), each with `.gz` too, and
`.parquet`. Text files are UTF-8 with a header. A **broken row** (more or fewer fields than the header, quotation marks
that do not pair) is an error that names the line, because everything after it may have shifted.
"""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TextIO, cast

import polars as pl

from msm4sr.data.preparation.lists import LISTED, written_list
from msm4sr.data.preparation.source import Drop, PrepareReport
from msm4sr.data.schema import UNREADABLE, read_parquet
from msm4sr.errors import InputError, excerpt, first_line

CHUNK = 1 << 20  # bytes that are read at a time
MAX_LINE = 4 << 20  # bytes: the longest lines of real metadata stay under 1 MiB
BLOCK = 50_000  # rows of a block
DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
TIME_REASONS = {"impossible dates", "times that are no number", "times that are no ISO 8601 date"}
NO_UTF8 = "is not UTF-8 text; convert it first (for example `iconv -f latin1 -t utf8`, or `-f utf16`)"
CR_ONLY = "the lines end in CR alone; convert it first (`tr '\\r' '\\n'`)"
INTERACTION_COLUMNS = {"user_id": pl.String(), "item_id": pl.String(), "time": pl.Int64(), "rating": pl.Float32()}


class InvalidRow(Exception):
    """An invalid line. The message is the reason in general terms; rows are counted by it.

    `case` is the value of this row, and what may be meant.
    """

    def __init__(self, reason: str, case: str = "") -> None:
        super().__init__(reason)
        self.case = case


class InvalidRows:
    """The number of rows of a file, and for each reason the number of invalid rows and the first of them."""

    def __init__(self, path: Path, max_fraction: float) -> None:
        self.path, self.max_fraction = path, max_fraction
        self.rows = 0
        self.reasons: dict[str, Drop] = {}

    def add(self, error: InvalidRow, line: int) -> None:
        """Count an invalid row; lines count from 1."""
        case = f"line {line}" + (f": {error.case}" if error.case else "")
        self.reasons.setdefault(str(error), Drop(str(error), 0, case)).count += 1

    def check(self) -> None:
        """Raise InputError if more than the allowed fraction is invalid."""
        invalid = sum(drop.count for drop in self.reasons.values())
        if invalid > self.max_fraction * self.rows:
            reasons = "; ".join(
                f"{drop.count:,} {drop.reason} (first: {drop.example})" for drop in self.reasons.values()
            )
            raise InputError(
                f"{self.path}: invalid rows: {invalid:,} of {self.rows:,} ({100 * invalid / self.rows:.3g} %), more "
                f"than --max-invalid-fraction {self.max_fraction:g} allows: {reasons}. Repair the file or raise the "
                f"fraction{', or correct --time-unit' if {*self.reasons} & TIME_REASONS else ''}."
            )


def read_blocks(
    path: Path,
    parse: Callable[[bytes], tuple[Any, ...]],
    columns: Mapping[str, pl.DataType],
    report: PrepareReport,
    table: Literal["interactions", "items"],
    header: bool = False,
) -> Iterator[pl.DataFrame]:
    """Blocks for `Source.read_interactions` or `read_items` from the lines of a file; blank lines are skipped.

    `parse` turns a line into the values of `columns`, or raises `InvalidRow`. `report` counts all and invalid rows.
    Raises InputError where the file cannot be read, is cut short (unless all rows may be invalid), or has too many
    invalid rows.
    """
    invalid = InvalidRows(path, report.rules.max_invalid_fraction)
    schema = {"row": pl.Int64(), **columns}
    rows: list[tuple[Any, ...]] = []
    for first, lines in _lines(invalid):
        for number, line in enumerate(lines, first):
            if (line is not None and not line.strip()) or (header and number == 1):
                continue
            invalid.rows += 1
            try:
                if line is None:
                    raise InvalidRow(f"lines over {MAX_LINE >> 20} MiB")
                rows.append((number, *parse(line)))
            except InvalidRow as error:
                invalid.add(error, number)
        if len(rows) >= BLOCK:
            yield pl.DataFrame(list(zip(*rows, strict=True)), schema)
            rows = []
    invalid.check()
    if rows:
        yield pl.DataFrame(list(zip(*rows, strict=True)), schema)
    setattr(report, f"{table}_read", invalid.rows)
    for drop in invalid.reasons.values():
        report.drop(f"{table}: {drop.reason}", drop.count, f"{path.name}, {drop.example}")


def read_header(path: Path) -> str:
    """The first line of a text file; undecodable bytes become question marks. Raises InputError for UTF-16."""
    first = next((lines[0] for _, lines in _lines(InvalidRows(path, 1.0)) if lines), None) or b""
    header = first.decode("utf-8-sig", "replace").rstrip("\r\n")
    if "\0" in header:
        raise InputError(f"{path}: {NO_UTF8}")
    if "\r" in header:
        raise InputError(f"{path}: {CR_ONLY}")
    return header


def _lines(invalid: InvalidRows) -> Iterator[tuple[int, list[bytes | None]]]:
    """The number of the first line and the lines of one chunk after the other; None for a line over `MAX_LINE`."""
    path, number, rest, skipping = invalid.path, 1, b"", False
    try:
        for chunk in _chunks(path):
            *ended, rest = (chunk if skipping else rest + chunk).split(b"\n")
            lines: list[bytes | None] = [line if len(line) <= MAX_LINE else None for line in ended]
            if skipping and lines:
                lines[0], skipping = None, False
            if len(rest) > MAX_LINE:
                rest, skipping = b"", True
            yield number, lines
            number += len(lines)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        if invalid.max_fraction < 1:
            raise InputError(
                f"{path}: cut short or damaged in line {number} ({str(error) or type(error).__name__}). Get the file "
                "again, or use the rows before that line with --max-invalid-fraction 1."
            ) from error
        invalid.rows += 1
        invalid.add(InvalidRow("end of a file that is cut short or damaged"), number)
        return
    except OSError as error:
        raise InputError(f"{path}: {'no such file' if not path.exists() else error.strerror or error}") from error
    if skipping or rest:
        yield number, [None if skipping else rest]


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as raw:
        packed = raw.peek(2)[:2] == b"\x1f\x8b"  # gzip, by content: browsers unpack a download and keep its name
        yield from iter(partial((gzip.GzipFile(fileobj=raw) if packed else raw).read1, CHUNK), b"")


def read_table(path: Path, delimiter: str | None = None) -> pl.DataFrame:
    """Read a table; every value of a text file is a string, so that an ID keeps its leading zeros."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    suffix = path.with_suffix("").suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
    if suffix == ".parquet":
        table = read_parquet(path)
        refuse_duplicates(path, table.columns)
        return _with_plain_names(table)
    if suffix not in DELIMITERS:
        raise InputError(f"{path}: unknown kind of file; expected .csv, .tsv, .txt (also with .gz) or .parquet")
    delimiter = delimiter or DELIMITERS[suffix]
    _check_header(path, delimiter)
    try:
        table = pl.read_csv(path, separator=delimiter, infer_schema=False, glob=False)
    except UNREADABLE as error:
        problem = _broken_row(path, delimiter) or _bare_cr(path)
        problem = problem or f"cannot be read as a text table ({first_line(error)})"
        raise InputError(f"{path}: {problem}") from error
    # A row with too few fields is filled with nulls; only a table with nulls in its last column can have one.
    if table.width and table[:, -1].null_count() and (broken := _broken_row(path, delimiter)):
        raise InputError(f"{path}: {broken}")
    return _with_plain_names(table)


def _with_plain_names(table: pl.DataFrame) -> pl.DataFrame:
    return table.rename(lambda name: name.strip() or name)


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


def refuse_duplicates(path: Path, names: Sequence[str]) -> None:
    """Raise InputError if two columns of a file have the same name, but for case and blanks."""
    plain = ["".join(name.split()).casefold() for name in names]
    for place, name in enumerate(plain):
        if name and (first := plain.index(name)) < place:
            both = "" if names[first] == names[place] else f" and {excerpt(names[place])}"
            raise InputError(
                f"{path}: columns {first + 1} and {place + 1} are both named {excerpt(names[first])}{both}; rename one"
            )


def _check_header(path: Path, delimiter: str) -> None:
    """Raise InputError if two columns have the same name, or the lines are not split into columns."""
    try:
        with _text_file(path) as file:
            start = file.read(CHUNK)
            if "\r" in start and "\n" not in start:
                raise InputError(f"{path}: {CR_ONLY}")
        record = next((record for _, record in _records(path) if record), "")
        names = [name.strip() for name in next(csv.reader([record], delimiter=delimiter), [])]
    except csv.Error as error:
        raise InputError(f"{path}: the header cannot be split into columns: {excerpt(record)}") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {_undecodable(error)}") from error
    if record.lower().startswith("sep=") or (record.startswith("#") and (len(names) == 1 or " " in names[0])):
        raise InputError(f"{path}: line 1, {excerpt(record)}, is no header; remove the lines above the header")
    other = next((mark for mark in ";\t|," if mark in record and mark != delimiter), None)
    if len(names) == 1 and other:
        raise InputError(
            f"{path}: the header is one column, {excerpt(record)}; if {other!r} separates the columns, pass "
            f"--delimiter {other!r} (for both tables; convert one if they differ)"
        )
    refuse_duplicates(path, names)


def _broken_row(path: Path, delimiter: str) -> str | None:
    """The first line of a text file that is not a valid row, and why; None if all are valid."""
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
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        return _undecodable(error)
    return None


def _bare_cr(path: Path) -> str | None:
    """The first line that ends in CR alone."""
    with _text_file(path) as lines:
        number = next((number for number, line in enumerate(lines, start=1) if line.endswith("\r")), None)
    return None if number is None else f"line {number}: ends in CR alone; convert all (`tr '\\r' '\\n'`)"


def _undecodable(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return NO_UTF8
    return f"cannot be read ({first_line(error)})"


def _text_file(path: Path) -> TextIO:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    opened = gzip.open if packed else open
    return cast(TextIO, opened(path, "rt", encoding="utf-8-sig", newline=""))


def _records(path: Path) -> Iterator[tuple[int, str]]:
    """Rows of a text file with the number of their first line; quoted line breaks stay within their row."""
    with _text_file(path) as lines:
        start, parts, quotes = 1, list[str](), 0
        for number, line in enumerate(lines, start=1):
            parts.append(line)
            quotes += line.count('"')
            if quotes % 2 == 0:
                yield start, "".join(parts).rstrip("\r\n")
                start, parts, quotes = number + 1, [], 0
        if parts:
            yield start, "".join(parts).rstrip("\r\n")
