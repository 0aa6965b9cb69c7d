"""RecBole's atomic files (see `msm4sr.data.export` for the way back).

`NAME.inter` and `NAME.item` are tables with tabs; the header gives name and type of each column, as in `item_id:token`,
`timestamp:float`, `genre:token_seq`. There is no quoting; the values of a list are separated by a space, unless
RecBole's `seq_separator` says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import polars as pl
from pydantic import Field

from msm4sr.data.preparation.lists import split_list, written_list
from msm4sr.data.preparation.reading import INTERACTION_COLUMNS, InvalidRow, read_blocks, read_header
from msm4sr.data.preparation.source import SOURCES, PrepareReport, Source
from msm4sr.data.preparation.times import UNIT_HELP, TimeUnit, as_numbers, from_iso
from msm4sr.data.schema import ITEM_COLUMNS, refuse_duplicates, require_columns
from msm4sr.errors import InputError, excerpt

TITLES = ("title", "movie_title", "item_name", "name")
TEXTS = ("text", "description")
CATEGORIES = ("categories", "category", "class", "genre", "genres")
TYPES = {**ITEM_COLUMNS, **INTERACTION_COLUMNS, "time": pl.String(), "position": pl.Int64()}

Column = tuple[str | None, Callable[[str], Any]]
"""Its name in the file, if it has one, and the parser of its fields."""


@SOURCES.register("recbole")
class RecBole(Source):
    """From RecBole's atomic files (NAME.inter, NAME.item) to a prepared folder.

    A column that is named must exist; without a name, the first existing of the names that RecBole's own files use.
    """

    format: ClassVar[str] = "recbole"

    inter: Path = Field(description="NAME.inter, or its folder; NAME.item beside it is the catalogue.")
    user: str = Field("user_id", description="User column of the interactions.")
    item: str = Field("item_id", description="Item column of both files.")
    time: str | None = Field(None, description="Time column of the interactions, else timestamp or position.")
    time_unit: TimeUnit = Field("auto", description=UNIT_HELP)
    rating: str | None = Field(None, description="Rating column of the interactions, else rating.")
    title: str | None = Field(None, description=f"Title column of the items, else {', '.join(TITLES)}.")
    text: str | None = Field(None, description=f"Text column of the items, else {', '.join(TEXTS)}.")
    categories: str | None = Field(None, description=f"Categories column of the items, else {', '.join(CATEGORIES)}.")
    image: str | None = Field(None, description="Image column of the items, else image.")
    separator: str = Field(" ", min_length=1, description="Between the values of a list.")

    @property
    def files(self) -> list[Path]:
        found = [self.inter] if self.inter.is_file() else sorted(self.inter.glob("*.inter"))
        if len(found) != 1:
            several = f"{len(found)} files NAME.inter; name the one that is meant"
            raise InputError(f"{self.inter}: {several if self.inter.is_dir() else 'no such file or folder'}")
        items = found[0].with_suffix(".item")
        return [*found, *([items] if items.is_file() else [])]

    def read_interactions(self, report: PrepareReport) -> Iterator[pl.DataFrame]:
        table = _Table(self.files[0])
        time = table.find(self.time, ("timestamp", "position"))
        report.order = "the order of the rows in the file (no time column)" if time is None else f"column '{time}'"
        report.time_unit = self.time_unit
        columns = {
            "position" if time == "position" else "time": (time, _position if time == "position" else self._time),
            "rating": (table.find(self.rating, ("rating",)), _rating),
            "user_id": (table.find(self.user), _id),
            "item_id": (table.find(self.item), _id),
        }
        return self._timed(table.blocks(columns, report, "interactions"), report)

    def _timed(self, blocks: Iterator[pl.DataFrame], report: PrepareReport) -> Iterator[pl.DataFrame]:
        """The blocks with their times as numbers; reports how many times became equal."""
        ties = 0
        for block in blocks:
            if "time" in block.columns:
                numbers, equal = as_numbers(block["time"])
                if self.time_unit == "iso":  # ns so far
                    finer, numbers = numbers, numbers // 1000
                    equal += finer.n_unique() - numbers.n_unique()
                block, ties = block.with_columns(time=numbers), ties + equal
            yield block
        if ties:
            report.notes.append(f"{report.order}: {ties:,} different times become equal: they have too many digits")

    def read_items(self, report: PrepareReport) -> Iterator[pl.DataFrame] | None:
        if len(self.files) == 1:
            return None
        table = _Table(self.files[1])
        columns = {
            "item_id": (table.find(self.item), _id),
            "title": (table.find(self.title, TITLES), lambda field: _text(field, " ")),
            "text": (table.find(self.text, TEXTS), lambda field: _text(field, "\n")),
            "categories": (table.find(self.categories, CATEGORIES), self._list),
            "image": (table.find(self.image, ("image",)), self._list),
        }
        return table.blocks(columns, report, "items")

    def _time(self, field: str) -> str:
        """The number as text, so that no digit is lost; nanoseconds for ISO 8601."""
        if self.time_unit != "iso":
            _number(field, "times", "" if from_iso(field.strip()) is None else ", which fits --time-unit iso")
            return field.strip()
        if (moment := from_iso(field.strip())) is None:
            raise InvalidRow("times that are no ISO 8601 date", excerpt(field))
        return str(moment)

    def _list(self, field: str) -> list[str] | None:
        try:
            return split_list(field, self.separator)
        except ValueError as error:
            raise InvalidRow(f"lists that cannot be read ({error})") from error


class _Table:
    """An atomic file and the names of its columns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        fields = read_header(path).split("\t")
        if not all(":" in field for field in fields) or (len(fields) == 1 and fields[0].count(":") > 1):
            raise InputError(
                f"{path}: line 1: {excerpt(fields[0])} is no column of an atomic file; "
                "expected name:type, as in user_id:token, and tabs between columns"
            )
        self.names = [field.rpartition(":")[0].strip() for field in fields]
        refuse_duplicates(path, self.names)

    def find(self, name: str | None, usual: Sequence[str] = ()) -> str | None:
        """The column `name`, which must exist; without a name the first existing of the usual names, or None."""
        if name is not None:
            require_columns(self.path, [name], self.names)
            return name
        return next((candidate for candidate in usual if candidate in self.names), None)

    def blocks(
        self, columns: Mapping[str, Column], report: PrepareReport, table: Literal["interactions", "items"]
    ) -> Iterator[pl.DataFrame]:
        """Blocks with those of our columns that the file has."""
        found = {ours: (self.names.index(name), parse) for ours, (name, parse) in columns.items() if name is not None}
        parse = partial(self._parse, columns=list(found.values()))
        return read_blocks(self.path, parse, {ours: TYPES[ours] for ours in found}, report, table, header=True)

    def _parse(self, line: bytes, columns: Sequence[tuple[int, Callable[[str], Any]]]) -> tuple[Any, ...]:
        try:
            fields = line.decode("utf-8").rstrip("\r").split("\t")
        except UnicodeDecodeError as error:
            raise InvalidRow("rows that are not UTF-8") from error
        if len(fields) != len(self.names):
            raise InvalidRow("rows with more or fewer fields than the header")
        return tuple(parse(fields[place]) for place, parse in columns)


def _id(field: str) -> str:
    if not (name := field.strip()):
        raise InvalidRow("missing user or item IDs")
    return name


def _text(field: str, separator: str) -> str | None:
    return separator.join(written_list(field)).strip() or None


def _position(field: str) -> int:
    position = _number(field, "positions")
    if not 0 <= position < 1 << 53:
        raise InvalidRow("negative or impossible positions")
    return round(position)


def _rating(field: str) -> float | None:
    value = _number(field, "ratings") if field else None
    if value is not None and not 0 <= value <= 1000:
        raise InvalidRow("negative or impossible ratings")
    return value


def _number(field: str, what: str, hint: str = "") -> float:
    with suppress(ValueError):
        if field.isascii() and "_" not in field and math.isfinite(number := float(field)):  # Python reads both
            return number
    raise InvalidRow(f"{what} that are no number", excerpt(field) + hint)
