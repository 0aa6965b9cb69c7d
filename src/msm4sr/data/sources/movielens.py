"""From a MovieLens folder, as it is unpacked, to a prepared folder: every layout that GroupLens publishes.

| | ratings | movies |
|---|---|---|
| 100K | `u.data`, tabs | `u.item`, bars, latin-1, a column for each genre |
| 1M, 10M | `ratings.dat`, `::` | `movies.dat`, `::`, latin-1 or UTF-8 |
| latest-small, 20M, 25M, 32M | `ratings.csv` | `movies.csv`, UTF-8 |

`title` is the title as written, with its year; `categories` are the genres. Texts and posters are not part of
MovieLens: they can be joined from a table (`item_id`, `text`) and from a folder with a file `<movie id>.jpg`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl

from msm4sr.data.schema import missing_column
from msm4sr.data.sources.csv import read_table
from msm4sr.data.sources.pipeline import (
    END_OF_TIME,
    MICROSECONDS,
    PrepareReport,
    Rules,
    Source,
    prepare,
    read_interactions,
)
from msm4sr.data.sources.rows import BadRow, BadRows, read_rows
from msm4sr.errors import InputError

MOVIELENS_RULES = Rules()
GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
"""The last 19 columns of `u.item`, in order."""
NO_GENRE = "(no genres listed)"

Movie = tuple[str, str | None, list[str] | None]


class Layout(NamedTuple):
    ratings: str
    movies: str
    separator: str
    movie: Callable[[bytes], Movie]
    header: bool = False


def prepare_movielens(
    folder: Path,
    out: Path,
    texts: Path | None = None,
    posters: Path | None = None,
    rules: Rules = MOVIELENS_RULES,
) -> PrepareReport:
    """Write the prepared folder `out` from `folder`, in which a MovieLens archive was unpacked.

    `texts`: a table (CSV, TSV, Parquet) with the columns `item_id` and `text`. `posters`: a folder of pictures.

    Raises InputError: no layout fits; see `pipeline.prepare`.
    """
    layout = _layout(folder)
    joined = None if texts is None else _texts(texts)

    def read_movies(report: PrepareReport) -> Iterator[pl.DataFrame]:
        bad = BadRows()
        path, share = folder / layout.movies, report.rules.max_invalid_fraction
        schema = {"row": pl.Int64(), "item_id": pl.String(), "title": pl.String(), "categories": pl.List(pl.String())}
        for numbers, rows in read_rows(path, layout.movie, bad, share, layout.header):
            block = pl.DataFrame([numbers, *zip(*rows, strict=True)], schema)
            yield block if joined is None else block.join(joined, on="item_id", how="left", maintain_order="left")
        report.items_read = bad.rows
        report.drop_bad(path, "items", bad)

    source = Source(
        format="movielens",
        files=[folder / layout.ratings, *([] if texts is None else [texts]), folder / layout.movies],
        interactions=lambda report: read_interactions(
            folder / layout.ratings, lambda line: rating(line, layout.separator), report, layout.header
        ),
        items=read_movies,
        order="the time of the rating",
    )
    return prepare(source, out, rules, posters)


def _layout(folder: Path) -> Layout:
    for layout in LAYOUTS:
        if (folder / layout.ratings).is_file():
            return layout
    names = ", ".join(layout.ratings for layout in LAYOUTS)
    raise InputError(f"{folder}: none of {names} is here; name the folder that MovieLens' archive unpacks to")


# Rows


def rating(line: bytes, separator: str) -> tuple[str, str, int, float]:
    """User, item, time in microseconds, rating. Raises BadRow."""
    fields = _decode(line).split(separator)
    if len(fields) != 4:
        raise BadRow("rows with more or fewer than 4 fields")
    user, item = _id(fields[0]), _id(fields[1])
    try:
        value, time = float(fields[2]), int(fields[3])
    except ValueError as error:
        raise BadRow("ratings or times that are no number") from error
    if not 0 <= value <= 5:
        raise BadRow("ratings that are negative or over 5")
    if not 0 <= time < END_OF_TIME:
        raise BadRow("impossible dates")
    return user, item, time * MICROSECONDS, value


def _movie_100k(line: bytes) -> Movie:
    fields = _decode(line).split("|")
    if len(fields) != 5 + len(GENRES):
        raise BadRow(f"rows with more or fewer than {5 + len(GENRES)} fields")
    genres = [genre for genre, flag in zip(GENRES, fields[5:], strict=True) if flag == "1"]
    return _movie(fields[0], "" if fields[1] == "unknown" else fields[1], genres)


def _movie_dat(line: bytes) -> Movie:
    fields = _decode(line).split("::")
    if len(fields) < 3:
        raise BadRow("rows with fewer than 3 fields")
    return _movie(fields[0], "::".join(fields[1:-1]), fields[-1].split("|"))


def _movie_csv(line: bytes) -> Movie:
    try:
        fields = next(csv.reader([_decode(line)], strict=True))
    except csv.Error as error:
        raise BadRow("rows whose quotation marks do not pair") from error
    if len(fields) != 3:
        raise BadRow("rows with more or fewer than 3 fields")
    return _movie(fields[0], fields[1], fields[2].split("|"))


def _movie(item_id: str, title: str, genres: list[str]) -> Movie:
    genres = [genre.strip() for genre in genres if genre.strip() not in ("", NO_GENRE)]
    return _id(item_id), title.strip() or None, genres or None


def _id(field: str) -> str:
    name = field.strip()
    if not (name.isascii() and name.isdigit()):
        raise BadRow("IDs that are no number")
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


def _texts(path: Path) -> pl.DataFrame:
    """`item_id` and `text`, the first of an item, without the empty ones."""
    table = read_table(path)
    for name in ("item_id", "text"):
        if name not in table.columns:
            raise missing_column(path, name, table.columns)
    table = table.select(pl.col("item_id", "text").cast(pl.String).str.strip_chars())
    return table.filter(pl.col("text") != "").unique("item_id", keep="first", maintain_order=True)
