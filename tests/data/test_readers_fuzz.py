"""Files that are damaged in every way: each run ends in a result or in a clear error, and leaves nothing half-made.

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

from msm4sr.data.sources import amazon, csv, movielens, recbole
from msm4sr.data.sources.pipeline import PrepareReport, Rules, Source
from msm4sr.errors import InputError

EVENTS = events(users=5, items=6, count=24)
Files = dict[str, bytes]
Prepare = Callable[[Path, Path, Rules], PrepareReport]


def lines(rows: list[str]) -> bytes:
    return "".join(row + "\n" for row in rows).encode()


def amazon_files(review: Any, item: Callable[[int], str]) -> Files:
    return {"reviews": lines([dumps(review(*event)) for event in EVENTS]), "meta": lines([item(i) for i in range(6)])}


def movielens_files(write: Callable[[Path], None], folder: Path) -> Files:
    folder.mkdir()
    write(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def prepare_amazon(folder: Path, out: Path, rules: Rules) -> PrepareReport:
    return amazon.prepare_amazon(folder / "reviews", folder / "meta", out, rules=rules, max_images=3)


def prepare_movielens(folder: Path, out: Path, rules: Rules) -> PrepareReport:
    return movielens.prepare_movielens(folder, out, rules=rules)


def prepare_recbole(folder: Path, out: Path, rules: Rules) -> PrepareReport:
    return recbole.prepare_recbole(folder, out, rules=rules)


def prepare_tables(folder: Path, out: Path, rules: Rules) -> PrepareReport:
    return csv.prepare_csv(folder / "log.csv", folder / "items.csv", None, out, rules=rules)


INTER = [
    "user_id:token\titem_id:token\trating:float\ttimestamp:float",
    *(f"u{u}\ti{i}\t{r}\t{t}" for u, i, t, r in EVENTS),
]
ITEM = ["item_id:token\ttitle:token_seq\tcategories:token_seq", *(f"i{i}\tThing {i}\tA B" for i in range(6))]
LOG = ["user_id,item_id,timestamp", *(f"u{u},i{i},{t}" for u, i, t, _ in EVENTS)]
TABLE = ["item_id,title,text,categories", *(f'i{i},"Thing, {i}","He said ""no"".",A|B' for i in range(6))]


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Files, Prepare]]:
    folder = tmp_path_factory.mktemp("movielens")
    return {
        "amazon 2014": (amazon_files(review_2018, item_2014), prepare_amazon),
        "amazon 2018": (amazon_files(review_2018, lambda i: dumps(item_2018(i))), prepare_amazon),
        "amazon 2023": (amazon_files(review_2023, lambda i: dumps(item_2023(i))), prepare_amazon),
        "100k": (movielens_files(write_100k, folder / "100k"), prepare_movielens),
        "dat": (movielens_files(lambda path: write_dat(path, "latin-1"), folder / "dat"), prepare_movielens),
        "csv": (movielens_files(write_csv, folder / "csv"), prepare_movielens),
        "recbole": ({"x.inter": lines(INTER), "x.item": lines(ITEM)}, prepare_recbole),
        "tables": ({"log.csv": lines(LOG), "items.csv": lines(TABLE)}, prepare_tables),
    }


FORMATS = ["amazon 2014", "amazon 2018", "amazon 2023", "100k", "dat", "csv", "recbole", "tables"]
TOKENS = [
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"'", b"\\", b"\\ud800", b"\\u0000", b"\n", b"\r", b"\t", b"::", b",",
    b"|", b"{", b"}", b"[", b"]", b"null", b"true", b"NaN", b"-1", b"1e999", b"9" * 400, b"[" * 3000,
    b"{'a':" * 500, b"-" * 2000,
    b"<script>", b"&#xD800;", b"&#0;", b"https://[", b"__import__('os')", b"\xed\xa0\x80", "é\u2028".encode(), b"",
]  # fmt: skip


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to six changes: bytes flipped, parts cut out, doubled, moved, or replaced by what readers stumble over."""
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


def drain(source: Source, out: Path, rules: Rules, images: Path | None = None) -> PrepareReport:
    """What `prepare` reads, without writing it: the readers are what is fuzzed."""
    report = PrepareReport(out, rules)
    for block in [*source.interactions(report), *(source.items(report) if source.items else ())]:
        assert block["item_id"].null_count() == 0
        assert not (block["item_id"] == "").any()
        assert isinstance(block, pl.DataFrame)
    return report


def run(files: Files, prepare: Prepare, folder: Path, rng: random.Random) -> bool:
    """Whether it came to a result; anything but a result or an InputError with one line is raised."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    rules = Rules(max_invalid_fraction=rng.choice([0, 0.01, 0.3, 1]), unknown_items=rng.choice(["keep", "drop"]))
    before = sorted(folder.parent.iterdir())
    try:
        prepare(folder, folder.parent / "out", rules)
    except InputError:
        assert sorted(folder.parent.iterdir()) == before
        return False
    return True


def outcomes(formats: Any, name: str, count: int, folder: Path) -> Iterator[bool]:
    files, prepare = formats[name]
    (folder / "in").mkdir()
    for seed in range(count):
        rng = random.Random(f"{name} {seed}")
        yield run(damaged_files(files, rng), prepare, folder / "in", rng)
        for path in (folder / "in").iterdir():
            path.unlink()


@pytest.mark.parametrize("count", [300, pytest.param(3000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FORMATS)
def test_readers_end_in_a_result_or_a_clear_error(
    formats: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    for module in (amazon, csv, movielens, recbole):
        monkeypatch.setattr(module, "prepare", drain)
    results = list(outcomes(formats, name, count, tmp_path))
    assert len(results) == count
    assert 0.02 * count < sum(results) < 0.98 * count, "both ends must be reached"


@pytest.mark.parametrize("name", FORMATS)
def test_whole_runs_end_in_a_folder_or_in_nothing(formats: Any, tmp_path: Path, name: str) -> None:
    for made in outcomes(formats, name, 25, tmp_path):
        out = tmp_path / "out"
        assert out.exists() == made
        if made:
            assert pl.read_parquet(out / "interactions.parquet")["user_id"].null_count() == 0
            out.rename(tmp_path / f"made-{len(list(tmp_path.iterdir()))}")
