"""Tables (CSV, TSV, Parquet; see `table_files`) and a folder of images.

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

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import polars as pl
from pydantic import Field, field_validator

from msm4sr.data.items import is_url
from msm4sr.data.preparation.lists import LISTED, split_list, written_list
from msm4sr.data.preparation.reading import plain_column, read_table, stripped, text_column
from msm4sr.data.preparation.source import SOURCES, PrepareReport, Rules, Source
from msm4sr.data.preparation.times import UNIT_HELP, UNITS, TimeUnit, as_numbers, from_iso
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

    interactions: Path = Field(description="The interactions.")
    items: Path | None = Field(description="The items.")  # None: those of the interactions
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

    @property
    def files(self) -> list[Path]:
        return [self.interactions, *([] if self.items is None else [self.items])]

    def read_interactions(self, report: PrepareReport) -> Iterator[pl.DataFrame]:
        path, lowest = self.interactions, report.rules.min_rating
        if "rating" in self.model_fields_set and lowest is None:
            raise InputError("rating is used only with min_rating (--min-rating), which is not set")
        table = read_table(path, self.delimiter)
        report.interactions_read = len(table)
        require_columns(path, (self.user, self.item, *([] if lowest is None else [self.rating])), table.columns)
        if self.time is not None:
            advice = "; if there is no time and the rows are in time order, set time to nothing (--time '')"
            require_columns(path, [self.time], table.columns, advice)
        if table.is_empty():
            raise InputError(f"{path}: no rows, only a header")
        columns = {"user_id": _ids(table[self.user], path), "item_id": _ids(table[self.item], path)}
        if lowest is not None:
            columns["rating"] = _ratings(table[self.rating], path)
        user, item = columns["user_id"].is_null(), columns["item_id"].is_null()
        _without_id(user, "interactions without a user ID", self.user, table, path, report)
        _without_id(~user & item, "interactions without an item ID", self.item, table, path, report)
        kept = (~user & ~item).arg_true()
        block = pl.DataFrame({"row": range(1, len(table) + 1), **columns})[kept]
        report.order = "the order of the rows in the file (no time column)"
        yield block if self.time is None else self._timed(block, stripped(table[self.time][kept]), report)

    def _timed(self, block: pl.DataFrame, times: pl.Series, report: PrepareReport) -> pl.DataFrame:
        """The rows whose time can be read, with `time` in `report.time_unit`; the others are counted."""
        path, unit = self.interactions, self.time_unit
        where = f"{path}: column '{times.name}'"
        plain_column(times, path, "a number, a date or a text")
        numbers, ties = (None, 0) if times.dtype.is_temporal() else as_numbers(times)
        if unit == "auto":  # most values decide, so that one invalid value does not
            unit = "auto" if numbers is not None and 2 * numbers.count() > times.count() else "iso"
        if unit == "iso":
            self._check_offsets(times, block["row"], report)
            numbers, unit, ties = _from_dates(times, where)
        elif numbers is None:
            raise InputError(f"{where} holds dates ({times.dtype}); set time_unit to iso")
        report.order, report.time_unit = f"column '{self.time}'", unit
        wrong = numbers.is_null() | (numbers.is_nan() if numbers.dtype.is_float() else False)
        if wrong.any():
            first = int(wrong.arg_max() or 0)
            problem = "no time" if times[first] is None else f"{excerpt(times[first])} is no time"
            problem = f"{where}, data row {block['row'][first]}: {problem}; expected {UNITS[unit]}"
            _invalid(wrong, "interactions whose time cannot be read", problem, block["row"], path, report)
        if ties:
            report.notes.append(
                f"column '{times.name}': {ties:,} different times become equal, since they have too many digits; rows "
                "of equal times stay in the order of the file"
            )
        return block.with_columns(time=numbers).filter(~wrong)

    def _check_offsets(self, times: pl.Series, rows: pl.Series, report: PrepareReport) -> None:
        """Report times without an offset among times with one. Raises InputError unless `time_unit` is iso."""
        if times.dtype != pl.String:
            return
        timed = times.str.contains(r"^\d{4}-?\d\d-?\d\d").fill_null(False)
        offset = times.str.contains(r"\d[Tt ].*[+-]\d\d(:?\d\d)*$").fill_null(False) & timed
        zoned = offset & ~times.str.contains(r"[+-]00(:?00)*$")  # an offset of 0 is UTC, as none is
        naive = timed & ~offset & ~times.str.contains(r"[zZ]$")
        if not (zoned.any() and naive.any()):
            return
        without, having = int(naive.arg_max() or 0), int(zoned.arg_max() or 0)
        problem = (
            f"column '{times.name}': {naive.sum():,} times have no offset from UTC (first: data row {rows[without]}: "
            f"'{times[without]}') and {zoned.sum():,} have one (data row {rows[having]}: '{times[having]}')"
        )
        if self.time_unit != "iso":
            advice = "write all with their offset, or pass --time-unit iso to read the former as UTC"
            raise InputError(f"{self.interactions}: {problem}; {advice}")
        report.notes.append(f"{problem}; the former are read as UTC")

    def read_items(self, report: PrepareReport) -> Iterator[pl.DataFrame] | None:
        return None if self.items is None else self._read_items(self.items, report)

    def _read_items(self, path: Path, report: PrepareReport) -> Iterator[pl.DataFrame]:
        table = read_table(path, self.delimiter)
        report.items_read = len(table)
        require_columns(path, [self.item_id], table.columns)
        ids = _ids(table[self.item_id], path)
        _without_id(ids.is_null(), "items without an ID", self.item_id, table, path, report)
        content = {"row": pl.Series(range(1, len(table) + 1)), "item_id": ids}
        for name in ("title", "text", "categories", "image"):
            if not (columns := self._content(name, path, table, report)):
                continue
            if name in ("title", "text"):
                parts = pl.DataFrame(
                    [text_column(column, path, " " if name == "title" else "\n") for column in columns]
                )
                content[name] = stripped(parts.select(pl.concat_str("*", separator="\n", ignore_nulls=True))[:, 0])
            else:
                content[name] = _list(columns[0], path, self.separator)
        if self.images is None and "image" in content and not any(map(is_url, content["image"].explode().drop_nulls())):
            if "image" in self.model_fields_set:
                raise InputError(f"column '{self.image}' holds images: name their folder (--images)")
            report.notes.append(f"column '{self.image}' is not used: no folder of images was named (--images)")
        if "categories" in content:
            self._compare_separators(content["categories"].drop_nulls(), report)
        yield pl.DataFrame(content).filter(ids.is_not_null())

    def _compare_separators(self, lists: pl.Series, report: PrepareReport) -> None:
        """Report if the categories seem to have another separator."""
        if lists.is_empty() or (lists.list.len() > 1).any():
            return
        for mark in ";,":
            if mark != self.separator and 2 * lists.list.first().str.contains(mark, literal=True).sum() > len(lists):
                report.notes.append(
                    f"column '{self.categories}' contains no {self.separator!r}, but {mark!r} in most rows; if that "
                    f"separates categories, pass --separator '{mark}'"
                )

    def _content(self, name: str, path: Path, table: pl.DataFrame, report: PrepareReport) -> list[pl.Series]:
        """The existing columns for `title`, `text`, ...; a column that the user named must exist."""
        chosen = getattr(self, name) or ()
        columns = [chosen] if isinstance(chosen, str) else chosen
        if name in self.model_fields_set:
            require_columns(path, columns, table.columns)
        for column in columns:
            if column not in table.columns:
                report.notes.append(f"{path.name} has no column '{column}': items have no {name} from it")
        return [table[column] for column in columns if column in table.columns]


def _invalid(wrong: pl.Series, reason: str, problem: str, rows: pl.Series, path: Path, report: PrepareReport) -> None:
    """Count invalid rows. Raises InputError if they are more than the allowed fraction."""
    count, read = int(wrong.sum()), report.interactions_read if reason.startswith("interactions") else report.items_read
    if count > report.rules.max_invalid_fraction * (read or 0):
        raise InputError(f"{problem}; correct it, or drop such rows ({count:,}) with --max-invalid-fraction")
    report.drop(reason, count, f"{path.name}, data row {rows[wrong.arg_max() or 0]}" if count else "")


def _without_id(
    missing: pl.Series, reason: str, column: str, table: pl.DataFrame, path: Path, report: PrepareReport
) -> None:
    """Rows without an ID are invalid (see `_invalid`); blank lines are not."""
    if missing.any():
        missing &= ~table.select(pl.all_horizontal(pl.all().is_null())).to_series()
        problem = f"{path}: column '{column}', data row {(missing.arg_max() or 0) + 1}: no ID"
        _invalid(missing, reason, problem, pl.Series(range(1, len(missing) + 1)), path, report)


def _from_dates(times: pl.Series, where: str) -> tuple[pl.Series, Literal["iso", "ns"], int]:
    """int64, null if a value cannot be read; their unit: microseconds (iso), or ns if a part needs them; new ties."""
    if times.dtype in (pl.Date, pl.Datetime):
        if getattr(times.dtype, "time_unit", None) == "ns" and (times.dt.epoch("ns") % 1000 != 0).any():
            return times.dt.epoch("ns"), "ns", 0
        return times.dt.epoch("us"), "iso", 0
    if times.dtype.is_integer():
        times = times.cast(pl.String)
    if times.dtype != pl.String:
        raise InputError(f"{where} is {times.dtype}; time_unit iso needs dates or texts")
    texts = times.drop_nulls().unique()
    moments = [from_iso(text) for text in texts]
    known = {moment for moment in moments if moment is not None}
    unit: Literal["iso", "ns"] = "iso"
    if any(moment % 1000 for moment in known) and all(abs(moment) < 1 << 63 for moment in known):
        unit, ties = "ns", 0
    else:
        moments = [None if moment is None else moment // 1000 for moment in moments]
        ties = len(known) - len({moment // 1000 for moment in known})
    return times.replace_strict(texts, moments, default=None, return_dtype=pl.Int64), unit, ties


def _ratings(column: pl.Series, path: Path) -> pl.Series:
    """The column as float64, null if it is empty."""
    column = stripped(plain_column(column, path, "a number"))
    numbers = column.cast(pl.Float64, strict=False)
    invalid = column.is_not_null() & (numbers.is_null() | numbers.is_nan())
    if invalid.any():
        row = int(invalid.arg_max() or 0)
        found = f"column '{column.name}', data row {row + 1}: {column[row]!r}"
        raise InputError(f"{path}: {found} is no number, so no rating")
    return numbers


def _ids(column: pl.Series, path: Path) -> pl.Series:
    """Texts; null where empty."""
    return stripped(id_strings(column, path))


def _list(column: pl.Series, path: Path, separator: str) -> pl.Series:
    """Lists of texts: a list column, or the parts of a cell (see `split_list`); null where empty."""
    dtype = column.dtype
    inner = dtype.inner if isinstance(dtype, pl.List | pl.Array) else dtype
    if not (inner.is_integer() or inner in (pl.String, pl.Categorical, pl.Enum, pl.Null)):
        raise InputError(
            f"{path}: column '{column.name}' is {dtype}; it should hold a text or a list of texts a row. Write the "
            "names only, without lists in lists, objects or other numbers"
        )
    if inner is not dtype:
        parts = column.cast(pl.List(pl.String))
        if parts.explode().str.contains(LISTED.pattern).any():  # lists that are written as texts
            cells = [[name for part in cell or () for name in written_list(part or "")] for cell in parts.to_list()]
            parts = pl.Series(parts.name, cells, parts.dtype)
        stripped = parts.list.eval(pl.element().str.strip_chars()).list.eval(pl.element().filter(pl.element() != ""))
        return stripped.to_frame("list").select(pl.when(pl.col("list").list.len() > 0).then("list")).to_series()
    lists: list[list[str] | None] = []
    for row, cell in enumerate(column.cast(pl.String), start=1):
        try:
            lists.append(None if cell is None else split_list(cell, separator))
        except ValueError as error:
            raise InputError(
                f"{path}: column '{column.name}', data row {row}: {excerpt(cell)} {error}; separate the values by "
                f"{separator!r}, or write a list as JSON"
            ) from None
    return pl.Series(lists, dtype=pl.List(pl.String))
