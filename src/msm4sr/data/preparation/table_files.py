"""Tables in files: CSV, TSV and Parquet.

The suffix decides how a file is read: `.csv` (comma), `.tsv` and `.txt` (tab), each with `.gz` too, and `.parquet`.
Text files are UTF-8 with a header. A **broken row** (more or fewer fields than the header, quotation marks that do not
pair) is an error that names the line, because everything after it may have shifted.
"""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from msm4sr.data.schema import UNREADABLE, read_parquet
from msm4sr.errors import InputError, first_line

DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}


def read_table(path: Path, delimiter: str | None = None) -> pl.DataFrame:
    """Read a table; every value of a text file is a string, so that an ID keeps its leading zeros.

    Args:
        path: the file; its suffix says what it is.
        delimiter: between the fields of a text file; None: by the suffix.

    Raises:
        InputError: no such file, another suffix, or a broken row, which is named.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    suffix = path.with_suffix("").suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
    if suffix == ".parquet":
        return read_parquet(path)
    if suffix not in DELIMITERS:
        raise InputError(f"{path}: unknown kind of file; expected .csv, .tsv, .txt (also with .gz) or .parquet")
    delimiter = delimiter or DELIMITERS[suffix]
    try:
        table = pl.read_csv(path, separator=delimiter, infer_schema=False, glob=False)
    except UNREADABLE as error:
        problem = _broken_row(path, delimiter) or f"cannot be read as a text table ({first_line(error)})"
        raise InputError(f"{path}: {problem}") from error
    # A row with too few fields is filled with nulls; only a table with nulls in its last column can have one.
    suspicious = bool(table.columns) and table[table.columns[-1]].null_count() > 0
    if suspicious and (broken := _broken_row(path, delimiter)):
        raise InputError(f"{path}: {broken}")
    return table


def _broken_row(path: Path, delimiter: str) -> str | None:
    """The first line of a text file that is no proper row, and why; None if all are."""
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
    except UnicodeDecodeError:
        return "is not UTF-8 text; convert it first (for example `iconv -f latin1 -t utf8`)"
    except (OSError, EOFError) as error:
        return f"cannot be read ({first_line(error)})"
    return None


def _records(path: Path) -> Iterator[tuple[int, str]]:
    """Rows of a text file with the number of their first line; quoted line breaks stay within their row."""
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig", newline="") as lines:
        start, parts, quotes = 1, list[str](), 0
        for number, line in enumerate(lines, start=1):
            parts.append(line)
            quotes += line.count('"')
            if quotes % 2 == 0:
                yield start, "".join(parts).rstrip("\r\n")
                start, parts, quotes = number + 1, [], 0
        if parts:
            yield start, "".join(parts).rstrip("\r\n")
