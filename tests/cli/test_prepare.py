"""`prepare`: what it refuses, and that no unfinished folder remains."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from calling import Cli

Refused = Callable[..., str]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    rows = [f"{user},{item},{1_700_000_000 + item}" for user in "ab" for item in range(4)]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    return tmp_path / "log.csv"


@pytest.fixture
def items(tmp_path: Path) -> Path:
    (tmp_path / "items.csv").write_text("item_id,title\n0,Zero\n1,One\n2,Two\n3,Three\n")
    return tmp_path / "items.csv"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "prepared"


@pytest.fixture
def refused_csv(refused: Refused, log: Path, items: Path, out: Path) -> Callable[..., str]:
    def message(*options: str | Path) -> str:
        said = refused("prepare", "csv", log, items, out, *options)
        assert not out.parent.exists() or not list(out.parent.iterdir())
        return said

    return message


def test_a_table_that_is_not_there(refused_csv: Refused, log: Path, items: Path) -> None:
    items.unlink()
    assert f"{items}: no such file" in refused_csv()
    items.write_text("item_id\n1\n")
    log.unlink()
    assert f"{log}: no such file" in refused_csv()


def test_a_column_that_is_not_there(refused_csv: Refused, log: Path) -> None:
    log.write_text(log.read_text().replace("user_id", "userid"))
    message = refused_csv()
    assert f"{log}: no column 'user_id'; the file has: userid, item_id, timestamp; did you mean 'userid'?" in message


def test_a_column_that_was_named_but_is_not_there(refused_csv: Refused, items: Path) -> None:
    assert f"{items}: no column 'headline'" in refused_csv("--title", "headline")


@pytest.mark.parametrize("options", [("--user", "item_id"), ("--item", "timestamp")])
def test_two_roles_of_one_column(refused_csv: Refused, log: Path, options: tuple[str, str]) -> None:
    assert f"{log}: column '{options[1]}' is named twice; users, items, times" in refused_csv(*options)


def test_a_text_column_that_is_named_twice(refused_csv: Refused) -> None:
    assert "--text: a column is named twice" in refused_csv("--text", "title", "--text", "title")


def test_an_optional_column_may_be_missing_and_is_reported(cli: Cli, log: Path, items: Path, out: Path) -> None:
    called = cli("prepare", "csv", log, items, out)
    assert called.code == 0, called
    assert "4 with title, 0 text" in called.out
    assert "no column 'text'" in called.out
    assert sorted(file.name for file in out.iterdir()) == [
        "images",
        "interactions.parquet",
        "items.parquet",
        "provenance.json",
    ]


def test_a_broken_row(refused_csv: Refused, log: Path) -> None:
    log.write_text(log.read_text() + "c,1\n")
    assert "line 10: 2 fields where the header has 3" in refused_csv()


def test_a_time_that_is_none(refused_csv: Refused, log: Path) -> None:
    log.write_text(log.read_text() + "c,1,tomorrow\n")
    message = refused_csv()
    assert "data row 9: 'tomorrow' is no time; expected seconds since 1970" in message


def test_rows_that_are_dropped_are_counted(cli: Cli, log: Path, items: Path, out: Path) -> None:
    log.write_text(log.read_text() + "c,99,1700000000\n,1,1700000000\n")
    called = cli("prepare", "csv", log, items, out, "--max-invalid-fraction", "0.1")
    assert called.code == 0, called
    assert "8 kept of 10" in called.out
    assert "dropped 1 interactions without a user ID" in called.out
    assert (
        "dropped 1 interactions with an item that the catalogue lacks (first: log.csv, data row 9: '99')" in called.out
    )


def test_a_row_without_a_user_id_is_invalid(refused_csv: Refused, log: Path) -> None:
    log.write_text(log.read_text() + ",1,1700000000\n")
    assert "column 'user_id', data row 9: no ID; correct it, or drop invalid rows (1) with --max-" in refused_csv()


@pytest.mark.parametrize(("mark", "shown"), [(";", "';'"), ("\t", r"'\t'")])
def test_another_delimiter_is_named(
    refused_csv: Refused, cli: Cli, log: Path, items: Path, mark: str, shown: str
) -> None:
    log.write_text(log.read_text().replace(",", mark))
    assert f"pass --delimiter {shown} (for both tables" in refused_csv()
    items.write_text(items.read_text().replace(",", mark))
    option = shown.strip("'")
    assert cli("prepare", "csv", log, items, log.parent / "other", "--delimiter", option).code == 0


def test_line_ends_of_cr_alone(refused_csv: Refused, log: Path) -> None:
    log.write_bytes(log.read_bytes().replace(b"\n", b"\r"))
    message = refused_csv()
    assert "the lines end in CR alone" in message
    assert len(message) < 300


def test_a_long_header_is_cut_in_the_message(refused_csv: Refused, log: Path) -> None:
    log.write_text("x" * 5000 + "," + ",".join(f"c{n}" for n in range(900)) + "\n")
    message = refused_csv()
    assert "no column 'user_id'" in message
    assert len(message) < 700


def test_a_log_of_a_header_only(refused_csv: Refused, log: Path) -> None:
    log.write_text("user_id,item_id,timestamp\n")
    assert f"{log}: no rows, only a header" in refused_csv()


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("{:03}", "'000' and '0' of the catalogue differ by leading zeros (and 3 more); write them alike"),
        ("{}.0", "'0.0' and '0' of the catalogue differ by a final .0"),
        ("sku-{}", "'sku-0' is not in the catalogue, which has '0'; do both use the same IDs?"),
    ],
)
def test_ids_that_do_not_match_are_shown(refused_csv: Refused, log: Path, listed: str, message: str) -> None:
    rows = [f"{user},{listed.format(item)},{1_700_000_000 + item}" for user in "ab" for item in range(4)]
    log.write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    assert message in refused_csv()


def test_most_items_outside_the_catalogue_are_reported(cli: Cli, log: Path, items: Path, out: Path) -> None:
    items.write_text("item_id,title\n0,Zero\n01,One\n02,Two\n03,Three\n")
    for number, choice in enumerate(("keep", "drop")):
        called = cli("prepare", "csv", log, items, out.parent / str(number), "--unknown-items", choice)
        assert "'1' and '01' of the catalogue differ by leading zeros" in called.out, called


def test_interactions_without_time_need_an_explicit_option(
    refused_csv: Refused, cli: Cli, log: Path, items: Path, out: Path
) -> None:
    log.write_text(log.read_text().replace("timestamp", "when"))
    assert "no column 'timestamp'" in refused_csv()
    assert cli("prepare", "csv", log, items, out, "--time", "").code == 0


def test_ratings(refused_csv: Refused) -> None:
    assert "no column 'rating'" in refused_csv("--min-rating", "3")
    assert "min_rating" in refused_csv("--rating", "stars")


def test_images_outside_their_folder(refused_csv: Refused, items: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    items.write_text("item_id,title,image\n0,Zero,../../etc/passwd\n1,One,\n2,Two,\n3,Three,\n")
    message = refused_csv("--images", tmp_path / "photos")
    assert "item '0': image '../../etc/passwd' lies outside" in message
    assert "no such folder of images" in refused_csv("--images", tmp_path / "paintings")


def test_a_folder_that_holds_something(refused: Refused, log: Path, items: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    for command in (("csv", log, items, tmp_path), ("toyshop", tmp_path)):
        assert f"{tmp_path}: exists already; name a new or an empty folder" in refused("prepare", *command)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("options", [("--time-unit", "hours"), ("--min-rating", "good")])
def test_options_with_wrong_values(cli: Cli, log: Path, items: Path, out: Path, options: tuple[str, str]) -> None:
    called = cli("prepare", "csv", log, items, out, *options)
    assert called.code == 2
    assert f"Invalid value for '{options[0]}'" in called.err
    assert not out.exists()


def test_a_toyshop_too_small(cli: Cli, tmp_path: Path) -> None:
    called = cli("prepare", "toyshop", tmp_path / "shop", "--items", "39")
    assert called.code == 2
    assert "--items" in called.err
    assert "40" in called.err
    assert not (tmp_path / "shop").exists()


PLUGIN = '''
from pathlib import Path
from typing import ClassVar
import polars as pl
from pydantic import Field
from msm4sr.data.preparation.source import SOURCES, Source

@SOURCES.register("pairs")
class Pairs(Source):
    """From lines "user item" to a prepared folder."""

    format: ClassVar[str] = "pairs"
    dump: Path = Field(description="The lines.")
    sep: str = Field(" ", description="Between user and item.")

    @property
    def files(self):
        return [self.dump]

    def read_interactions(self, report):
        rows = [line.split(self.sep) for line in self.dump.read_text().splitlines()]
        report.interactions_read = len(rows)
        users, items = zip(*rows)
        yield pl.DataFrame({"row": range(1, len(rows) + 1), "user_id": users, "item_id": items})
'''


def test_a_source_of_another_package_is_a_command(tmp_path: Path) -> None:
    (tmp_path / "pairs.py").write_text(PLUGIN)
    info = tmp_path / "pairs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pairs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[msm4sr.sources]\npairs = pairs\n")
    (tmp_path / "dump").write_text("u/a\nu/b\nv/a\n")

    def prepare(*arguments: str | Path) -> str:
        path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", "msm4sr", "prepare", *arguments]
        environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "120"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert 'From lines "user item" to a prepared folder.' in prepare("--help")
    assert "--sep" in prepare("pairs", "--help")
    assert "2 kept of 3, 2 users" in prepare(
        "pairs", tmp_path / "dump", tmp_path / "out", "--sep", "/", "--item-core", "2"
    )
