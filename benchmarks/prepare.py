"""Time and memory of `msm4sr prepare amazon` by size, on files generated in the layout of 2018.

    python benchmarks/prepare.py --millions 1 5 20 50 --folder /tmp/prepare --plot docs/images/prepare.png

For each size: a file of reviews by N / 10 users of N / 50 items (of 50 million interactions: 5 million users, 1
million items), with skewed activity and popularity, with review texts of some 300 characters, and one of
items with descriptions and image URLs. Each is prepared in a separate process with the paper's rules; the table has its
elapsed time and peak memory. The files are removed afterwards; the largest need about 10 GB. The plot needs
matplotlib.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from common import new_figure, save_figure

CHUNK = 200_000  # lines per write
WORDS = ("good", "snack", "would", "buy", "again", "aroma", "price", "box", "fresh", "kids", "love", "not", "very")


class Measured(NamedTuple):
    interactions: int
    files_gb: float
    seconds: float
    cpu_seconds: float
    peak_gib: float
    kept: int


def write_reviews(path: Path, count: int, seed: int = 0) -> None:
    """Write `count` lines; every 20,000th is broken."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, rng.integers(10, 110))) for _ in range(64)]
    ends = [
        f'"reviewerName": "Someone", "reviewText": "{text}", "summary": "{text[:30]}", "unixReviewTime": '
        for text in texts
    ]
    with gzip.open(path, "wb", compresslevel=1) as file:
        for start in range(0, count, CHUNK):
            n = min(CHUNK, count - start)
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


def measure(millions: float, folder: Path, threads: int) -> Measured:
    """Generate, prepare in a separate process, remove."""
    count = int(millions * 1e6)
    folder.mkdir(parents=True, exist_ok=True)
    reviews, items, out = folder / "Reviews.json.gz", folder / "meta_Reviews.json.gz", folder / "prepared"
    write_reviews(reviews, count)
    write_items(items, count // 50)
    size = (reviews.stat().st_size + items.stat().st_size) / 1e9
    command = [sys.executable, "-m", "msm4sr", "prepare", "amazon", reviews, items, out, "--like-paper"]
    start = time.perf_counter()
    process = subprocess.Popen(
        [*map(str, command)], env={**os.environ, "POLARS_MAX_THREADS": str(threads)}, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"prepare exited with code {process.returncode} at {millions} million")
    kept = json.loads((out / "provenance.json").read_text(encoding="utf-8"))["interactions_kept"]
    shutil.rmtree(out)
    reviews.unlink()
    items.unlink()
    cpu = usage.ru_utime + usage.ru_stime
    return Measured(count, size, seconds, cpu, usage.ru_maxrss / 2**20, kept)  # ru_maxrss is in KiB on Linux


def plot(rows: list[Measured], path: Path) -> None:
    millions = [row.interactions / 1e6 for row in rows]
    figure = new_figure(8, 3.2)
    left, right = figure.subplots(1, 2)
    for axes, values, label, limit in (
        (left, [row.seconds / 60 for row in rows], "minutes", 15),
        (right, [row.peak_gib for row in rows], "peak memory, GiB", 6),
    ):
        axes.plot(millions, values, marker="o", color="#1f6f5f")
        axes.axhline(limit, color="#b3541e", linestyle=":", label="goal at 50 million")
        axes.set(xlabel="million interactions", title=label, ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--millions", type=float, nargs="+", default=[1, 5, 20, 50], help="sizes, in million interactions"
    )
    parser.add_argument("--folder", type=Path, default=Path("/tmp/prepare"), help="where the files are generated")
    parser.add_argument("--threads", type=int, default=2, help="threads of polars")
    parser.add_argument("--plot", type=Path, default=None, help="the file of a plot")
    options = parser.parse_args()
    print(
        "| interactions | kept | gzipped files, GB | time, s | CPU, s | interactions/s | peak memory, GiB |", flush=True
    )
    print("|--:|--:|--:|--:|--:|--:|--:|", flush=True)
    rows = []
    for millions in options.millions:
        row = measure(millions, options.folder, options.threads)
        rows.append(row)
        print(
            f"| {row.interactions:,} | {row.kept:,} | {row.files_gb:.2f} | {row.seconds:.0f} | {row.cpu_seconds:.0f} | "
            f"{row.interactions / row.seconds:.0f} | {row.peak_gib:.2f} |",
            flush=True,
        )
    if options.plot is not None:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
