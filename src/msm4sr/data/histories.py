"""The histories of a prepared folder as arrays in files, which all processes map into memory.

They are in `.histories/` of the prepared folder, one folder for each set of rules, and are made again when the tables
have changed. A data set larger than memory can be read: a database on disk sorts the interactions. In a folder that
cannot be written, the arrays are made in a temporary folder and read into memory.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from msm4sr.data.database import Database, default_memory, parquet_files
from msm4sr.data.remaining import Flags, Ints, Remaining
from msm4sr.data.schema import INTERACTIONS, ITEMS, check_interactions
from msm4sr.digests import json_digest
from msm4sr.errors import InputError
from msm4sr.files import sync, write_json
from msm4sr.ragged import Ragged

FOLDER = ".histories"
VERSION = 1  # of the files
UNREADABLE = (OSError, EOFError, ValueError, KeyError, pl.exceptions.PolarsError)  # not there, or damaged
PREFIXES = (0, 1, 2)  # histories without their last items, for training, validation and test

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HistoryRules:
    """Which interactions the histories hold (see `DataSettings`)."""

    unknown_items: str
    user_core: int
    item_core: int


@dataclass(frozen=True, eq=False)
class Histories:
    """The users and items that the rules keep.

    Attributes:
        user_ids: in order of first appearance.
        kept_items: bool [rows of the catalogue].
        prefixes: the histories of the users without their last 0, 1 and 2 items: int32, kept items numbered from 0.
        dropped: reason to count.
    """

    user_ids: list[str]
    kept_items: Flags
    prefixes: tuple[Ragged, ...]
    dropped: dict[str, int]


def load_histories(folder: Path, items: pl.DataFrame, rules: HistoryRules) -> Histories:
    """The histories of a prepared folder with this catalogue; made first if they are not there, or not current.

    Raises InputError as `check_interactions` does, for an unknown item, and where nothing is left.
    """
    tables = [path for path in (folder / INTERACTIONS, folder / ITEMS) if path.exists()]
    source = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in tables]
    stored = folder / FOLDER / json_digest(VERSION, source, vars(rules))[:16]
    with suppress(*UNREADABLE):
        return _open(stored, mapped=True)
    try:
        stored.parent.mkdir(exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".", suffix=".unfinished", dir=stored.parent))
    except OSError as error:
        logger.info("%s: cannot be written (%s); its histories are read into memory", folder, error.strerror)
        with tempfile.TemporaryDirectory() as temporary:
            _make(Path(temporary), folder, items, rules)
            return _open(Path(temporary), mapped=False)
    try:
        _make(unfinished, folder, items, rules)
        _publish(unfinished, stored)
        return _open(stored, mapped=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _open(stored: Path, mapped: bool) -> Histories:
    record = json.loads((stored / "record.json").read_text(encoding="utf-8"))
    arrays = {name: _read(stored / f"{name}.npy", mapped) for name in ("offsets", *map("without_{}".format, PREFIXES))}
    offsets = arrays["offsets"]
    prefixes = tuple(
        Ragged(arrays[f"without_{k}"], offsets - k * np.arange(len(offsets)) if k else offsets) for k in PREFIXES
    )
    user_ids = pl.read_parquet(stored / "users.parquet", glob=False)["user_id"].to_list()
    if any(len(rows.values) != rows.offsets[-1] for rows in prefixes) or len(user_ids) != len(offsets) - 1:
        raise ValueError(f"{stored}: damaged")
    return Histories(user_ids, np.load(stored / "kept_items.npy"), prefixes, record["dropped"])


def _read(path: Path, mapped: bool) -> Ints:
    # Copy on write: pages are shared with other processes, and torch accepts the array.
    return np.asarray(np.load(path, mmap_mode="c" if mapped else None))


def _publish(unfinished: Path, stored: Path) -> None:
    """Rename the complete folder, and remove those of earlier tables."""
    for file in unfinished.iterdir():
        sync(file)
    try:
        unfinished.rename(stored)
    except OSError:  # another process has made it meanwhile, or it is damaged
        try:
            _open(stored, mapped=True)
        except UNREADABLE:
            shutil.rmtree(stored)
            unfinished.rename(stored)
    sync(stored.parent)
    source = json.loads((stored / "record.json").read_text(encoding="utf-8"))["source"]
    for other in stored.parent.iterdir():
        with suppress(*UNREADABLE):
            if json.loads((other / "record.json").read_text(encoding="utf-8"))["source"] != source:
                shutil.rmtree(other)


def _make(out: Path, folder: Path, items: pl.DataFrame, rules: HistoryRules) -> None:
    """Write the files of the histories."""
    (out / "work").mkdir()
    with Database(out / "work", default_memory(), (folder / INTERACTIONS).stat().st_size) as database:
        order = check_interactions(folder)
        dropped = _order(database, folder, items, rules, order)
        n_users, read = database.count("users"), database.count("source")
        left = Remaining(lambda: _pairs(database), n_users, len(items), dropped)
        left.apply_cores(rules.user_core, rules.item_core)
        lengths = left.lengths()
        if not len(lengths):
            reasons = "; ".join(f"{reason}: {count}" for reason, count in dropped.items() if count)
            raise InputError(
                f"{folder}: nothing left of {read} interactions ({reasons}); a user needs at least "
                f"3, and user_core is {rules.user_core}, item_core {rules.item_core}"
            )
        _write(out, left, lengths)
        users = pl.concat(database.chunks("users", "user_id", in_order=True))
        users.filter(pl.Series(left.keep_user)).write_parquet(out / "users.parquet")
    shutil.rmtree(out / "work")
    tables = [path for path in (folder / INTERACTIONS, folder / ITEMS) if path.exists()]
    source = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in tables]
    write_json(out / "record.json", {"source": source, "dropped": {k: n for k, n in dropped.items() if n}})


def _order(
    database: Database, folder: Path, items: pl.DataFrame, rules: HistoryRules, order: list[str]
) -> Counter[str]:
    """Create the tables `users`, in order of first appearance, and `ordered`, the interactions by user and time."""
    path, dropped = folder / INTERACTIONS, Counter[str]()
    listed = database.folder / "items.parquet"
    items.select("item_id", item_code=pl.int_range(len(items), dtype=pl.Int32)).write_parquet(listed)
    run, moment = database.run, ", ".join(f'"{name}"' for name in order)
    columns = f"file_row_number AS row, user_id::VARCHAR AS user_id, item_id::VARCHAR AS item_id, {moment}"
    run(f"CREATE VIEW source AS SELECT {columns} FROM {parquet_files([path], file_row_number=True)}")
    run(f"CREATE VIEW items AS FROM {parquet_files([listed])}")
    [(unknown, row, item_id)] = run(
        "SELECT count(*), min(row), arg_min(item_id, row) FROM source ANTI JOIN items USING (item_id)"
    )
    if unknown and rules.unknown_items == "error":
        raise InputError(
            f"{path}: column 'item_id', row {row + 1}: item {item_id!r} "
            f"is not in {ITEMS} ({unknown} such rows); add the item, or set unknown_items: drop"
        )
    run(
        "CREATE TABLE users AS SELECT user_id, (row_number() OVER (ORDER BY earliest) - 1)::INTEGER AS user_code "
        "FROM (SELECT user_id, min(row) AS earliest FROM source GROUP BY user_id) ORDER BY earliest"
    )
    key = f"user_code, item_code, {moment}"
    run(
        f"CREATE TABLE ordered AS SELECT user_code, item_code FROM (SELECT {key}, min(row) AS row FROM source "
        f"JOIN users USING (user_id) JOIN items USING (item_id) GROUP BY {key}) ORDER BY user_code, {moment}, row"
    )
    dropped["interactions: unknown items"] = unknown
    dropped["interactions: exact duplicates"] = database.count("source") - unknown - database.count("ordered")
    return dropped


def _pairs(database: Database) -> Iterator[tuple[Ints, Ints]]:
    for chunk in database.chunks("ordered", "user_code, item_code", in_order=True):
        yield chunk["user_code"].to_numpy(), chunk["item_code"].to_numpy()


def _write(out: Path, left: Remaining, lengths: Ints) -> None:
    """Write the arrays, one chunk of interactions after the other."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    np.save(out / "offsets.npy", offsets)
    np.save(out / "kept_items.npy", left.keep_item)
    for number in PREFIXES:
        _save(
            out / f"without_{number}.npy",
            _prefixes(left.values(), offsets, number),
            offsets[-1] - number * len(lengths),
        )


def _prefixes(chunks: Iterable[Ints], offsets: Ints, number: int) -> Iterator[Ints]:
    """The values without the last `number` of each row."""
    start = 0
    for chunk in chunks:
        kept = np.ones(len(chunk), dtype=bool)
        for place in range(1, number + 1):
            first, last = np.searchsorted(offsets[1:] - place, (start, start + len(chunk)))
            kept[offsets[1:][first:last] - place - start] = False
        yield chunk[kept]
        start += len(chunk)


def _save(path: Path, chunks: Iterable[Ints], count: Any) -> None:
    """Write an array of int32 of this length in the format of numpy."""
    with path.open("wb") as file:
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(np.int32)),
            "fortran_order": False,
            "shape": (int(count),),
        }
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            chunk.tofile(file)
