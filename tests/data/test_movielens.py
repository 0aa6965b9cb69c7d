"""Every layout that MovieLens has been published in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from tiny_images import tiny_image

from msm4sr.data.preparation.pipeline import prepare
from msm4sr.data.sources.movielens import GENRES, MovieLens
from msm4sr.errors import InputError

RATINGS = [("1", "31", 2.5, 1_260_759_144), ("7", "2", 4.0, 851_868_750), ("1", "2", 3.0, 1_260_759_179)]
MOVIES = [
    ("2", "Misérables, Les (1995)", ["Drama", "Musical"]),
    ("31", 'Seven, the "7" (1995)', ["Thriller"]),
    ("99", "None (1999)", []),
]


def flags(genres: list[str]) -> str:
    return "|".join("1" if genre in genres else "0" for genre in GENRES)


def write_100k(folder: Path) -> None:
    (folder / "u.data").write_text("".join(f"{u}\t{i}\t{r:g}\t{t}\n" for u, i, r, t in RATINGS))
    lines = [f"{i}|{title}|01-Jan-1995||http://us.imdb.com/x|{flags(genres)}\n" for i, title, genres in MOVIES]
    (folder / "u.item").write_text("".join(lines), encoding="latin-1")


def write_dat(folder: Path, encoding: str) -> None:
    (folder / "ratings.dat").write_text("".join(f"{u}::{i}::{r:g}::{t}\n" for u, i, r, t in RATINGS))
    lines = [f"{i}::{title}::{'|'.join(genres) or '(no genres listed)'}\n" for i, title, genres in MOVIES]
    (folder / "movies.dat").write_text("".join(lines), encoding=encoding)


def write_csv(folder: Path) -> None:
    rows = "".join(f"{u},{i},{r},{t}\r\n" for u, i, r, t in RATINGS)
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\r\n" + rows)
    quoted = [
        (i, '"' + title.replace('"', '""') + '"', "|".join(genres) or "(no genres listed)")
        for i, title, genres in MOVIES
    ]
    (folder / "movies.csv").write_text("movieId,title,genres\r\n" + "".join(f"{i},{t},{g}\r\n" for i, t, g in quoted))


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "100K": write_100k,
    "1M": lambda folder: write_dat(folder, "latin-1"),
    "10M": lambda folder: write_dat(folder, "utf-8"),
    "20M, 25M, 32M, latest-small": write_csv,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_read_as_published(tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout](tmp_path)
    report = prepare(MovieLens(folder=tmp_path), tmp_path / "out")
    assert pl.read_parquet(tmp_path / "out" / "interactions.parquet").rows() == [
        ("1", "31", 1_260_759_144, 2.5),
        ("1", "2", 1_260_759_179, 3.0),
        ("7", "2", 851_868_750, 4.0),
    ]
    items = pl.read_parquet(tmp_path / "out" / "items.parquet")
    assert items.select("item_id", "title", "categories").rows() == [
        (i, title, genres or None) for i, title, genres in MOVIES
    ]
    assert report.dropped == []


def test_texts_and_posters_are_joined(tmp_path: Path) -> None:
    write_csv(tmp_path)
    (tmp_path / "texts.csv").write_text('item_id,text\n31,"A film, dark."\n2, \n5,Unknown.\n')
    (tmp_path / "posters").mkdir()
    (tmp_path / "posters" / "2.jpg").write_bytes(tiny_image(kind="JPEG"))
    source = MovieLens(folder=tmp_path, texts=tmp_path / "texts.csv", images=tmp_path / "posters")
    prepare(source, tmp_path / "out")
    items = pl.read_parquet(tmp_path / "out" / "items.parquet").select("item_id", "text", "image")
    assert items.rows() == [("2", None, ["images/2.jpg"]), ("31", "A film, dark.", None), ("99", None, None)]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("1,2,3", "rows with more or fewer than 4 fields"),
        ("1,2,good,5", "ratings or times that are no number"),
        ("1,2,3.5,-7", "impossible dates"),
        ("1,2,3.5,1e9", "ratings or times that are no number"),
        ("1,2,-1,5", "ratings that are negative or over 5"),
        ("1,2,nan,5", "ratings that are negative or over 5"),
        ("u1,2,3,5", "IDs that are no number"),
    ],
)
def test_invalid_ratings_are_counted_by_kind(tmp_path: Path, line: str, kind: str) -> None:
    write_csv(tmp_path)
    with (tmp_path / "ratings.csv").open("a") as file:
        file.write("8,2,1.0,5\n" * 100 + line + "\n")
    report = prepare(MovieLens(folder=tmp_path), tmp_path / "out")
    assert (f"interactions: {kind}", 1, "ratings.csv, line 105") in [
        (d.reason, d.count, d.example.partition(":")[0]) for d in report.dropped
    ]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none of u\.data, ratings\.dat, ratings\.csv is here"):
        prepare(MovieLens(folder=tmp_path), tmp_path / "out")
    write_csv(tmp_path)
    (tmp_path / "movies.csv").unlink()
    with pytest.raises(InputError, match=r"movies\.csv: no such file"):
        prepare(MovieLens(folder=tmp_path), tmp_path / "out")


def test_texts_that_belong_to_no_movie_are_reported_and_nested_ones_refused(tmp_path: Path) -> None:
    write_csv(tmp_path)
    (tmp_path / "texts.csv").write_text("item_id,text\n0031,A film.\n")
    report = prepare(MovieLens(folder=tmp_path, texts=tmp_path / "texts.csv"), tmp_path / "out")
    assert (
        "no movie has a text: '0031' and '31' of the catalogue differ by leading zeros; write them alike"
        in report.notes
    )
    pl.DataFrame({"item_id": [31], "text": [["A film."]]}).write_parquet(tmp_path / "texts.parquet")
    with pytest.raises(InputError, match=r"texts\.parquet: column 'text' is List\(String\)"):
        prepare(MovieLens(folder=tmp_path, texts=tmp_path / "texts.parquet"), tmp_path / "other")
