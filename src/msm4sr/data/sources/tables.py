"""Tables (CSV, TSV, Parquet; see `preparation.table_files`) and a folder of images.

White space around a value is removed; an empty value is null. What is an error (then nothing is written), and what is
dropped and counted:

- A **time** that cannot be read, or a row without user or item ID, is an error that names the row, unless
  `max_invalid_fraction` allows for some. A rating that cannot be read is an error wherever ratings are filtered.
- A row under `min_rating`, or with an item that ITEMS lacks, is dropped and counted.
- Of items with the same ID the first is kept. Unseen items stay: content can recommend them.
- An image path that leaves the folder of images (symbolic links followed) is an error; a file that does not exist is
  counted, and the item is kept without it.

In messages, data rows count from 1, the header not included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import polars as pl
from pydantic import Field, field_validator

from msm4sr.data.items import is_url
from msm4sr.data.preparation.columns import plain_column, stripped, text_column
from msm4sr.data.preparation.lists import LISTED, split_list, written_list
from msm4sr.data.preparation.source import SOURCES, Place, PrepareReport, Rules, Source, TableName
from msm4sr.data.preparation.table_files import Block, TableFiles
from msm4sr.data.preparation.time_columns import TimeColumn
from msm4sr.data.preparation.times import UNIT_HELP, UNITS, TimeUnit
from msm4sr.data.schema import id_strings, require_columns
from msm4sr.errors import InputError, excerpt


@SOURCES.register("parquet")
@SOURCES.register("csv")
class Tables(Source):
    """From tables (CSV, TSV or Parquet) and a folder of images to a prepared folder.

    A column that is named must exist; by default, title, text, categories and image may be missing.
    """

    format: ClassVar[str] = "tables"
    # A value that cannot be read means a wrong column or unit more often than an invalid row.
    rules: ClassVar[Rules] = Rules(unknown_items="drop", max_invalid_fraction=0)
    unit: ClassVar[str] = "data row"

    interactions: Path = Field(description="The interactions: a file, a folder of files, or a glob.")
    items: Path | None = Field(description="The items, likewise.")  # None: those of the interactions
    user: str = Field("user_id", description="User column of the interactions.")
    item: str = Field("item_id", description="Item column of the interactions.")
    time: str | None = Field("timestamp", description="Time column of the interactions; '' if the rows are in order.")
    time_unit: TimeUnit = Field("auto", description=UNIT_HELP)
    rating: str = Field("rating", description="Rating column of the interactions; used with --min-rating.")
    item_id: str = Field("item_id", description="ID column of the items.")
    title: str | None = Field("title", description="Title column of the items.")
    text: tuple[str, ...] = Field(("text",), description="Text column of the items; several are joined by line breaks.")
    categories: str | None = Field("categories", description="Categories column of the items.")
    image: str | None = Field(
        "image", description="Image column of the items: paths in --images, or URLs. Else: <item_id>.*"
    )
    separator: str = Field("|", min_length=1, description="Between several categories or images.")
    delimiter: str | None = Field(
        None, min_length=1, max_length=1, description="Field separator, if not a comma (.tsv, .txt: a tab)."
    )

    @field_validator("time", "title", "categories", "image", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("delimiter", mode="before")
    @classmethod
    def _tab(cls, value: object) -> object:
        return "\t" if value == "\\t" else value  # as shells pass it on

    @field_validator("text")
    @classmethod
    def _each_once(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(columns)) < len(columns):
            raise ValueError("a column is named twice")
        return columns

    @property
    def user_column(self) -> str:
        return self.user

    @property
    def files(self) -> list[Path]:
        return [path for table in self._tables.values() for path in table.paths]

    @cached_property
    def _tables(self) -> dict[TableName, TableFiles]:
        paths: dict[TableName, Path | None] = {"interactions": self.interactions, "items": self.items}
        return {name: TableFiles(path, self.delimiter) for name, path in paths.items() if path is not None}

    def place(self, table: TableName, row: int) -> Place:
        return self._tables[table].place(row)

    def read_interactions(self, report: PrepareReport) -> Iterator[pl.DataFrame]:
        files, lowest = self._tables["interactions"], report.rules.min_rating
        if "rating" in self.model_fields_set and lowest is None:
            raise InputError("rating is used only with min_rating (--min-rating), which is not set")
        columns = [self.user, self.item, *([] if lowest is None else [self.rating])]
        named = [column for column in (*columns, self.time) if column is not None]
        if twice := [column for column in named if named.count(column) > 1]:
            raise InputError(
                f"{self.interactions}: column '{twice[0]}' is named twice; users, items, times and ratings are "
                "different columns (--user, --item, --time, --rating)"
            )
        for path in files.paths:
            names = files.columns(path)
            require_columns(path, columns, names)
            if self.time is not None:
                advice = "; if there is no time and the rows are in time order, set time to nothing (--time '')"
                require_columns(path, [self.time], names, advice)
        report.order = "the order of the rows in the file (no time column)"
        times = None if self.time is None else TimeColumn(files, self.time, self.time_unit)
        if times is not None:
            times.decide(report)
            report.order, report.time_unit, columns = f"column '{self.time}'", times.unit, [*columns, times.name]
        checks, ties = _InvalidRows("interactions", report), 0
        for block in files.blocks(columns):
            report.interactions_read += len(block.table)
            rows, equal = self._interactions(block, times, checks)
            ties += equal
            yield rows
        report.interactions_read -= checks.blank_lines
        if not report.interactions_read:
            raise InputError(f"{self.interactions}: no rows, only a header")
        checks.check()
        if ties:
            report.notes.append(
                f"column '{self.time}': {ties:,} different times become equal, since they have too many digits; rows "
                "of equal times stay in the order of the file"
            )

    def _interactions(self, block: Block, times: TimeColumn | None, checks: _InvalidRows) -> tuple[pl.DataFrame, int]:
        """The valid rows of a block, and how many of their times became equal."""
        table, path = block.table, block.path
        columns = {"user_id": _ids(table[self.user], path), "item_id": _ids(table[self.item], path)}
        if checks.report.rules.min_rating is not None:
            columns["rating"] = _ratings(table[self.rating], block)
        user, item = columns["user_id"].is_null(), columns["item_id"].is_null()
        checks.without_id(user, "interactions without a user ID", self.user, block)
        checks.without_id(~user & item, "interactions without an item ID", self.item, block)
        wrong, ties = user | item, 0
        if times is not None:
            written = table[times.name].set(wrong, None)
            columns["time"], ties = times.numbers(written)
            numbers = columns["time"]
            none = ~wrong & (numbers.is_null() | (numbers.is_nan() if numbers.dtype.is_float() else False))
            if none.any():
                value = stripped(written)[int(none.arg_max() or 0)]
                problem = "no time" if value is None else f"{excerpt(value)} is no time"
                problem = f"column '{times.name}', {{place}}: {problem}; expected {UNITS[times.unit]}"
                checks.add(none, "interactions whose time cannot be read", problem, block)
            wrong |= none
        return pl.DataFrame([block.rows, *(v.alias(n) for n, v in columns.items())]).filter(~wrong), ties

    def read_items(self, report: PrepareReport) -> Iterator[pl.DataFrame] | None:
        return None if self.items is None else self._read_items(self._tables["items"], report)

    def _read_items(self, files: TableFiles, report: PrepareReport) -> Iterator[pl.DataFrame]:
        content = {name: self._content(name, files, report) for name in ("title", "text", "categories", "image")}
        columns = [column for names in content.values() for column in names]
        for path in files.paths:
            require_columns(path, [self.item_id, *columns], files.columns(path))
        checks, urls, separators = _InvalidRows("items", report), False, _Separators(self.separator)
        report.items_read = 0
        for block in files.blocks([self.item_id, *columns]):
            report.items_read += len(block.table)
            rows = self._items(block, content, checks)
            if "image" in rows.columns:
                urls = urls or any(map(is_url, rows["image"].explode().drop_nulls()))
            if "categories" in rows.columns:
                separators.add(rows["categories"].drop_nulls())
            yield rows
        report.items_read -= checks.blank_lines
        checks.check()
        if self.images is None and content["image"] and not urls:
            if "image" in self.model_fields_set:
                raise InputError(f"column '{self.image}' holds images: name their folder (--images)")
            report.notes.append(f"column '{self.image}' is not used: no folder of images was named (--images)")
        report.notes += separators.notes(self.categories)

    def _items(self, block: Block, content: Mapping[str, Sequence[str]], checks: _InvalidRows) -> pl.DataFrame:
        table, path = block.table, block.path
        ids = _ids(table[self.item_id], path)
        checks.without_id(ids.is_null(), "items without an ID", self.item_id, block)
        columns = {"row": block.rows, "item_id": ids}
        for name, names in content.items():
            if names and name in ("title", "text"):
                separator = " " if name == "title" else "\n"
                parts = pl.DataFrame([text_column(table[column], path, separator) for column in names])
                columns[name] = stripped(parts.select(pl.concat_str("*", separator="\n", ignore_nulls=True))[:, 0])
            elif names:
                columns[name] = _list(table[names[0]], block, self.separator)
        return pl.DataFrame(columns).filter(ids.is_not_null())

    def _content(self, name: str, files: TableFiles, report: PrepareReport) -> list[str]:
        """The existing columns for `title`, `text`, ...; a column that the user named must exist."""
        chosen = getattr(self, name) or ()
        columns = [chosen] if isinstance(chosen, str) else list(chosen)
        path = files.paths[0]
        existing = files.columns(path)
        if name in self.model_fields_set:
            require_columns(path, columns, existing)
        for column in columns:
            if column not in existing and (name != "image" or self.images is None):  # else images are found by item ID
                report.notes.append(f"{path.name} has no column '{column}': items have no {name} from it")
        return [column for column in columns if column in existing]


class _InvalidRows:
    """Counts invalid rows of a table. More than the allowed fraction are an error."""

    def __init__(self, table: TableName, report: PrepareReport) -> None:
        self._table, self.report = table, report
        self._problem = ""  # the first
        self.blank_lines = 0

    def add(self, wrong: pl.Series, reason: str, problem: str, block: Block) -> None:
        """Count rows of a block; `{place}` in `problem` becomes the first of them."""
        first, count = int(wrong.arg_max() or 0), int(wrong.sum())
        if count:
            place = f"data row {block.before_in_file + first + 1}"
            self._problem = self._problem or f"{block.path}: {problem.replace('{place}', place)}"
            self.report.drop_invalid(self._table, reason, count, f"{block.path.name}, {place}")
            if not self.report.rules.max_invalid_fraction:
                self.check()

    def without_id(self, missing: pl.Series, reason: str, column: str, block: Block) -> None:
        """Count rows without an ID; blank lines are no rows."""
        if missing.any():
            blank = block.blank()
            self.blank_lines += int((missing & blank).sum())
            self.add(missing & ~blank, reason, f"column '{column}', {{place}}: no ID", block)

    def check(self) -> None:
        """Raise InputError if more rows are invalid than allowed."""
        if self._problem and self.report.too_many_invalid(self._table):
            count = self.report.invalid[self._table]
            advice = f"correct it, or drop invalid rows ({count:,}) with --max-invalid-fraction"
            raise InputError(f"{self._problem}; {advice}")


class _Separators:
    """Detects categories that have another separator."""

    def __init__(self, separator: str) -> None:
        self._separator, self._lists, self._several = separator, 0, False
        self._with_mark: Counter[str] = Counter()

    def add(self, lists: pl.Series) -> None:
        """Count lists of a block."""
        self._lists += len(lists)
        self._several = self._several or bool((lists.list.len() > 1).any())
        for mark in ";,":
            self._with_mark[mark] += int(lists.list.first().str.contains(mark, literal=True).sum())

    def notes(self, column: str | None) -> list[str]:
        """For the report, if most lists have one value, with another mark in it."""
        return [
            f"column '{column}' contains no {self._separator!r}, but {mark!r} in most rows; if that separates "
            f"categories, pass --separator '{mark}'"
            for mark in ";,"
            if not self._several and mark != self._separator and 2 * self._with_mark[mark] > self._lists
        ]


def _ratings(column: pl.Series, block: Block) -> pl.Series:
    """The column as float64, null if it is empty."""
    column = stripped(plain_column(column, block.path, "a number"))
    numbers = column.cast(pl.Float64, strict=False)
    invalid = column.is_not_null() & (numbers.is_null() | numbers.is_nan())
    if invalid.any():
        row = int(invalid.arg_max() or 0)
        found = f"column '{column.name}', data row {block.before_in_file + row + 1}: {column[row]!r}"
        raise InputError(f"{block.path}: {found} is no number, so no rating")
    return numbers


def _ids(column: pl.Series, path: Path) -> pl.Series:
    """Texts; null where empty."""
    return stripped(id_strings(column, path))


def _list(column: pl.Series, block: Block, separator: str) -> pl.Series:
    """Lists of texts: a list column, or the parts of a cell (see `split_list`); null where empty."""
    dtype = column.dtype
    inner = dtype.inner if isinstance(dtype, pl.List | pl.Array) else dtype
    if not (inner.is_integer() or inner in (pl.String, pl.Categorical, pl.Enum, pl.Null)):
        raise InputError(
            f"{block.path}: column '{column.name}' is {dtype}; it should hold a text or a list of texts a row. Write "
            "the names only, without lists in lists, objects or other numbers"
        )
    if inner is not dtype:
        parts = column.cast(pl.List(pl.String))
        if parts.explode().str.contains(LISTED.pattern).any():  # lists that are written as texts
            cells = [[name for part in cell or () for name in written_list(part or "")] for cell in parts.to_list()]
            parts = pl.Series(parts.name, cells, parts.dtype)
        stripped = parts.list.eval(pl.element().str.strip_chars()).list.eval(pl.element().filter(pl.element() != ""))
        return stripped.to_frame("list").select(pl.when(pl.col("list").list.len() > 0).then("list")).to_series()
    lists: list[list[str] | None] = []
    for row, cell in enumerate(column.cast(pl.String), start=block.before_in_file + 1):
        try:
            lists.append(None if cell is None else split_list(cell, separator))
        except ValueError as error:
            raise InputError(
                f"{block.path}: column '{column.name}', data row {row}: {excerpt(cell)} {error}; separate the values "
                f"by {separator!r}, or write a list as JSON"
            ) from None
    return pl.Series(lists, dtype=pl.List(pl.String))
