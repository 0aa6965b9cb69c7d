"""From RecBole's atomic files to a prepared folder, and back (see `msm4sr.data.export`).

`NAME.inter` and `NAME.item` are tables with tabs; the header says name and type of each column, as in
`item_id:token`, `timestamp:float`, `genre:token_seq`. There is no quoting; the values of a list stand apart by
one separator, a space unless RecBole's `seq_separator` says else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from msm4sr.data.schema import missing_column
from msm4sr.data.sources.pipeline import (
    END_OF_TIME,
    MICROSECONDS,
    PrepareReport,
    Rules,
    Source,
    prepare,
    read_interactions,
)
from msm4sr.data.sources.rows import BadRow, BadRows, first_line, read_rows
from msm4sr.errors import InputError

RECBOLE_RULES = Rules()
TITLES = ("title", "movie_title", "item_name", "name")
TEXTS = ("text", "description")
CATEGORIES = ("categories", "category", "class", "genre", "genres")

Item = tuple[str, str | None, str | None, list[str] | None, list[str] | None]


class RecboleColumns(BaseModel):
    """Which column means what. None: the first that is there of the names which RecBole's own files use."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    user: str = Field("user_id", description="Who, in the interactions.")
    item: str = Field("item_id", description="What, in both files.")
    time: str | None = Field(None, description="When; 'timestamp', else 'position' where None.")
    rating: str | None = Field(None, description="How much it was liked; 'rating' where None.")
    title: str | None = Field(None, description=", ".join(TITLES))
    text: str | None = Field(None, description=", ".join(TEXTS))
    categories: str | None = Field(None, description=", ".join(CATEGORIES))
    image: str | None = Field(None, description="image")
    separator: str = Field(" ", min_length=1, description="Stands between the values of a list.")


def prepare_recbole(
    path: Path,
    out: Path,
    images: Path | None = None,
    columns: RecboleColumns = RecboleColumns(),
    rules: Rules = RECBOLE_RULES,
) -> PrepareReport:
    """Write the prepared folder `out` from `path`, a `.inter` file or a folder with one; a `.item` file of the
    same name beside it is the catalogue.

    Raises InputError: no such files or columns; see `pipeline.prepare`.
    """
    inter = _inter_file(path)
    item_file = inter.with_suffix(".item")
    header = _header(inter)
    user, item = _required(inter, header, columns.user), _required(inter, header, columns.item)
    time = _place(inter, header, columns.time, ("timestamp", "position"))
    rating = _place(inter, header, columns.rating, ("rating",))
    counts_time = time is not None and header[time] != "position"

    def interaction(line: bytes) -> tuple[str, str, int | None, float | None]:
        fields = _fields(line, header)
        scale = MICROSECONDS if counts_time else 1
        when = None if time is None else _number(fields[time], "times") * scale
        if when is not None and not 0 <= when < END_OF_TIME * MICROSECONDS:
            raise BadRow("impossible dates")
        value = None if rating is None or not fields[rating] else _number(fields[rating], "ratings")
        if value is not None and not 0 <= value <= 1000:
            raise BadRow("negative or impossible ratings")
        return _id(fields[user]), _id(fields[item]), None if when is None else round(when), value

    def read(report: PrepareReport) -> Iterator[pl.DataFrame]:
        lacking = [name for name, place in (("time", time), ("rating", rating)) if place is None]
        for block in read_interactions(inter, interaction, report, header=True):
            yield block.drop(lacking)

    source = Source(
        format="recbole",
        files=[inter, *([item_file] if item_file.is_file() else [])],
        interactions=read,
        items=_items(item_file, columns) if item_file.is_file() else None,
        settings=columns.model_dump(mode="json"),
        order="the order of the rows in the file (no time column)" if time is None else f"column '{header[time]}'",
        positions=time is None or not counts_time,
    )
    return prepare(source, out, rules, images)


def _items(path: Path, columns: RecboleColumns) -> Callable[[PrepareReport], Iterator[pl.DataFrame]]:
    header = _header(path)
    item_id = _required(path, header, columns.item)
    title, text = _place(path, header, columns.title, TITLES), _place(path, header, columns.text, TEXTS)
    categories = _place(path, header, columns.categories, CATEGORIES)
    image = _place(path, header, columns.image, ("image",))

    def item(line: bytes) -> Item:
        fields = _fields(line, header)

        def texts(place: int | None) -> list[str] | None:
            parts = [] if place is None else fields[place].split(columns.separator)
            return [part.strip() for part in parts if part.strip()] or None

        def words(place: int | None) -> str | None:
            return None if place is None else fields[place].strip() or None

        return _id(fields[item_id]), words(title), words(text), texts(categories), texts(image)

    places = {"title": title, "text": text, "categories": categories, "image": image}
    lacking = [name for name, place in places.items() if place is None]

    def read(report: PrepareReport) -> Iterator[pl.DataFrame]:
        bad = BadRows()
        words, lists = pl.String(), pl.List(pl.String())
        schema = {
            "row": pl.Int64(),
            "item_id": words,
            "title": words,
            "text": words,
            "categories": lists,
            "image": lists,
        }
        for numbers, rows in read_rows(path, item, bad, report.rules.max_invalid_fraction, header=True):
            yield pl.DataFrame([numbers, *zip(*rows, strict=True)], schema).drop(lacking)
        report.items_read = bad.rows
        report.drop_bad(path, "items", bad)

    return read


def _inter_file(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.glob("*.inter")) if path.is_dir() else []
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} files NAME.inter; name the one that is meant" if path.is_dir() else "no such file or folder"
    raise InputError(f"{path}: {what}")


def _header(path: Path) -> list[str]:
    """Names of the columns."""
    fields = first_line(path).split("\t")
    if not all(":" in field for field in fields):
        raise InputError(
            f"{path}: line 1: {fields[0]!r} is no column of an atomic file; expected name:type, as in user_id:token"
        )
    return [field.rpartition(":")[0].strip() for field in fields]


def _required(path: Path, header: list[str], name: str) -> int:
    if name not in header:
        raise missing_column(path, name, header)
    return header.index(name)


def _place(path: Path, header: list[str], name: str | None, usual: Sequence[str] = ()) -> int | None:
    """Where a column stands. One that is named must be there; else the first of the usual names counts."""
    if name is not None:
        return _required(path, header, name)
    return next((header.index(one) for one in usual if one in header), None)


def _fields(line: bytes, header: list[str]) -> list[str]:
    try:
        fields = line.decode("utf-8").rstrip("\r").split("\t")
    except UnicodeDecodeError as error:
        raise BadRow("rows that are not UTF-8") from error
    if len(fields) != len(header):
        raise BadRow("rows with more or fewer fields than the header")
    return fields


def _id(field: str) -> str:
    if not (name := field.strip()):
        raise BadRow("missing user or item IDs")
    return name


def _number(field: str, what: str) -> float:
    try:
        number = float(field)
    except ValueError as error:
        raise BadRow(f"{what} that are no number") from error
    if not math.isfinite(number):
        raise BadRow(f"{what} that are no number")
    return number
