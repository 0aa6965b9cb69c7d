"""Tables in files, read in blocks of rows, so that a table can be larger than memory.

The suffix of a file decides how it is read: `.csv` (comma), `.tsv` and `.txt` (tab), each with `.gz` too, and
`.parquet`. Text files are UTF-8 with a header. A **broken row** (more or fewer fields than the header, quotation marks
that do not pair) is an error that names the line, because everything after it may have shifted.
"""

from __future__ import annotations

import csv
import glob
import io
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from msm4sr.data.preparation.reading import CR_ONLY, DAMAGE, NO_UTF8, read_chunks
from msm4sr.data.preparation.source import Place
from msm4sr.data.schema import UNREADABLE, read_parquet, refuse_duplicates
from msm4sr.errors import InputError, excerpt, first_line

DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
ROWS = 100_000  # of a Parquet file that are read at a time
TEXT = 8 << 20  # bytes of a text file that are parsed at a time
LONGEST_RECORD = 16 << 20  # bytes: a longer row has a quotation mark that never closes


@dataclass(frozen=True)
class Block:
    """Rows of one file."""

    path: Path
    before: int  # rows of all files before these
    before_in_file: int
    table: pl.DataFrame  # at least the columns that were asked for
    several: bool = False  # whether there are other files

    @property
    def rows(self) -> pl.Series:
        """The numbers of the rows among those of all files, from 1 on (see `TableFiles.place`)."""
        return pl.Series("row", range(self.before + 1, self.before + len(self.table) + 1), pl.Int64)

    def place(self, row: int) -> str:
        """How a message about the files names a row of the block, counted from 0."""
        return f"{f'{self.path.name}, ' if self.several else ''}data row {self.before_in_file + row + 1}"

    def blank(self) -> pl.Series:
        """The rows that have no value in any column of the file: bool [rows]."""
        table = self.table
        if file_suffix(self.path) == ".parquet":
            table = _parquet_rows(self.path, None, self.before_in_file, len(table))
        return table.select(pl.all_horizontal(pl.all().is_null())).to_series()


class TableFiles:
    """The files of one table: one file, all tables in a folder, or those that a glob matches, in alphabetical order."""

    def __init__(self, path: Path, delimiter: str | None = None) -> None:
        self.paths = _list_files(path)
        self._delimiter = delimiter
        self._starts = [0]  # rows before each file that was read

    def columns(self, path: Path) -> list[str]:
        """The names of the columns of a file, without blanks around them."""
        return [name.strip() or name for name in self._names(path)]

    def dtype(self, path: Path, column: str) -> pl.DataType:
        """The type of a column of a file."""
        if file_suffix(path) != ".parquet":
            return pl.String()
        return _with_plain_names(_parquet_rows(path, None, 0, 0)).schema[column]

    def blocks(self, columns: Sequence[str]) -> Iterator[Block]:
        """All rows of all files, with at least these columns, all of which exist."""
        before = 0
        for number, path in enumerate(self.paths):
            in_file = 0
            self._starts[number:] = [before]
            for table in self._tables(path, columns):
                yield Block(path, before, in_file, table, len(self.paths) > 1)
                before, in_file = before + len(table), in_file + len(table)

    def place(self, row: int) -> Place:
        """Where the row of this number was read."""
        number = max(0, bisect_left(self._starts, row) - 1)
        return Place(self.paths[number], "data row", row - self._starts[number])

    def _names(self, path: Path) -> list[str]:
        if file_suffix(path) == ".parquet":
            names = _parquet_rows(path, None, 0, 0).columns
            refuse_duplicates(path, names)
            return names
        return _read_header(path, self._delimiter or DELIMITERS[file_suffix(path)])

    def _tables(self, path: Path, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        if file_suffix(path) != ".parquet":
            yield from _text_tables(path, self._delimiter or DELIMITERS[file_suffix(path)])
            return
        names = {name.strip() or name: name for name in self._names(path)}
        wanted, start, table = [names[column] for column in columns], 0, None
        while table is None or len(table) == ROWS:
            table = _parquet_rows(path, wanted, start, ROWS)
            start += len(table)
            yield _with_plain_names(table)


def read_table(path: Path, delimiter: str | None = None) -> pl.DataFrame:
    """A complete table; every value of a text file is a string, so that an ID keeps its leading zeros."""
    files = TableFiles(path, delimiter)
    columns = files.columns(files.paths[0])
    return pl.concat([block.table.select(columns) for block in files.blocks(columns)])


def file_suffix(path: Path) -> str:
    """The suffix that says how a file is read."""
    return path.with_suffix("").suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def _list_files(path: Path) -> list[Path]:
    known = (*DELIMITERS, ".parquet")
    if path.is_file():
        if file_suffix(path) not in known:
            raise InputError(f"{path}: unknown kind of file; expected .csv, .tsv, .txt (also with .gz) or .parquet")
        return [path]
    pattern = glob.has_magic(str(path)) and not path.exists()
    found = map(Path, glob.glob(str(path), recursive=True)) if pattern else path.glob("*") if path.is_dir() else []
    files = sorted(file for file in found if file.is_file() and file_suffix(file) in known and file.name[0] not in "._")
    if not files:
        expected = "that ends in .csv, .tsv, .txt (also with .gz) or .parquet"
        problem = f"no file {expected} matches" if pattern else f"no file in it {expected}" if path.is_dir() else ""
        raise InputError(f"{path}: {problem or 'no such file'}")
    return files


def _parquet_rows(path: Path, columns: list[str] | None, start: int, count: int) -> pl.DataFrame:
    return read_parquet(path, columns, (start, count))


def _text_tables(path: Path, delimiter: str) -> Iterator[pl.DataFrame]:
    """The rows of a text file; the header is repeated for each chunk that is parsed."""
    _read_header(path, delimiter)
    header, line = b"", 1
    for chunk in _record_chunks(path):
        try:
            table = pl.read_csv(io.BytesIO(header + chunk), separator=delimiter, infer_schema=False)
        except UNREADABLE as error:
            problem = _broken_row(chunk, line, delimiter, header) or _bare_cr(chunk, line)
            problem = problem or f"cannot be read as a text table ({first_line(error)})"
            raise InputError(f"{path}: {problem}") from error
        # A row with too few fields is filled with nulls; only a table with nulls in its last column can have one.
        if table.width and table[:, -1].null_count() and (broken := _broken_row(chunk, line, delimiter, header)):
            raise InputError(f"{path}: {broken}")
        yield _with_plain_names(table)
        header = header or next(record for _, record in _records(chunk, 1) if record).encode() + b"\n"
        line += chunk.count(b"\n")


def _record_chunks(path: Path) -> Iterator[bytes]:
    """The content of a text file in chunks that end with a row."""
    rest = b""
    try:
        for chunk in read_chunks(path):
            rest += chunk
            end = _last_end(rest) if len(rest) >= TEXT else 0
            if end or len(rest) > LONGEST_RECORD:
                yield rest[: end or len(rest)]
                rest = rest[end:] if end else b""
    except (OSError, *DAMAGE) as error:
        raise InputError(f"{path}: {_undecodable(error)}") from error
    if rest:
        yield rest


def _last_end(text: bytes) -> int:
    """The place after the last line end outside quotation marks; 0 if there is none."""
    odd, end = text.count(b'"') % 2, len(text)
    while (place := text.rfind(b"\n", 0, end)) >= 0:
        odd ^= text.count(b'"', place, end) % 2
        if not odd:
            return place + 1
        end = place
    return 0


def _with_plain_names(table: pl.DataFrame) -> pl.DataFrame:
    return table.rename(lambda name: name.strip() or name)


def _read_header(path: Path, delimiter: str) -> list[str]:
    """The columns. Raises InputError if two have the same name, or the lines are not split into columns."""
    try:
        start = next(iter(read_chunks(path)), b"")
        if b"\r" in start and b"\n" not in start:
            raise InputError(f"{path}: {CR_ONLY}")
        record = next((record for _, record in _records(start) if record), "")
        names = [name.strip() for name in next(csv.reader([record], delimiter=delimiter), [])]
    except csv.Error as error:
        raise InputError(f"{path}: the header cannot be split into columns: {excerpt(record)}") from error
    except (OSError, *DAMAGE, UnicodeDecodeError) as error:
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
    try:
        return pl.read_csv(io.BytesIO(record.encode()), separator=delimiter, infer_schema=False).columns
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read as a text table ({first_line(error)})") from error


def _broken_row(chunk: bytes, first: int, delimiter: str, header: bytes) -> str | None:
    """The first line of a chunk that is not a valid row, and why; None if all are valid."""
    apart = re.escape(delimiter)
    proper = re.compile(rf'(?:(?:"(?:[^"]|"")*"|[^"{apart}]*)(?:{apart}|$))*')
    expected = _count_fields(header.decode().rstrip("\n"), delimiter) if header else 0
    try:
        for line, record in _records(chunk, first):
            if not record:
                continue
            if record.count('"') % 2:
                return f"line {line}: a quotation mark opens and none closes"
            if not proper.fullmatch(record):
                return f'line {line}: a quotation mark inside a value; quote the value and write "" for it'
            fields = _count_fields(record, delimiter)
            expected = expected or fields
            if fields != expected:
                return f"line {line}: {fields} fields where the header has {expected}"
    except UnicodeDecodeError as error:
        return _undecodable(error)
    return None


def _count_fields(record: str, delimiter: str) -> int:
    """The number of fields of a row, of any length (csv refuses those over 128 KiB)."""
    return re.sub(r'"(?:[^"]|"")*"', "", record).count(delimiter) + 1


def _bare_cr(chunk: bytes, first: int) -> str | None:
    """The first line of a chunk that ends in CR alone."""
    lines = enumerate(_text_lines(chunk), first)
    number = next((number for number, line in lines if line.endswith("\r")), None)
    return None if number is None else f"line {number}: ends in CR alone; convert all (`tr '\\r' '\\n'`)"


def _undecodable(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return NO_UTF8
    return f"cannot be read ({first_line(error)})"


def _text_lines(text: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(text), encoding="utf-8-sig", newline="")


def _records(text: bytes, first: int = 1) -> Iterator[tuple[int, str]]:
    """Rows of a text with the number of their first line; quoted line breaks stay within their row."""
    start, parts, quotes = first, list[str](), 0
    for number, line in enumerate(_text_lines(text), first):
        parts.append(line)
        quotes += line.count('"')
        if quotes % 2 == 0:
            yield start, "".join(parts).rstrip("\r\n")
            start, parts, quotes = number + 1, [], 0
    if parts:
        yield start, "".join(parts).rstrip("\r\n")
