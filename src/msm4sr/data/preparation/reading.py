"""Text files that are parsed line by line (see `tables` for tables).

Lines may be gzipped; invalid ones are counted by reason, in bounded memory. A file that is cut short or damaged inside
its gzip stream counts as completely invalid, because the number of missing rows is unknown. The rows before the damage
are used only if `max_invalid_fraction` is 1.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from msm4sr.data.preparation.source import Drop, PrepareReport, TableName
from msm4sr.errors import InputError

CHUNK = 1 << 18  # bytes that are read at a time
TEXT = 3 << 20  # bytes that are parsed at a time
FEW_LINES = 32  # that are parsed line by line if one is invalid
MAX_LINE = 4 << 20  # bytes: the longest lines of real metadata stay under 1 MiB
BLOCK = 50_000  # rows of a block
DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
TIME_REASONS = {"impossible dates", "times that are no number", "times that are no ISO 8601 date"}
NO_UTF8 = "is not UTF-8 text; convert it first (for example `iconv -f latin1 -t utf8`, or `-f utf16`)"
CR_ONLY = "the lines end in CR alone; convert it first (`tr '\\r' '\\n'`)"
INTERACTION_COLUMNS = {"user_id": pl.String(), "item_id": pl.String(), "time": pl.Int64(), "rating": pl.Float32()}

Text = tuple[int, bytes | None]  # the number of the first line, and complete lines; None: one that is too long


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
        self._first: dict[str, int] = {}  # the line of the example of each reason

    def add(self, error: InvalidRow, line: int) -> None:
        """Count an invalid row; lines count from 1."""
        drop = self.reasons.setdefault(str(error), Drop(str(error), 0, ""))
        drop.count += 1
        if line <= self._first.setdefault(str(error), line):
            self._first[str(error)] = line
            drop.example = f"line {line}" + (f": {error.case}" if error.case else "")

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
    for first, text in _ahead(_texts(invalid)):
        for frame in parser.frames(first, text, header and first == 1):
            found, rows = [*found, frame], rows + len(frame)
        if rows >= BLOCK:
            yield _in_order(found)
            found, rows = [], 0
    invalid.check()
    if rows:
        yield _in_order(found)
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

    def frames(self, first: int, text: bytes | None, header: bool) -> Iterator[pl.DataFrame]:
        """The valid rows of some lines (None: one that is too long), of which the first is a header or not."""
        if self._native and text and not header:
            signs = np.frombuffer(text, dtype=np.uint8)
            ends = np.flatnonzero(signs == ord("\n"))
            count = len(ends) + (not text.endswith(b"\n"))
            complete = (signs[ends - 1] == ord("}")).all()  # no line is cut short, the usual fault, or blank
            if complete and (table := self._native(text, count)) is not None:
                self._invalid.rows += count
                yield self._numbered(table, pl.int_range(first, first + count, dtype=pl.Int64, eager=True))
                return
        lines = [None] if text is None else text.removesuffix(b"\n").split(b"\n")
        numbered = [
            (number, line)
            for number, line in enumerate(lines, first)
            if (line is None or line.strip()) and not (header and number == first)
        ]
        self._invalid.rows += len(numbered)
        if self._native:
            complete = [(number, line) for number, line in numbered if line and line.rstrip().endswith(b"}")]
            yield from self._halves(complete)
            numbered = [(number, line) for number, line in numbered if not line or not line.rstrip().endswith(b"}")]
        yield from self._one_by_one(numbered)

    def _halves(self, lines: list[tuple[int, bytes]]) -> Iterator[pl.DataFrame]:
        """Parse lines natively, by halves as long as one of them is refused."""
        table = self._native(b"\n".join(line for _, line in lines), len(lines)) if self._native and lines else None
        if table is not None:
            yield self._numbered(table, pl.Series([number for number, _ in lines], dtype=pl.Int64))
        elif len(lines) > FEW_LINES:
            middle = len(lines) // 2
            yield from self._halves(lines[:middle])
            yield from self._halves(lines[middle:])
        else:
            yield from self._one_by_one(lines)

    def _one_by_one(self, lines: Sequence[tuple[int, bytes | None]]) -> Iterator[pl.DataFrame]:
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

    def _numbered(self, table: pl.DataFrame, rows: pl.Series) -> pl.DataFrame:
        return table.with_columns(row=rows).select(list(self._schema))


def _in_order(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    block = pl.concat(frames)
    return block if block["row"].is_sorted() else block.sort("row")


def _ahead(chunks: Iterator[Text]) -> Iterator[Text]:
    """The chunks, each read (and decompressed) while the one before is parsed."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, chunks, None)
        while (chunk := coming.result()) is not None:
            coming = reader.submit(next, chunks, None)
            yield chunk


def read_header(path: Path) -> str:
    """The first line of a text file; undecodable bytes become question marks. Raises InputError for UTF-16."""
    text = next((text for _, text in _texts(InvalidRows(path, 1.0))), None) or b""
    header = text.partition(b"\n")[0].decode("utf-8-sig", "replace").rstrip("\r\n")
    if "\0" in header:
        raise InputError(f"{path}: {NO_UTF8}")
    if "\r" in header:
        raise InputError(f"{path}: {CR_ONLY}")
    return header


def _texts(invalid: InvalidRows) -> Iterator[Text]:
    """The lines of a file, many together."""
    path, number, rest, skipping = invalid.path, 1, b"", False
    try:
        for chunk in _joined(read_chunks(path)):
            if skipping:
                _, ended, chunk = chunk.partition(b"\n")
                if not ended:
                    continue
                yield number, None
                number, skipping = number + 1, False
            text = rest + chunk
            end = text.rfind(b"\n") + 1
            text, rest = text[:end], text[end:]
            for part in [text] if len(text) <= MAX_LINE else re.findall(rb"[^\n]*\n", text):
                yield number, part if len(part) <= MAX_LINE + 1 else None
                number += part.count(b"\n")
            if len(rest) > MAX_LINE:
                rest, skipping = b"", True
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
        yield number, None if skipping else rest


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
