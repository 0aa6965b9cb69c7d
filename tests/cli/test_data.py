"""`prepare amazon | movielens | recbole | parquet`, `export`, `fetch-images`, `data info` on the command line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from calling import Cli, small_items, small_log, write_folder

Refused = Callable[..., str]


@pytest.fixture
def amazon(tmp_path: Path) -> tuple[Path, Path]:
    reviews = [
        {"reviewerID": f"A{u}", "asin": f"B{i}", "overall": float(1 + i % 5), "unixReviewTime": 1_300_000_000 + i}
        for u in range(30)
        for i in range(u % 7 + 1)
    ]
    items = [
        {"asin": f"B{i}", "title": f"Thing {i}", "imageURLHighRes": [f"https://a.invalid/{i}.jpg"]} for i in range(9)
    ]
    paths = tmp_path / "Things_5.json.gz", tmp_path / "meta_Things.json.gz"
    for path, rows in zip(paths, (reviews, items), strict=True):
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return paths


def test_from_amazons_files_to_numbers_and_a_page(cli: Cli, tmp_path: Path, amazon: tuple[Path, Path]) -> None:
    out = tmp_path / "things"
    called = cli("prepare", "amazon", *amazon, out, "--like-paper")
    assert called.code == 0, called
    assert f"next: msm4sr fetch-images {out}" in called.out
    assert json.loads((out / "provenance.json").read_text())["settings"]["user_core"] == 5
    called = cli("data", "info", out, "--html", tmp_path / "page.html")
    assert called.code == 0, called
    assert "Users 12" in called.out
    assert "Items with unfetched images 7 (100.0%)" in called.out
    assert "<svg" in (tmp_path / "page.html").read_text()


def test_images_that_cannot_be_fetched_are_counted(cli: Cli, tmp_path: Path, amazon: tuple[Path, Path]) -> None:
    out = tmp_path / "things"
    cli("prepare", "amazon", *amazon, out)
    called = cli("fetch-images", out, "--attempts", "1")
    assert called.code == 0, called
    assert "0 fetched, 0 were there, 7 failed; listed in failed-images.jsonl" in called.out
    assert len((out / "failed-images.jsonl").read_text().splitlines()) == 7


@pytest.mark.parametrize(
    ("options", "users"),
    [((), 30), (("--user-core", "3"), 20), (("--min-rating", "3"), 20), (("--like-paper", "--user-core", "7"), 4)],
)
def test_rules_are_options(
    cli: Cli, tmp_path: Path, amazon: tuple[Path, Path], options: tuple[str, ...], users: int
) -> None:
    assert cli("prepare", "amazon", *amazon, tmp_path / "out", *options).code == 0
    assert pl.read_parquet(tmp_path / "out" / "interactions.parquet")["user_id"].n_unique() == users


def test_wrong_files_are_named_in_one_line(refused: Refused, tmp_path: Path, amazon: tuple[Path, Path]) -> None:
    reviews, meta = amazon
    message = refused("prepare", "amazon", meta, meta, tmp_path / "out")
    assert f"{meta}: invalid rows: 9 of 9 (100 %), more than --max-invalid-fraction 0.01 allows" in message
    assert "no such file" in refused("prepare", "amazon", tmp_path / "x", meta, tmp_path / "out")
    reviews.write_bytes(reviews.read_bytes()[:-20])
    assert "cut short or damaged" in refused("prepare", "amazon", *amazon, tmp_path / "out")
    assert "none of u.data" in refused("prepare", "movielens", tmp_path, tmp_path / "out")
    assert "0 files NAME.inter" in refused("prepare", "recbole", tmp_path, tmp_path / "out")
    assert "no such folder" in refused("export", "recbole", tmp_path / "x", tmp_path / "out")
    assert "no such folder" in refused("fetch-images", tmp_path / "x")
    assert "no such folder" in refused("data", "info", tmp_path / "x")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("other", ["recbole", "csv"])
def test_what_export_says_comes_next_brings_the_data_back(cli: Cli, tmp_path: Path, other: str) -> None:
    folder = write_folder(
        tmp_path / "data", small_log(), small_items(title=[f"T {i}" for i in range(6)], categories=[["a b", "c"]] * 6)
    )
    called = cli("export", other, folder, tmp_path / "shop")
    assert called.code == 0, called
    words = called.out.partition("next: msm4sr ")[2].replace("'", "").split()
    called = cli(*[str(tmp_path / "back") if word == "DATA" else word for word in words])
    assert called.code == 0, called
    for name, columns in (
        ("interactions", ["user_id", "item_id", "timestamp"]),
        ("items", ["item_id", "title", "categories"]),
    ):
        before, after = (
            pl.read_parquet(path / f"{name}.parquet").select(columns) for path in (folder, tmp_path / "back")
        )
        assert after.equals(before)


def test_parquet_files_are_tables_too(cli: Cli, tmp_path: Path) -> None:
    pl.DataFrame(small_log()).write_parquet(tmp_path / "log.parquet")
    pl.DataFrame(small_items()).write_parquet(tmp_path / "things.parquet")
    called = cli("prepare", "parquet", tmp_path / "log.parquet", tmp_path / "things.parquet", tmp_path / "out")
    assert called.code == 0, called
    assert "40 kept of 40, 8 users" in called.out


def test_movielens(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "ml-latest-small"
    folder.mkdir()
    (folder / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n" + "".join(f"1,{i},4.0,{i}\n" for i in range(5))
    )
    (folder / "movies.csv").write_text("movieId,title,genres\n" + "".join(f"{i},M{i} (1999),Drama\n" for i in range(5)))
    called = cli("prepare", "movielens", folder, tmp_path / "out")
    assert called.code == 0, called
    assert "5 kept of 5, 1 users" in called.out
