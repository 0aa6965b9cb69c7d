"""MovieLens, as its archives unpack: every layout that GroupLens publishes.

| | ratings | movies |
|---|---|---|
| 100K | `u.data`, tabs | `u.item`, bars, latin-1, a column for each genre |
| 1M, 10M | `ratings.dat`, `::` | `movies.dat`, `::`, latin-1 or UTF-8 |
| latest-small, 20M, 25M, 32M | `ratings.csv` | `movies.csv`, UTF-8 |

`title` is the title as written, with its year; `categories` are the genres. MovieLens has neither texts nor posters:
they can be joined from a table (`item_id`, `text`) and from a folder of images with a file `<movie id>.jpg`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import polars as pl
from pydantic import Field

from msm4sr.data.preparation.catalogue import compare_ids
from msm4sr.data.preparation.columns import stripped, text_column
from msm4sr.data.preparation.reading import INTERACTION_COLUMNS, InvalidRow, read_blocks
from msm4sr.data.preparation.source import SOURCES, PrepareReport, Source
from msm4sr.data.preparation.table_files import read_table
from msm4sr.data.preparation.times import NumberUnit
from msm4sr.data.schema import ITEM_COLUMNS, id_strings, require_columns
from msm4sr.errors import InputError, excerpt

GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
"""The last 19 columns of `u.item`, in order."""
MOVIE_COLUMNS = {name: ITEM_COLUMNS[name] for name in ("item_id", "title", "categories")}

Movie = tuple[str, str | None, list[str] | None]


class Layout(NamedTuple):
    """Names of the files, what separates the fields of a rating, and how a movie is parsed."""

    ratings: str
    movies: str
    separator: str
    movie: Callable[[bytes], Movie]
    header: bool = False


@SOURCES.register("movielens")
class MovieLens(Source):
    """From MovieLens (100K, 1M, 10M, 20M, 25M, 32M, latest-small) to a prepared folder."""

    format: ClassVar[str] = "movielens"

    folder: Path = Field(description="An unpacked archive.")
    texts: Path | None = Field(None, description="A table (CSV, TSV, Parquet) with the columns item_id and text.")
    images: Path | None = Field(None, description="A folder of posters <movie id>.jpg.")
    time_unit: NumberUnit = Field("s", description="Unit of the times since 1970; MovieLens has seconds.")

    @property
    def layout(self) -> Layout:
        """The layout whose ratings are in the folder. Raises InputError if there are none."""
        for layout in LAYOUTS:
            if (self.folder / layout.ratings).is_file():
                return layout
        names = ", ".join(layout.ratings for layout in LAYOUTS)
        raise InputError(f"{self.folder}: none of {names} is here; name the folder that MovieLens' archive unpacks to")

    @property
    def files(self) -> list[Path]:
        paths = (self.folder / self.layout.ratings, self.texts, self.folder / self.layout.movies)
        return [path for path in paths if path is not None]

    def read_interactions(self, report: PrepareReport) -> Iterator[pl.DataFrame]:
        report.order, report.time_unit, layout = "the time of the rating", self.time_unit, self.layout
        parse = partial(_rating, separator=layout.separator)
        return read_blocks(self.files[0], parse, INTERACTION_COLUMNS, report, "interactions", layout.header)

    def read_items(self, report: PrepareReport) -> Iterator[pl.DataFrame]:
        layout = self.layout
        blocks = read_blocks(self.files[-1], layout.movie, MOVIE_COLUMNS, report, "items", layout.header)
        if self.texts is None:
            return blocks
        table = read_table(self.texts)
        require_columns(self.texts, ("item_id", "text"), table.columns)
        ids, texts = id_strings(table["item_id"], self.texts), text_column(table["text"], self.texts)
        kept = pl.DataFrame([stripped(ids), texts]).drop_nulls()
        return self._joined(blocks, kept.unique("item_id", keep="first", maintain_order=True), report)

    def _joined(
        self, blocks: Iterator[pl.DataFrame], texts: pl.DataFrame, report: PrepareReport
    ) -> Iterator[pl.DataFrame]:
        """The movies with their texts; reports if no movie has one."""
        found, movies = 0, list[str]()
        for block in blocks:
            block = block.join(texts, on="item_id", how="left", maintain_order="left")
            found, movies = found + block["text"].count(), movies or block["item_id"].to_list()
            yield block
        if movies and len(texts) and not found:
            report.notes.append(f"no movie has a text: {compare_ids(texts['item_id'].to_list(), movies)}")


def _rating(line: bytes, separator: str) -> tuple[str, str, int, float]:
    """User, item, time, rating."""
    user, item, value, time = _checked(_decode(line).split(separator), 4)
    user, item = _id(user), _id(item)
    try:
        rating, moment = float(value), int(time)
    except ValueError as error:
        raise InvalidRow("ratings or times that are no number", excerpt(f"{value}, {time}")) from error
    if not 0 <= rating <= 5:
        raise InvalidRow("ratings that are negative or over 5")
    if abs(moment) >= 1 << 63:
        raise InvalidRow("impossible dates", time[:30])
    return user, item, moment, rating


def _movie_100k(line: bytes) -> Movie:
    fields = _checked(_decode(line).split("|"), 5 + len(GENRES))
    genres = [genre for genre, flag in zip(GENRES, fields[5:], strict=True) if flag == "1"]
    return _movie(fields[0], "" if fields[1] == "unknown" else fields[1], genres)


def _movie_dat(line: bytes) -> Movie:
    fields = _decode(line).split("::")
    if len(fields) < 3:
        raise InvalidRow("rows with fewer than 3 fields")
    return _movie(fields[0], "::".join(fields[1:-1]), fields[-1].split("|"))


def _movie_csv(line: bytes) -> Movie:
    try:
        fields = _checked(next(csv.reader([_decode(line)], strict=True)), 3)
    except csv.Error as error:
        raise InvalidRow("rows whose quotation marks do not pair") from error
    return _movie(fields[0], fields[1], fields[2].split("|"))


def _movie(item_id: str, title: str, genres: list[str]) -> Movie:
    genres = [genre.strip() for genre in genres if genre.strip() not in ("", "(no genres listed)")]
    return _id(item_id), title.strip() or None, genres or None


def _checked(fields: list[str], count: int) -> list[str]:
    if len(fields) != count:
        raise InvalidRow(f"rows with more or fewer than {count} fields")
    return fields


def _id(field: str) -> str:
    name = field.strip()
    if not (name.isascii() and name.isdigit()):
        raise InvalidRow("IDs that are no number")
    return name


def _decode(line: bytes) -> str:
    """UTF-8, else latin-1: the older archives are in the latter."""
    try:
        return line.decode("utf-8").strip("\r\ufeff")
    except UnicodeDecodeError:
        return line.decode("latin-1").strip("\r")


LAYOUTS = (
    Layout("u.data", "u.item", "\t", _movie_100k),
    Layout("ratings.dat", "movies.dat", "::", _movie_dat),
    Layout("ratings.csv", "movies.csv", ",", _movie_csv, header=True),
)
