"""Lines of a text file, gzipped or not, turned into rows; bad ones counted by kind, in bounded memory.

A file that is cut short or damaged inside its gzip stream counts as bad altogether: nobody can know how much is
missing. What could be read of it is used only where every share of bad rows is allowed.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from msm4sr.errors import InputError

CHUNK = 1 << 20  # bytes that are read at a time
MAX_LINE = 4 << 20  # bytes: the longest lines of real metadata stay under 1 MiB
BLOCK = 50_000  # rows that are handed on together
GZIP = b"\x1f\x8b"

Row = TypeVar("Row")


class BadRow(Exception):
    """A line that is no row. `kind` says why, in words that fit many lines, and is what is counted by."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class Kind(NamedTuple):
    """How many rows are bad in one way, and the first of them (counted from 1)."""

    rows: int
    first: int


class BadRows:
    """The bad rows of one file, by kind."""

    def __init__(self) -> None:
        self.rows = 0  # bad and good ones
        self.kinds: dict[str, Kind] = {}

    def add(self, kind: str, row: int, count: int = 1) -> None:
        seen, first = self.kinds.get(kind, Kind(0, row))
        self.kinds[kind] = Kind(seen + count, first)

    def check(self, path: Path, max_share: float, unit: str) -> None:
        """Raises InputError where more than `max_share` of the rows are bad; names each kind with its first."""
        bad = sum(count for count, _ in self.kinds.values())
        if bad > max_share * self.rows:
            kinds = "; ".join(
                f"{count:,} {kind} (first: {unit} {first})" for kind, (count, first) in self.kinds.items()
            )
            raise InputError(
                f"{path}: {bad:,} of {self.rows:,} rows cannot be used, a share of {bad / self.rows:.2g} where "
                f"{max_share:g} is allowed: {kinds}; repair the file, or allow more with --max-invalid-fraction"
            )


def read_rows(
    path: Path, parse: Callable[[bytes], Row], bad: BadRows, max_share: float, header: bool = False
) -> Iterator[tuple[list[int], list[Row]]]:
    """Blocks of rows with their line numbers (from 1). `parse` turns a line into a row or raises `BadRow`.

    Blank lines are skipped; so is the first line where `header`. At the end `bad` has counted everything.

    Raises InputError: the file cannot be read, is cut short (unless `max_share` is 1), or has too many bad rows.
    """
    numbers: list[int] = []
    rows: list[Row] = []
    for first, lines in _lines(path, bad, max_share):
        for number, line in enumerate(lines, first):
            if line is not None and not line.strip():
                continue
            if header and number == 1:
                continue
            bad.rows += 1
            try:
                if line is None:
                    raise BadRow(f"lines over {MAX_LINE >> 20} MiB")
                rows.append(parse(line))
            except BadRow as error:
                bad.add(error.kind, number)
            else:
                numbers.append(number)
        if len(rows) >= BLOCK:
            yield numbers, rows
            numbers, rows = [], []
    bad.check(path, max_share, "line")
    if rows:
        yield numbers, rows


def first_line(path: Path) -> str:
    """The first line of a text file, for a look at its header; an undecodable byte becomes a question mark."""
    for _, lines in _lines(path, BadRows(), 1.0):
        if lines:
            return (lines[0] or b"").decode("utf-8-sig", "replace").rstrip("\r\n")
    return ""


def _lines(path: Path, bad: BadRows, max_share: float) -> Iterator[tuple[int, list[bytes | None]]]:
    """Line numbers and lines of one chunk after the other; None stands for a line over `MAX_LINE`."""
    number, rest, skipping = 1, b"", False
    try:
        for chunk in _chunks(path):
            *lines, rest = (chunk if skipping else rest + chunk).split(b"\n")
            whole: list[bytes | None] = [line if len(line) <= MAX_LINE else None for line in lines]
            if skipping and whole:
                whole[0], skipping = None, False
            if len(rest) > MAX_LINE:
                rest, skipping = b"", True
            yield number, whole
            number += len(whole)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        if max_share < 1:
            raise InputError(
                f"{path}: cut short or damaged in line {number} ({str(error) or type(error).__name__}); get the file "
                "again, or use what can be read of it with --max-invalid-fraction 1"
            ) from error
        bad.rows += 1
        bad.add("end of a file that is cut short or damaged", number)
        return
    except OSError as error:
        raise InputError(f"{path}: {'no such file' if not path.exists() else error.strerror or error}") from error
    if skipping or rest:
        yield number, [None if skipping else rest]


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as raw:
        packed = raw.peek(2)[:2] == GZIP  # by content: browsers unpack a download and leave its name
        read = gzip.GzipFile(fileobj=raw).read1 if packed else raw.read1
        while chunk := read(CHUNK):
            yield chunk
