"""Text files that are parsed line by line (see `tables` for tables).

Lines may be gzipped; invalid ones are counted by reason, in bounded memory. A file that is cut short or damaged inside
its gzip stream counts as completely invalid, because the number of missing rows is unknown. The rows before the damage
are used only if `max_invalid_fraction` is 1.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import polars as pl

from msm4sr.data.preparation.source import Drop, PrepareReport
from msm4sr.errors import InputError

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
        for chunk in read_chunks(path):
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


def read_chunks(path: Path) -> Iterator[bytes]:
    """The content of a file, decompressed if it is gzipped."""
    with path.open("rb") as raw:
        packed = raw.peek(2)[:2] == b"\x1f\x8b"  # gzip, by content: browsers unpack a download and keep its name
        yield from iter(partial((gzip.GzipFile(fileobj=raw) if packed else raw).read1, CHUNK), b"")
