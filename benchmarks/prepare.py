"""Time and memory of `msm4sr prepare` by size, on generated data.

    python benchmarks/prepare.py --kind parquet --millions 1 --millions 20 --memory 6GB --folder /data/prepare
    python benchmarks/prepare.py --kind amazon --millions 5 --before ../before

Of N interactions, by N / 12 users with N / 60 items (Amazon: N / 10 and N / 50):

- `parquet`: a table of interactions without an order, item popularity by Zipf's law, 2 % of the rows repeat another,
  and a table of items; prepared with a 5-core.
- `amazon`: gzipped JSON lines in the layout of 2018, reviews with texts of some 300 characters, every 20,000th line
  broken, items with descriptions and image URLs; prepared by the paper's rules.

Data are generated in chunks, each size is prepared in a child process, and the table has the elapsed time and the peak
memory (resident set) of that process. With `--before`, another checkout prepares the same files in turn. The files are
removed afterwards; 300 million Parquet interactions need about 40 GB.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import polars as pl
import typer

LINES = 200_000  # of JSON per write
ROWS = 2_000_000  # of a Parquet file
WORDS = ("good", "snack", "would", "buy", "again", "aroma", "price", "box", "fresh", "kids", "love", "not", "very")
MEASURE = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
cpu, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20  # KiB on Linux
print(json.dumps([os.waitstatus_to_exitcode(status), time.perf_counter() - start, cpu, peak]))
"""


class Kind(StrEnum):
    parquet = "parquet"
    amazon = "amazon"


class Measured(NamedTuple):
    interactions: int
    kept: int
    files_gb: float
    seconds: float
    cpu_seconds: float
    peak_gib: float


def write_parquet_files(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Write `interactions.parquet` and `items.parquet`; the former through many files, so that memory is bounded."""
    rng, parts, n_items = np.random.default_rng(seed), folder / "parts", max(10, count // 60)
    parts.mkdir(parents=True)
    for number, start in enumerate(range(0, count, ROWS)):
        n = min(ROWS, count - start)
        columns = {
            "user": (rng.random(n) ** 1.5 * (count // 12)).astype(np.int64),
            "item": (n_items ** rng.random(n)).astype(np.int64) - 1,  # density 1 / rank
            "timestamp": rng.integers(1_400_000_000, 1_700_000_000, n),
        }
        source = np.where(rng.random(n) < 0.02, rng.integers(0, n, n), np.arange(n))
        table = pl.DataFrame({name: values[source] for name, values in columns.items()})
        table.select(user_id=_ids("A", "user", 13), item_id=_ids("B", "item", 9), timestamp="timestamp").write_parquet(
            parts / f"{number:05d}.parquet"
        )
    paths = [folder / "interactions.parquet", folder / "items.parquet"]
    pl.scan_parquet(parts / "*.parquet").sink_parquet(paths[0])
    shutil.rmtree(parts)
    items = pl.LazyFrame({"item": pl.int_range(n_items, eager=True)})
    items.select(item_id=_ids("B", "item", 9), title=pl.format("Item {}", "item")).sink_parquet(paths[1])
    return paths


def _ids(letter: str, column: str, digits: int) -> pl.Expr:
    """Numbers as scattered IDs of fixed length."""
    scattered = pl.col(column) * 2_654_435_761 % 10**digits
    return pl.lit(letter) + scattered.cast(pl.String).str.zfill(digits)


def write_reviews(path: Path, count: int, seed: int = 0) -> None:
    """Write `count` lines; every 20,000th is broken."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, rng.integers(10, 110))) for _ in range(64)]
    ends = [
        f'"reviewerName": "Someone", "reviewText": "{text}", "summary": "{text[:30]}", "unixReviewTime": '
        for text in texts
    ]
    with gzip.open(path, "wb", compresslevel=1) as file:
        for start in range(0, count, LINES):
            n = min(LINES, count - start)
            users = (rng.random(n) ** 2 * (count // 10)).astype(int).tolist()
            items = (rng.random(n) ** 3 * (count // 50)).astype(int).tolist()
            days = (1_200_000_000 + 86_400 * rng.integers(0, 4000, n)).tolist()
            ratings, which = rng.integers(1, 6, n).tolist(), rng.integers(0, len(ends), n).tolist()
            lines = [
                f'{{"overall": {rating}.0, "verified": true, "reviewerID": "A{user:013d}", '
                f'"asin": "B{item:09d}", {ends[end]}{day}}}\n'
                for user, item, day, rating, end in zip(users, items, days, ratings, which, strict=True)
            ]
            lines[::20_000] = [line[:-9] + "\n" for line in lines[::20_000]]
            file.write("".join(lines).encode())


def write_items(path: Path, count: int, seed: int = 1) -> None:
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, rng.integers(20, 120))) for _ in range(64)]
    with gzip.open(path, "wt", compresslevel=1, encoding="utf-8") as file:
        for item, first in enumerate(rng.permutation(count).tolist()):
            row = {
                "category": ["Grocery & Gourmet Food", "Snacks"],
                "description": [f"<p>{texts[item % 64]}</p> &amp; more"],
                "title": f"{texts[first % 64][:60]} No. {first}",
                "feature": [texts[first % 64][:80]],
                "asin": f"B{first:09d}",
                "imageURLHighRes": [f"https://images.example.com/I/{first}.jpg"],
            }
            file.write(json.dumps(row) + "\n")


def generate(kind: Kind, folder: Path, count: int) -> list[Path]:
    """The files of one size: interactions and items."""
    if kind == Kind.parquet:
        return write_parquet_files(folder, count)
    paths = [folder / "Reviews.json.gz", folder / "meta_Reviews.json.gz"]
    write_reviews(paths[0], count)
    write_items(paths[1], count // 50)
    return paths


def measure(kind: Kind, files: list[Path], count: int, options: list[str], checkout: Path) -> Measured | None:
    """Prepare in a child process with the code of a checkout; None if it fails."""
    out = files[0].parent / "prepared"
    rules = ["--like-paper"] if kind == Kind.amazon else ["--user-core", "5", "--item-core", "5"]
    command = [sys.executable, "-m", "msm4sr", "prepare", kind, *map(str, files), str(out), *rules, *options]
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    # Through a small process: the peak memory of a child starts with that of its parent.
    wrapped = subprocess.run(
        [sys.executable, "-S", "-c", MEASURE, *command],
        env=environment,
        cwd=checkout,
        stdout=subprocess.PIPE,
        check=True,
    )
    code, seconds, cpu, peak = json.loads(wrapped.stdout)
    if code:
        return None
    kept = json.loads((out / "provenance.json").read_text(encoding="utf-8"))["interactions_kept"]
    shutil.rmtree(out)
    return Measured(count, kept, sum(file.stat().st_size for file in files) / 1e9, seconds, cpu, peak)


def report(name: str, row: Measured | None) -> None:
    if row is None:
        print(f"| {name} | failed | | | | | | |", flush=True)
        return
    print(
        f"| {name} | {row.interactions:,} | {row.kept:,} | {row.files_gb:.2f} | {row.seconds:.0f} | "
        f"{row.cpu_seconds:.0f} | {row.interactions / row.seconds:,.0f} | {row.peak_gib:.2f} |",
        flush=True,
    )


def main(
    kind: Annotated[Kind, typer.Option(help="What is generated.")] = Kind.parquet,
    millions: Annotated[list[float], typer.Option(help="Sizes, in million interactions; repeatable.")] = [1, 20],
    memory: Annotated[str | None, typer.Option(help="Passed on to `msm4sr prepare`, but not before.")] = None,
    before: Annotated[Path | None, typer.Option(help="Another checkout, measured in turn.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each size.")] = 1,
    folder: Annotated[Path, typer.Option(help="Where the files are generated.")] = Path("/tmp/prepare"),
) -> None:
    print("| version | interactions | kept | files, GB | time, s | CPU, s | interactions/s | peak memory, GiB |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|", flush=True)
    here = Path(__file__).parents[1]
    for size in millions:
        count = int(size * 1e6)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        files = generate(kind, folder, count)
        for _ in range(repeats):
            if before is not None:
                report("before", measure(kind, files, count, [], before.resolve()))
            report("now", measure(kind, files, count, [] if memory is None else ["--memory", memory], here))
        shutil.rmtree(folder)


if __name__ == "__main__":
    typer.run(main)
