"""DuckDB for tables that are larger than memory: joins, groups and sorts spill to files in a given folder."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from msm4sr.errors import InputError, first_line

CHUNK = 1 << 18  # rows that are copied out of a table at a time
LEAST_MEMORY = 400 * 10**6  # bytes: Python, DuckDB and polars alone need half of it
GROWTH = 5  # bytes of intermediate tables for each byte of compressed files
RESERVE = 48 << 20, 1 / 12  # bytes, or a share of the memory: what DuckDB allocates outside its limit
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


def parse_memory(written: str) -> int:
    """Bytes of `4GB`, `512MiB`, `1.5g`. Raises InputError for anything else, and for too little."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]|[kmg]i)?b?", written.strip(), re.I)
    if match is None:
        raise InputError(f"--memory: {written!r} is no size; write it like 4GB or 500MB")
    size = int(float(match[1]) * UNITS[(match[2] or "").lower()])
    if size < LEAST_MEMORY:
        raise InputError(f"--memory: {written} is too little; give at least {LEAST_MEMORY // 10**6} MB")
    return size


def default_memory() -> int:
    """Half of the memory that is free, in bytes; less where a control group (version 2) allows less."""
    free = _status(Path("/proc/meminfo"), "MemAvailable") or 4 << 30
    limit = Path("/sys/fs/cgroup/memory.max")
    written = limit.read_text().strip() if limit.exists() else "max"
    return max(LEAST_MEMORY, min(free, free if written == "max" else int(written)) // 2)


class Database:
    """A database for intermediate tables.

    Args:
        folder: an existing folder for its files.
        memory: bytes that this process may use.
        read: bytes of the files that are read; the tables of small ones stay in memory.

    Raises OSError where the disk is full, and InputError where the memory is too small.
    """

    def __init__(self, folder: Path, memory: int, read: int) -> None:
        self.folder, self._memory = folder, memory
        self._connection = duckdb.connect(":memory:" if GROWTH * read < memory / 2 else folder / "work.duckdb")
        for setting, value in {
            "temp_directory": str(folder / "spilled"),
            "threads": pl.thread_pool_size(),  # follows the affinity, and POLARS_MAX_THREADS
            "preserve_insertion_order": False,  # of what has no ORDER BY: needs less memory
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }.items():
            self.run(f"SET {setting} = {quoted(value) if isinstance(value, str) else value}")
        self.share_memory()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def share_memory(self) -> None:
        """Give DuckDB what the rest of the process leaves."""
        used = _status(Path("/proc/self/status"), "VmRSS") or LEAST_MEMORY // 2
        limit = max(self._memory - used - max(RESERVE[0], int(RESERVE[1] * self._memory)), self._memory // 4)
        self.run(f"SET memory_limit = '{limit >> 10} KiB'")

    def run(self, query: str) -> list[tuple[Any, ...]]:
        """Execute a statement; the rows of its result."""
        with self._errors():
            rows: list[tuple[Any, ...]] = self._connection.execute(query).fetchall()
        return rows

    def row(self, query: str) -> tuple[Any, ...]:
        """The only row of the result."""
        return self.run(query)[0]

    def count(self, table: str) -> int:
        return int(self.row(f"SELECT count(*) FROM {table}")[0])

    def chunks(self, table: str, columns: str, in_order: bool = False) -> Iterator[pl.DataFrame]:
        """A stored table in chunks of rows: in any order, or in the order in which it was created."""
        order = "ORDER BY rowid" if in_order else ""
        for start in range(0, self.count(table), CHUNK):
            with self._errors():
                where = f"rowid >= {start} AND rowid < {start + CHUNK}"
                rows = self._connection.sql(f"SELECT {columns} FROM {table} WHERE {where} {order}")
                yield pl.DataFrame(rows)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if "interrupted" in str(error):  # how DuckDB reports Ctrl-C
                raise KeyboardInterrupt from None
            raise
        except duckdb.Error as error:
            text = str(error)
            if "No space left" in text or "max_temp_directory_size" in text or "File too large" in text:
                raise OSError(
                    errno.ENOSPC, f"the disk is full ({first_line(error)})", str(self.folder.parent)
                ) from error
            if isinstance(error, duckdb.OutOfMemoryException):
                raise InputError(
                    f"--memory: {self._memory >> 20:,} MiB are too little for this data; give more"
                ) from error
            if isinstance(error, duckdb.IOException):
                raise OSError(errno.EIO, first_line(error), str(self.folder.parent)) from error
            raise


def parquet_files(paths: Sequence[Path], file_row_number: bool = False) -> str:
    """The SQL of a table in Parquet files; with the column `file_row_number`, from 0 on, if wanted."""
    names = (quoted(re.sub(r"([*?\[])", r"[\1]", str(path))) for path in paths)  # they are patterns to DuckDB
    numbered = ", file_row_number = true" if file_row_number else ""
    return f"read_parquet([{', '.join(names)}], hive_partitioning = false{numbered})"


def quoted(text: str) -> str:
    """A text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


def _status(file: Path, key: str) -> int:
    """A size in a file of /proc, in bytes; 0 where there is none."""
    lines = file.read_text().splitlines() if file.exists() else []
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:")), 0)
