"""Files that are damaged in every way: each run ends in a result or in a clear error, and leaves no unfinished folder.

Seeded, so that a failure comes again. `pytest -m slow` runs ten times as many.
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from amazon_files import dumps, events, item_2014, item_2018, item_2023, review_2018, review_2023
from test_movielens import write_100k, write_csv, write_dat

from msm4sr.data.preparation.pipeline import prepare
from msm4sr.data.preparation.source import PrepareReport, Rules, Source
from msm4sr.data.sources.amazon import Amazon
from msm4sr.data.sources.movielens import MovieLens
from msm4sr.data.sources.recbole import RecBole
from msm4sr.data.sources.tables import Tables
from msm4sr.errors import InputError

EVENTS = events(users=5, items=6, count=24)
Files = dict[str, bytes]
MakeSource = Callable[[Path], Source]
Prepare = Callable[[Source, Path, Rules], object]


def lines(rows: list[str]) -> bytes:
    return "".join(row + "\n" for row in rows).encode()


def amazon_files(review: Any, item: Callable[[int], str]) -> Files:
    return {"reviews": lines([dumps(review(*event)) for event in EVENTS]), "meta": lines([item(i) for i in range(6)])}


def movielens_files(write: Callable[[Path], None], folder: Path) -> Files:
    folder.mkdir()
    write(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def amazon(folder: Path) -> Source:
    return Amazon(reviews=folder / "reviews", meta=folder / "meta", max_images=3)


def movielens(folder: Path) -> Source:
    return MovieLens(folder=folder)


def recbole(folder: Path) -> Source:
    return RecBole(inter=folder)


def tables(folder: Path) -> Source:
    return Tables(interactions=folder / "log.csv", items=folder / "items.csv")


INTER = [
    "user_id:token\titem_id:token\trating:float\ttimestamp:float",
    *(f"u{u}\ti{i}\t{r}\t{t}" for u, i, t, r in EVENTS),
]
ITEM = ["item_id:token\ttitle:token_seq\tcategories:token_seq", *(f"i{i}\tThing {i}\tA B" for i in range(6))]
LOG = ["user_id,item_id,timestamp", *(f"u{u},i{i},{t}" for u, i, t, _ in EVENTS)]
TABLE = ["item_id,title,text,categories", *(f'i{i},"Thing, {i}","He said ""no"".",A|B' for i in range(6))]


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Files, MakeSource]]:
    folder = tmp_path_factory.mktemp("movielens")
    return {
        "amazon 2014": (amazon_files(review_2018, item_2014), amazon),
        "amazon 2018": (amazon_files(review_2018, lambda i: dumps(item_2018(i))), amazon),
        "amazon 2023": (amazon_files(review_2023, lambda i: dumps(item_2023(i))), amazon),
        "100k": (movielens_files(write_100k, folder / "100k"), movielens),
        "dat": (movielens_files(lambda path: write_dat(path, "latin-1"), folder / "dat"), movielens),
        "csv": (movielens_files(write_csv, folder / "csv"), movielens),
        "recbole": ({"x.inter": lines(INTER), "x.item": lines(ITEM)}, recbole),
        "tables": ({"log.csv": lines(LOG), "items.csv": lines(TABLE)}, tables),
    }


FORMATS = ["amazon 2014", "amazon 2018", "amazon 2023", "100k", "dat", "csv", "recbole", "tables"]
TOKENS = [
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"'", b"\\", b"\\ud800", b"\\u0000", b"\n", b"\r", b"\t", b"::", b",",
    b"|", b"{", b"}", b"[", b"]", b"null", b"true", b"NaN", b"-1", b"1e999", b"9" * 400, b"[" * 3000,
    b"{'a':" * 500, b"-" * 2000,
    b"<script>", b"&#xD800;", b"&#0;", b"https://[", b"__import__('os')", b"\xed\xa0\x80", "é\u2028".encode(), b"",
]  # fmt: skip


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to six changes: bytes flipped, parts cut out, doubled, moved, or replaced by tokens that confuse readers."""
    for _ in range(rng.randint(1, 6)):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + int(rng.expovariate(1 / 12)))
        part = data[start:end]
        match rng.randrange(7):
            case 0:
                part = bytes(byte ^ (1 << rng.randrange(8)) for byte in part)
            case 1:
                part = b""
            case 2:
                part = part * rng.randint(2, 40)
            case 3:
                part = rng.choice(TOKENS)
            case 4:
                part = rng.choice(TOKENS) + part + rng.choice(TOKENS)
            case 5:
                cut = rng.randrange(len(data) + 1)
                part = data[cut : cut + 40]
            case 6 if rng.random() < 0.2:
                return data[:start]
        data = data[:start] + part + data[end:]
    return data


def damaged_files(files: Files, rng: random.Random) -> Files:
    """Some damaged, some packed, some damaged after they were packed."""
    changed = dict(files)
    for name in rng.sample(sorted(files), rng.randint(1, len(files))):
        data = damaged(files[name], rng)
        if rng.random() < 0.25:
            data = gzip.compress(data, 1)
            data = damaged(data, rng) if rng.random() < 0.5 else data
        changed[name] = data
    return changed


def drain(source: Source, out: Path, rules: Rules) -> None:
    """Read without writing: the readers are fuzzed."""
    report = PrepareReport(out, rules)
    blocks, items = source.read_interactions(report), source.read_items(report)
    for block in [*blocks, *(items or ())]:
        assert block["item_id"].null_count() == 0
        assert not (block["item_id"] == "").any()
        assert isinstance(block, pl.DataFrame)


def run(files: Files, make_source: MakeSource, prepare: Prepare, folder: Path, rng: random.Random) -> bool:
    """Whether there was a result. An InputError with one line is the only other outcome; anything else is raised."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    rules = Rules(max_invalid_fraction=rng.choice([0, 0.01, 0.3, 1]), unknown_items=rng.choice(["keep", "drop"]))
    before = sorted(folder.parent.iterdir())
    try:
        prepare(make_source(folder), folder.parent / "out", rules)
    except InputError:
        assert sorted(folder.parent.iterdir()) == before
        return False
    return True


def outcomes(formats: Any, name: str, count: int, folder: Path, prepare: Prepare) -> Iterator[bool]:
    files, make_source = formats[name]
    (folder / "in").mkdir()
    for seed in range(count):
        rng = random.Random(f"{name} {seed}")
        yield run(damaged_files(files, rng), make_source, prepare, folder / "in", rng)
        for path in (folder / "in").iterdir():
            path.unlink()


@pytest.mark.parametrize("count", [300, pytest.param(3000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FORMATS)
def test_readers_end_in_a_result_or_a_clear_error(formats: Any, tmp_path: Path, name: str, count: int) -> None:
    results = list(outcomes(formats, name, count, tmp_path, drain))
    assert len(results) == count
    assert 0.02 * count < sum(results) < 0.98 * count, "both ends must be reached"


@pytest.mark.parametrize("name", FORMATS)
def test_a_preparation_ends_in_a_folder_or_in_nothing(formats: Any, tmp_path: Path, name: str) -> None:
    for made in outcomes(formats, name, 25, tmp_path, prepare):
        out = tmp_path / "out"
        assert out.exists() == made
        if made:
            assert pl.read_parquet(out / "interactions.parquet")["user_id"].null_count() == 0
            out.rename(tmp_path / f"made-{len(list(tmp_path.iterdir()))}")
