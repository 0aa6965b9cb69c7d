"""Tables larger than memory: many files, a bound on memory, what faults leave, and native parsing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from amazon_files import dumps, review_2018, review_2023
from hypothesis import given
from hypothesis import strategies as st

from msm4sr.data.database import LEAST_MEMORY, Database, parse_memory
from msm4sr.data.preparation.pipeline import prepare
from msm4sr.data.preparation.reading import INTERACTION_COLUMNS, read_blocks
from msm4sr.data.preparation.source import PrepareReport, Rules
from msm4sr.data.sources.amazon import native_reviews, review
from msm4sr.data.sources.tables import Tables
from msm4sr.errors import InputError

HEADER = "user_id,item_id,timestamp\n"
MEASURED = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024)
"""


def write_csv(path: Path, rows: list[str]) -> Path:
    path.write_text(HEADER + "".join(f"{row}\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three million interactions in three files, and their items."""
    folder, rng = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    (folder / "log").mkdir()
    for number in range(3):
        users, items = rng.integers(0, 250_000, 1_000_000), rng.integers(0, 50_000, 1_000_000)
        table = pl.DataFrame({"user": users, "item": items, "timestamp": rng.integers(1.5e9, 1.6e9, 1_000_000)})
        ids = {"user_id": pl.format("user-{}", "user"), "item_id": pl.format("item-{}", "item")}
        table.select("timestamp", **ids).write_parquet(folder / "log" / f"{number}.parquet")
    pl.DataFrame({"item_id": [f"item-{item}" for item in range(50_000)]}).write_parquet(folder / "items.parquet")
    return folder


def command(large: Path, out: Path, *options: str) -> list[str]:
    tables = [str(large / "log"), str(large / "items.parquet")]
    return [sys.executable, "-m", "msm4sr", "prepare", "parquet", *tables, str(out), "--memory", "400MB", *options]


# Files


def test_a_folder_and_a_glob_are_read_as_one_table_in_alphabetical_order(tmp_path: Path) -> None:
    rows = [f"u{n % 5},i{n % 7},{1_600_000_000 + n // 3}" for n in range(60)]
    one = write_csv(tmp_path / "one.csv", rows)
    (tmp_path / "log").mkdir()
    for number in range(3):
        write_csv(tmp_path / "log" / f"part-{number}.csv", rows[20 * number : 20 * number + 20])
    (tmp_path / "log" / "_SUCCESS").touch()
    expected = None
    for number, path in enumerate((one, tmp_path / "log", tmp_path / "log" / "part-*.csv")):
        report = prepare(Tables(interactions=path, items=None), tmp_path / f"out{number}")
        table = pl.read_parquet(tmp_path / f"out{number}" / "interactions.parquet")
        expected = table if expected is None else expected
        assert table.equals(expected)
        assert report.interactions_read == 60
    sources = json.loads((tmp_path / "out1" / "provenance.json").read_text())["sources"]
    assert [source["file"] for source in sources] == ["part-0.csv", "part-1.csv", "part-2.csv"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (",i,1600000000", r"c\.csv: column 'user_id', data row 2: no ID"),
        ("u,i,noon", r"c\.csv: column 'timestamp', data row 2: 'noon' is no time"),
        ("u,i,1600000000000", r"c\.csv: .*data row 2: '1600000000000' seems to be in milliseconds.*a\.csv, data row 1"),
        ("u,i", r"c\.csv: line 3: 2 fields where the header has 3"),
    ],
)
def test_a_bad_row_in_the_third_file_is_named(tmp_path: Path, row: str, message: str) -> None:
    (tmp_path / "log").mkdir()
    for name in "abc":
        write_csv(tmp_path / "log" / f"{name}.csv", ["u,i,1600000000", row if name == "c" else "u,j,1600000001"])
    with pytest.raises(InputError, match=message):
        prepare(Tables(interactions=tmp_path / "log", items=None), tmp_path / "out")


def test_an_unknown_item_in_another_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    for name in "ab":
        write_csv(tmp_path / "log" / f"{name}.csv", ["u,i,1600000000", f"u,{name},1600000001"])
    (tmp_path / "items.csv").write_text("item_id\ni\na\n")
    report = prepare(Tables(interactions=tmp_path / "log", items=tmp_path / "items.csv"), tmp_path / "out")
    [drop] = [drop for drop in report.dropped if "catalogue" in drop.reason]
    assert (drop.count, drop.example) == (1, "b.csv, data row 2: 'b'")


def test_files_with_times_of_different_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    for name, times in (("a", [1_600_000_000]), ("b", ["2020-01-01"])):
        table = pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": times})
        table.write_parquet(tmp_path / "log" / f"{name}.parquet")
    with pytest.raises(InputError, match=r"b\.parquet: column 'timestamp' holds texts, but numbers in a\.parquet"):
        prepare(Tables(interactions=tmp_path / "log", items=None), tmp_path / "out")


@pytest.mark.parametrize(("name", "problem"), [("empty", "no file in it that ends in"), ("log/*.csv", "no file that")])
def test_no_matching_file_is_an_error(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=problem):
        prepare(Tables(interactions=tmp_path / name, items=None), tmp_path / "out")


@pytest.mark.parametrize(
    ("written", "size"), [("4GB", 4 * 10**9), ("1.5 GiB", 3 << 29), ("500m", 5 * 10**8), ("2g", 2 * 10**9)]
)
def test_sizes_of_memory_are_read(written: str, size: int) -> None:
    assert parse_memory(written) == size


@pytest.mark.parametrize("written", ["much", "4 apples", "-1GB", "", "1MB", str(LEAST_MEMORY - 1)])
def test_wrong_sizes_of_memory_name_the_option(written: str) -> None:
    with pytest.raises(InputError, match="--memory: "):
        parse_memory(written)


# Memory and faults


def test_peak_memory_stays_under_the_limit(large: Path, tmp_path: Path) -> None:
    """The peak of a child starts with that of its parent, so a small process starts it."""
    wrapper = [sys.executable, "-S", "-c", MEASURED, *command(large, tmp_path / "out", "--user-core", "5")]
    output = subprocess.run(wrapper, stdout=subprocess.PIPE, check=True, text=True).stdout
    code, peak = map(int, output.split())
    assert code == 0
    assert peak <= 400_000_000
    assert 2_900_000 < len(pl.read_parquet(tmp_path / "out" / "interactions.parquet")) < 3_000_000


def started(large: Path, out: Path) -> subprocess.Popen[str]:
    """A preparation that has written some blocks."""
    process = subprocess.Popen(command(large, out), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while not list(out.parent.glob(f".{out.name}.*.unfinished/parts/interactions-*")):
        assert process.poll() is None
        time.sleep(0.01)
    return process


def test_a_killed_preparation_leaves_no_folder_and_another_can_follow(large: Path, tmp_path: Path) -> None:
    process = started(large, tmp_path / "out")
    process.kill()
    process.wait()
    assert not (tmp_path / "out").exists()
    assert subprocess.run(command(large, tmp_path / "out"), stdout=subprocess.DEVNULL).returncode == 0
    assert (tmp_path / "out" / "provenance.json").exists()


def test_an_interrupted_preparation_leaves_nothing(large: Path, tmp_path: Path) -> None:
    process = started(large, tmp_path / "out")
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1].strip() == "interrupted; nothing was written"
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


def repeat(statement: Callable[[], object], timer: threading.Timer) -> None:
    timer.start()
    while True:
        statement()


def test_ctrl_c_during_any_statement_is_a_keyboard_interrupt(tmp_path: Path) -> None:
    """DuckDB itself raises a RuntimeError."""
    main = threading.get_ident()
    with Database(tmp_path, LEAST_MEMORY, read=0) as database:
        for statement in (
            database.share_memory,
            partial(database.run, "SELECT 1"),
            partial(database.count, "range(9)"),
        ):
            for number in range(20):
                timer = threading.Timer(0.001 * number, signal.pthread_kill, (main, signal.SIGINT))
                with pytest.raises(KeyboardInterrupt):
                    repeat(statement, timer)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount a disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_line_and_leaves_nothing(large: Path, small_disk: Path) -> None:
    done = subprocess.run(command(large, small_disk / "out"), capture_output=True, text=True)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: {small_disk}/out")
    assert "the disk is full" in line or "No space left on device" in line
    assert os.listdir(small_disk) == []


# Native parsing

ODD = [
    ("reviewerID", ["A1", " A1", "", 7, None, "12", "true", "0", "é", "A\ud800", "a\tb", ["A"], True]),
    ("asin", ["B0", "0001", "1439886341", 1439886341, "1e5", 1.5, None, "B" * 300]),
    ("unixReviewTime", [1_400_000_000, 1_400_000_000.0, "1400000000", 1, None, True, 10**20]),
    ("overall", [5, 4.5, None, "5", -1, 2000, True, 1e300]),
]


@st.composite
def review_lines(draw: st.DrawFn) -> list[str]:
    """Reviews of one layout, some with odd values, some broken."""
    old = draw(st.booleans())
    lines = []
    for number in range(draw(st.integers(1, 90))):
        row: dict[str, Any] = review_2018(number, number, 0, 4.0) if old else review_2023(number, number, 0, 4.0)
        if draw(st.integers(0, 9)) == 0:
            name, values = draw(st.sampled_from(ODD))
            names = dict(zip((name for name, _ in ODD), ("user_id", "parent_asin", "timestamp", "rating"), strict=True))
            row[name if old else names[name]] = draw(st.sampled_from(values))
        line = dumps(row)
        odd = [line[:-5], "", "[]", line + " ", "null", line + line, line + "\r", "\r"]
        lines.append(draw(st.sampled_from([line] * 20 + odd)))
    return lines


@given(review_lines())
def test_native_parsing_gives_what_parsing_by_lines_gives(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "reviews.jsonl"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    results = []
    for native in (native_reviews, None):
        report = PrepareReport(tmp_path, Rules(max_invalid_fraction=1))
        read = partial(read_blocks, path, review, INTERACTION_COLUMNS, report, "interactions")
        rows = [row for block in read(native=native) for row in block.rows()]
        results.append((rows, report.interactions_read, {(d.reason, d.count, d.example) for d in report.dropped}))
    assert results[0] == results[1]
