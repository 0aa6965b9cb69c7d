"""Text files that are parsed line by line (see `tables` for tables).

Lines may be gzipped; invalid ones are counted by reason, in bounded memory. A file that is cut short or damaged inside
its gzip stream counts as completely invalid, because the number of missing rows is unknown. The rows before the damage
are used only if `max_invalid_fraction` is 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import orjson
import polars as pl
from isal import isal_zlib

from msm4sr.data.preparation.source import Drop, PrepareReport, TableName
from msm4sr.data.remaining import Ints
from msm4sr.errors import InputError

CHUNK = 1 << 18  # bytes that are read at a time
PACKED = 1 << 15  # bytes of a gzip stream that are read at a time
UNPACKED = 1 << 13  # bytes of its content that are made at a time; so many before damage are lost
GZIP = 31  # for zlib: a gzip header, and the largest window
TEXT = 8 << 20  # bytes that are parsed at a time
FEW_LINES = 32  # that are parsed line by line if one is invalid
MAX_LINE = 4 << 20  # bytes: the longest lines of real metadata stay under 1 MiB
BLOCK = 100_000  # rows of a block
DAMAGE = (EOFError, cast(type[Exception], isal_zlib.error))  # the stub of isal names an instance
TIME_REASONS = {"impossible dates", "times that are no number", "times that are no ISO 8601 date"}
NO_UTF8 = "is not UTF-8 text; convert it first (for example `iconv -f latin1 -t utf8`, or `-f utf16`)"
CR_ONLY = "the lines end in CR alone; convert it first (`tr '\\r' '\\n'`)"
INTERACTION_COLUMNS = {"user_id": pl.String(), "item_id": pl.String(), "time": pl.Int64(), "rating": pl.Float32()}


class Text(NamedTuple):
    """Complete lines of a file, or one that is too long."""

    first: int  # the number of the first line
    lines: bytes | None  # None: a line that is too long
    ends: Ints  # the place after each line end; the last line of a file need not have one


NO_ENDS = np.empty(0, dtype=np.int64)


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
    for text in _ahead(_texts(invalid)):
        for frame in parser.frames(text, header and text.first == 1):
            found, rows = [*found, frame], rows + len(frame)
        if rows >= BLOCK:
            yield _in_order(found)
            found, rows = [], 0
    invalid.check()
    if rows:
        yield _in_order(found)
    setattr(report, f"{table}_read", invalid.rows)
    for drop in invalid.reasons.values():
        report.drop_invalid(table, f"{table}: {drop.reason}", drop.count, f"{path.name}, {drop.example}")


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

    def frames(self, text: Text, header: bool) -> Iterator[pl.DataFrame]:
        """The valid rows of some lines, of which the first is a header or not."""
        if self._native and text.lines and not header:
            yield from self._mostly_native(text.first, text.lines, text.ends)
            return
        lines = [None] if text.lines is None else text.lines.removesuffix(b"\n").split(b"\n")
        yield from self._one_by_one(list(enumerate(lines, text.first))[int(header) :])

    def _mostly_native(self, first: int, lines: bytes, ends: Ints) -> Iterator[pl.DataFrame]:
        """Parse the lines that end in a brace natively; others are cut short, which is the usual fault, or blank."""
        signs = np.frombuffer(lines, dtype=np.uint8)
        last = signs[np.maximum(ends - 2, 0)]
        last = np.where(last == ord("\r"), signs[np.maximum(ends - 3, 0)], last)
        complete, rows = last == ord("}"), np.arange(first, first + len(ends))
        starts = np.concatenate([[0], ends[:-1]])
        cut = [(int(row), slice(start, end)) for row, start, end in np.stack([rows, starts, ends], 1)[~complete]]
        if cut:
            bounds = [0, *(place for _, line in cut for place in (line.start, line.stop)), len(lines)]
            kept = b"".join(lines[start:end] for start, end in zip(bounds[::2], bounds[1::2], strict=True))
        yield from self._halves(rows[complete], kept if cut else lines)
        yield from self._one_by_one([(row, lines[line].removesuffix(b"\n")) for row, line in cut])

    def _halves(self, rows: Ints, text: bytes) -> Iterator[pl.DataFrame]:
        """Parse lines with these numbers natively, by halves as long as one of them is refused."""
        table = self._native(text, len(rows)) if self._native and len(rows) else None
        if table is not None:
            self._invalid.rows += len(rows)
            yield table.with_columns(row=pl.Series(rows)).select(list(self._schema))
            return
        lines = text.removesuffix(b"\n").split(b"\n") if len(rows) else []
        if len(lines) > FEW_LINES:
            middle = len(lines) // 2
            yield from self._halves(rows[:middle], b"\n".join(lines[:middle]))
            yield from self._halves(rows[middle:], b"\n".join(lines[middle:]))
        else:
            yield from self._one_by_one(list(zip(rows.tolist(), lines, strict=True)))

    def _one_by_one(self, lines: Sequence[tuple[int, bytes | None]]) -> Iterator[pl.DataFrame]:
        rows = list[tuple[Any, ...]]()
        for number, line in lines:
            if line is not None and not line.strip():
                continue
            self._invalid.rows += 1
            try:
                if line is None:
                    raise InvalidRow(f"lines over {MAX_LINE >> 20} MiB")
                rows.append((number, *self._parse(line)))
            except InvalidRow as error:
                self._invalid.add(error, number)
        if rows:
            columns = zip(self._schema.items(), zip(*rows, strict=True), strict=True)
            yield pl.DataFrame([column(name, values, dtype) for (name, dtype), values in columns])


def _ends(lines: bytes) -> Ints:
    """The place after the end of each line: the last need not have a line end."""
    ends = np.flatnonzero(np.frombuffer(lines, dtype=np.uint8) == ord("\n")) + 1
    return ends if not lines or lines.endswith(b"\n") else np.append(ends, len(lines) + 1)


def column(name: str, values: Sequence[Any], dtype: pl.DataType) -> pl.Series:
    """A column of these values; polars builds lists many times faster from JSON than from lists."""
    if not dtype.is_nested():
        return pl.Series(name, values, dtype)
    written = [None if value is None else orjson.dumps(value).decode() for value in values]
    return pl.Series(name, written, pl.String).str.json_decode(dtype)


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
    text = next((text.lines for text in _texts(InvalidRows(path, 1.0))), None) or b""
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
                yield Text(number, None, NO_ENDS)
                number, skipping = number + 1, False
            chunk = rest + chunk
            end = chunk.rfind(b"\n") + 1
            lines, rest = chunk[:end], chunk[end:]
            ends = _ends(lines)
            if np.diff(ends, prepend=0).max(initial=0) <= MAX_LINE + 1:
                yield Text(number, lines, ends)
            else:
                for row, line in enumerate(re.findall(rb"[^\n]*\n", lines), number):
                    yield Text(row, line, _ends(line)) if len(line) <= MAX_LINE + 1 else Text(row, None, NO_ENDS)
            number += len(ends)
            if len(rest) > MAX_LINE:
                rest, skipping = b"", True
    except DAMAGE as error:
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
        yield Text(number, None, NO_ENDS) if skipping else Text(number, rest, _ends(rest))


def _joined(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The chunks, several together, up to the end of a line. What precedes an error is yielded before it is raised."""
    parts, size = list[bytes](), 0
    try:
        for chunk in chunks:
            size += len(chunk)
            end = (chunk.rfind(b"\n") + 1 or len(chunk)) if size >= TEXT else len(chunk)
            parts.append(chunk[:end])
            if size >= TEXT:
                yield b"".join(parts)
                parts, size = [chunk[end:]], len(chunk) - end
    except (OSError, *DAMAGE):
        yield b"".join(parts)
        raise
    if parts:
        yield b"".join(parts)


def read_chunks(path: Path) -> Iterator[bytes]:
    """The content of a file, decompressed if it is gzipped."""
    with path.open("rb") as raw:
        if raw.peek(2)[:2] == b"\x1f\x8b":  # gzip, by content: browsers unpack a download and keep its name
            yield from _decompressed(raw)
        else:
            yield from iter(partial(raw.read1, CHUNK), b"")


def _decompressed(raw: BinaryIO) -> Iterator[bytes]:
    """The content of a gzip stream of one or several members, up to where it is damaged."""
    member, packed = isal_zlib.decompressobj(GZIP), b""
    while packed := packed or raw.read(PACKED):
        if member.eof and not (packed := packed.lstrip(b"\0")):  # zeros may fill up a block
            continue
        if member.eof:
            member = isal_zlib.decompressobj(GZIP)
        if content := member.decompress(packed, UNPACKED):
            yield content
        packed = member.unused_data if member.eof else member.unconsumed_tail
    if not member.eof:
        yield member.flush()
        raise EOFError("it ends within the gzip stream")
