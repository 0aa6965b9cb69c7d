"""Lines of a text file, gzipped or not, parsed into rows; invalid ones are counted by reason, in bounded memory.

A file that is cut short or damaged inside its gzip stream counts as invalid altogether, because the number of missing
rows is unknown. The rows before the damage are used only if `max_invalid_fraction` is 1.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import polars as pl

from msm4sr.data.preparation.source import PrepareReport
from msm4sr.errors import InputError

CHUNK = 1 << 20  # bytes that are read at a time
MAX_LINE = 4 << 20  # bytes: the longest lines of real metadata stay under 1 MiB
BLOCK = 50_000  # rows of a block
GZIP = b"\x1f\x8b"
MICROSECONDS = 10**6
END_OF_TIME = 253_402_300_800  # seconds: the year 10000; what lies beyond was written in another unit

INTERACTION_COLUMNS = {"user_id": pl.String(), "item_id": pl.String(), "time": pl.Int64(), "rating": pl.Float32()}


class InvalidRow(Exception):
    """A line that is no row. The message is the reason, in words that fit many lines; rows are counted by it."""


class InvalidRows:
    """The number of rows of a file, and for each reason the number of invalid rows and the first of them."""

    def __init__(self, path: Path, max_fraction: float) -> None:
        self.path, self.max_fraction = path, max_fraction
        self.rows = 0
        self.reasons: dict[str, tuple[int, int]] = {}

    def add(self, reason: str, line: int) -> None:
        """Count an invalid row; lines count from 1."""
        count, first = self.reasons.get(reason, (0, line))
        self.reasons[reason] = (count + 1, first)

    def check(self) -> None:
        """Raise InputError where more than the allowed fraction is invalid; it names the first row of each reason."""
        invalid = sum(count for count, _ in self.reasons.values())
        if invalid > self.max_fraction * self.rows:
            found = f"{invalid:,} of {self.rows:,} ({100 * invalid / self.rows:.3g} %)"
            reasons = "; ".join(f"{count:,} {name} (first: line {row})" for name, (count, row) in self.reasons.items())
            raise InputError(
                f"{self.path}: invalid rows: {found}, more than --max-invalid-fraction {self.max_fraction:g} allows: "
                f"{reasons}. Repair the file or raise the fraction."
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

    Args:
        path: a text file, gzipped or not.
        parse: turns a line into the values of `columns`, or raises `InvalidRow`.
        columns: names and types.
        report: counts the rows of `table`, and the invalid ones.
        table: what the rows are.
        header: whether the first line is one.

    Raises:
        InputError: the file cannot be read, is cut short (unless all rows may be invalid), or has too many invalid
            rows.
    """
    invalid = InvalidRows(path, report.rules.max_invalid_fraction)
    schema = {"row": pl.Int64(), **columns}
    numbers: list[int] = []
    rows: list[tuple[Any, ...]] = []
    for first, lines in _lines(invalid):
        for number, line in enumerate(lines, first):
            if (line is not None and not line.strip()) or (header and number == 1):
                continue
            invalid.rows += 1
            try:
                if line is None:
                    raise InvalidRow(f"lines over {MAX_LINE >> 20} MiB")
                rows.append(parse(line))
                numbers.append(number)
            except InvalidRow as error:
                invalid.add(str(error), number)
        if len(rows) >= BLOCK:
            yield pl.DataFrame([numbers, *zip(*rows, strict=True)], schema)
            numbers, rows = [], []
    invalid.check()
    if rows:
        yield pl.DataFrame([numbers, *zip(*rows, strict=True)], schema)
    setattr(report, f"{table}_read", invalid.rows)
    for reason, (count, line_number) in invalid.reasons.items():
        report.drop(f"{table}: {reason}", count, f"{path.name}, line {line_number}")


def read_header(path: Path) -> str:
    """The first line of a text file; an undecodable byte becomes a question mark."""
    for _, lines in _lines(InvalidRows(path, 1.0)):
        if lines:
            return (lines[0] or b"").decode("utf-8-sig", "replace").rstrip("\r\n")
    return ""


def microseconds(time: float, per_unit: int = MICROSECONDS, first: int = 0, end: int = END_OF_TIME) -> int:
    """Microseconds since 1970 of a time in units of `per_unit`. Raises InvalidRow outside of `first` to `end` (s)."""
    moment = time * per_unit
    if not first * MICROSECONDS <= moment < end * MICROSECONDS:
        raise InvalidRow("impossible dates")
    return round(moment)


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
