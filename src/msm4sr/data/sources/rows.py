"""Lines of a text file, gzipped or not, parsed into rows; invalid ones are counted by kind, in bounded memory.

A file that is cut short or damaged inside its gzip stream counts as invalid altogether, because the number of missing
rows is unknown. The rows before the damage are used only if `max_invalid_fraction` is 1.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import polars as pl

from msm4sr.data.sources.report import PrepareReport
from msm4sr.errors import InputError

CHUNK = 1 << 20  # bytes that are read at a time
MAX_LINE = 4 << 20  # bytes: the longest lines of real metadata stay under 1 MiB
BLOCK = 50_000  # rows of a block
GZIP = b"\x1f\x8b"
MICROSECONDS = 10**6
END_OF_TIME = 253_402_300_800  # seconds: the year 10000; what lies beyond was written in another unit

INTERACTION_COLUMNS: dict[str, pl.DataType] = {
    "user_id": pl.String(),
    "item_id": pl.String(),
    "time": pl.Int64(),
    "rating": pl.Float32(),
}


class InvalidRow(Exception):
    """A line that is no row. The message says why, in words that fit many lines; rows are counted by it."""


class Kind(NamedTuple):
    """How many rows are invalid for one reason, and the first of them (counted from 1)."""

    rows: int
    first: int


class InvalidRows:
    """The invalid rows of one file, by kind.

    Attributes:
        rows: number of rows read, valid and invalid.
        kinds: reason to count.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.kinds: dict[str, Kind] = {}

    def add(self, kind: str, row: int) -> None:
        """Count one more."""
        count, first = self.kinds.get(kind, Kind(0, row))
        self.kinds[kind] = Kind(count + 1, first)

    def check(self, path: Path, max_fraction: float) -> None:
        """Raise InputError where more than `max_fraction` of the rows are invalid; it names the first of each kind."""
        invalid = sum(kind.rows for kind in self.kinds.values())
        if invalid > max_fraction * self.rows:
            kinds = "; ".join(f"{kind.rows:,} {name} (first: line {kind.first})" for name, kind in self.kinds.items())
            raise InputError(
                f"{path}: invalid rows: {invalid:,} of {self.rows:,} ({100 * invalid / self.rows:.3g} %), more than "
                f"--max-invalid-fraction {max_fraction:g} allows: {kinds}. Repair the file or raise the fraction."
            )


def read_blocks(
    path: Path,
    parse: Callable[[bytes], tuple[Any, ...]],
    columns: Mapping[str, pl.DataType],
    report: PrepareReport,
    table: Literal["interactions", "items"],
    header: bool = False,
) -> Iterator[pl.DataFrame]:
    """Blocks for `Source.read_interactions` or `read_items` from the lines of a file.

    Args:
        path: a text file, gzipped or not.
        parse: turns a line into the values of `columns`, or raises `InvalidRow`.
        columns: their types.
        report: counts the rows of `table`, and the invalid ones.
        table: what the rows are.
        header: whether the first line is one.

    Raises:
        InputError: see `read_rows`.
    """
    invalid = InvalidRows()
    for numbers, rows in read_rows(path, parse, invalid, report.rules.max_invalid_fraction, header):
        yield pl.DataFrame([numbers, *zip(*rows, strict=True)], {"row": pl.Int64(), **columns})
    setattr(report, f"{table}_read", invalid.rows)
    for name, kind in invalid.kinds.items():
        report.drop(f"{table}: {name}", kind.rows, f"{path.name}, line {kind.first}")


def read_rows(
    path: Path,
    parse: Callable[[bytes], tuple[Any, ...]],
    invalid: InvalidRows,
    max_fraction: float,
    header: bool = False,
) -> Iterator[tuple[list[int], list[tuple[Any, ...]]]]:
    """Blocks of rows with their line numbers (from 1); blank lines and the header are skipped.

    Raises:
        InputError: the file cannot be read, is cut short (unless `max_fraction` is 1), or has too many invalid rows.
    """
    numbers: list[int] = []
    rows: list[tuple[Any, ...]] = []
    for first, lines in _lines(path, invalid, max_fraction):
        for number, line in enumerate(lines, first):
            if (line is not None and not line.strip()) or (header and number == 1):
                continue
            invalid.rows += 1
            try:
                if line is None:
                    raise InvalidRow(f"lines over {MAX_LINE >> 20} MiB")
                rows.append(parse(line))
            except InvalidRow as error:
                invalid.add(str(error), number)
            else:
                numbers.append(number)
        if len(rows) >= BLOCK:
            yield numbers, rows
            numbers, rows = [], []
    invalid.check(path, max_fraction)
    if rows:
        yield numbers, rows


def read_header(path: Path) -> str:
    """The first line of a text file; an undecodable byte becomes a question mark."""
    for _, lines in _lines(path, InvalidRows(), 1.0):
        if lines:
            return (lines[0] or b"").decode("utf-8-sig", "replace").rstrip("\r\n")
    return ""


def microseconds(time: float, per_unit: int = MICROSECONDS, first: int = 0, end: int = END_OF_TIME) -> int:
    """A time as integer microseconds since 1970.

    Args:
        time: since 1970, in units of `per_unit` microseconds.
        per_unit: 1,000,000 for seconds, 1,000 for milliseconds.
        first: seconds since 1970 of the earliest possible time.
        end: seconds since 1970 after the latest possible time.

    Raises:
        InvalidRow: the time is impossible.
    """
    moment = time * per_unit
    if not first * MICROSECONDS <= moment < end * MICROSECONDS:
        raise InvalidRow("impossible dates")
    return round(moment)


def _lines(path: Path, invalid: InvalidRows, max_fraction: float) -> Iterator[tuple[int, list[bytes | None]]]:
    """The number of the first line and the lines of one chunk after the other; None for a line over `MAX_LINE`."""
    number, rest, skipping = 1, b"", False
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
        if max_fraction < 1:
            raise InputError(
                f"{path}: cut short or damaged in line {number} ({str(error) or type(error).__name__}). Get the file "
                "again, or use the rows before that line with --max-invalid-fraction 1."
            ) from error
        invalid.rows += 1
        invalid.add("end of a file that is cut short or damaged", number)
        return
    except OSError as error:
        raise InputError(f"{path}: {'no such file' if not path.exists() else error.strerror or error}") from error
    if skipping or rest:
        yield number, [None if skipping else rest]


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as raw:
        packed = raw.peek(2)[:2] == GZIP  # by content: browsers unpack a download and keep its name
        read = gzip.GzipFile(fileobj=raw).read1 if packed else raw.read1
        while chunk := read(CHUNK):
            yield chunk
