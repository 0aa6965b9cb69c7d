"""Text files that are parsed line by line (see `tables` for tables).

Lines may be gzipped; invalid ones are counted by reason, in bounded memory. A file that is cut short or damaged inside
its gzip stream counts as completely invalid, because the number of missing rows is unknown. The rows before the damage
are used only if `max_invalid_fraction` is 1.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from msm4sr.data.preparation.source import Drop, PrepareReport, TableName
from msm4sr.errors import InputError

CHUNK = 1 << 18  # bytes that are read at a time
TEXT = 4 << 20  # bytes that are parsed at a time
FEW_LINES = 32  # that are parsed line by line if one is invalid
MAX_LINE = 4 << 20  # bytes: the longest lines of real metadata stay under 1 MiB
BLOCK = 50_000  # rows of a block
DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
TIME_REASONS = {"impossible dates", "times that are no number", "times that are no ISO 8601 date"}
NO_UTF8 = "is not UTF-8 text; convert it first (for example `iconv -f latin1 -t utf8`, or `-f utf16`)"
CR_ONLY = "the lines end in CR alone; convert it first (`tr '\\r' '\\n'`)"
INTERACTION_COLUMNS = {"user_id": pl.String(), "item_id": pl.String(), "time": pl.Int64(), "rating": pl.Float32()}

Lines = tuple[int, list[bytes | None]]  # the number of the first line; None for a line that is too long


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


Native = Callable[[bytes, int], pl.DataFrame | None]
"""Parses many lines (and their number) at once, to the columns of a block; None unless each row is surely valid."""


def read_blocks(
    path: Path,
    parse: Callable[[bytes], tuple[Any, ...]],
    columns: Mapping[str, pl.DataType],
    report: PrepareReport,
    table: TableName,
    header: bool = False,
    native: Native | None = None,
) -> Iterator[pl.DataFrame]:
    """Blocks for `Source.read_interactions` or `read_items` from the lines of a file; blank lines are skipped.

    `parse` turns a line into the values of `columns`, or raises `InvalidRow`; `native` does the same for many valid
    lines at once, so that only what it refuses is parsed line by line. `report` counts all and invalid rows. Raises
    InputError where the file cannot be read, is cut short (unless all rows may be invalid), or has too many invalid
    rows.
    """
    invalid = InvalidRows(path, report.rules.max_invalid_fraction)
    parser = _Parser(parse, columns, native, invalid)
    found, rows = list[pl.DataFrame](), 0
    for first, lines in _ahead(_lines(invalid)):
        numbered = [
            (number, line)
            for number, line in enumerate(lines, first)
            if (line is None or line.strip()) and not (header and number == 1)
        ]
        invalid.rows += len(numbered)
        for frame in parser.frames(numbered):
            found, rows = [*found, frame], rows + len(frame)
        if rows >= BLOCK:
            yield pl.concat(found)
            found, rows = [], 0
    invalid.check()
    if rows:
        yield pl.concat(found)
    setattr(report, f"{table}_read", invalid.rows)
    for drop in invalid.reasons.values():
        report.drop(f"{table}: {drop.reason}", drop.count, f"{path.name}, {drop.example}")


class _Parser:
    """Parses lines natively, and by halves line by line where that fails, so that errors name the line."""

    def __init__(
        self,
        parse: Callable[[bytes], tuple[Any, ...]],
        columns: Mapping[str, pl.DataType],
        native: Native | None,
        invalid: InvalidRows,
    ) -> None:
        self._parse, self._native, self._invalid = parse, native, invalid
        self._schema = {"row": pl.Int64(), **columns}

    def frames(self, lines: list[tuple[int, bytes | None]]) -> Iterator[pl.DataFrame]:
        """The valid rows of numbered lines; None is a line that is too long."""
        if self._native and lines:
            texts = [line for _, line in lines if line is not None]
            table = self._native(b"\n".join(texts), len(texts)) if len(texts) == len(lines) else None
            if table is not None:
                numbers = pl.Series("row", [number for number, _ in lines], pl.Int64)
                yield table.select(numbers, *(name for name in self._schema if name != "row"))
                return
            if len(lines) > FEW_LINES:
                middle = len(lines) // 2
                yield from self.frames(lines[:middle])
                yield from self.frames(lines[middle:])
                return
        rows = list[tuple[Any, ...]]()
        for number, line in lines:
            try:
                if line is None:
                    raise InvalidRow(f"lines over {MAX_LINE >> 20} MiB")
                rows.append((number, *self._parse(line)))
            except InvalidRow as error:
                self._invalid.add(error, number)
        if rows:
            yield pl.DataFrame(list(zip(*rows, strict=True)), self._schema)


def _ahead(chunks: Iterator[Lines]) -> Iterator[Lines]:
    """The chunks, each read (and decompressed) while the one before is parsed."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, chunks, None)
        while (chunk := coming.result()) is not None:
            coming = reader.submit(next, chunks, None)
            yield chunk


def read_header(path: Path) -> str:
    """The first line of a text file; undecodable bytes become question marks. Raises InputError for UTF-16."""
    first = next((lines[0] for _, lines in _lines(InvalidRows(path, 1.0)) if lines), None) or b""
    header = first.decode("utf-8-sig", "replace").rstrip("\r\n")
    if "\0" in header:
        raise InputError(f"{path}: {NO_UTF8}")
    if "\r" in header:
        raise InputError(f"{path}: {CR_ONLY}")
    return header


def _lines(invalid: InvalidRows) -> Iterator[Lines]:
    """The number of the first line and the lines of one chunk after the other; None for a line over `MAX_LINE`."""
    path, number, rest, skipping = invalid.path, 1, b"", False
    try:
        for chunk in _joined(read_chunks(path)):
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


def _joined(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The chunks, several together. What precedes an error is yielded before it is raised."""
    parts, size = list[bytes](), 0
    try:
        for chunk in chunks:
            parts.append(chunk)
            size += len(chunk)
            if size >= TEXT:
                yield b"".join(parts)
                parts, size = [], 0
    except (OSError, EOFError, zlib.error):
        yield b"".join(parts)
        raise
    if parts:
        yield b"".join(parts)


def read_chunks(path: Path) -> Iterator[bytes]:
    """The content of a file, decompressed if it is gzipped."""
    with path.open("rb") as raw:
        packed = raw.peek(2)[:2] == b"\x1f\x8b"  # gzip, by content: browsers unpack a download and keep its name
        yield from iter(partial((gzip.GzipFile(fileobj=raw) if packed else raw).read1, CHUNK), b"")
