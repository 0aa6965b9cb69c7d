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
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from msm4sr.data.cutoffs import Cutoff, seconds_of, time_text
from msm4sr.data.database import Database, default_memory, parquet_files
from msm4sr.data.remaining import MIN_HISTORY, Flags, Ints, Remaining
from msm4sr.data.schema import INTERACTIONS, ITEMS, check_interactions, scan_parquet
from msm4sr.digests import json_digest
from msm4sr.errors import InputError
from msm4sr.files import sync, write_json
from msm4sr.ragged import Ragged

FOLDER = ".histories"
VERSION = 2  # of the files
UNFINISHED = ".unfinished"  # suffix of a folder that is being made
ABANDONED = 24 * 3600  # seconds without a change; then the process that made it was killed
UNREADABLE = (OSError, EOFError, ValueError, KeyError, pl.exceptions.PolarsError)  # not there, or damaged
PREFIXES = ("complete", "before_test", "before_validation")  # of the histories

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HistoryRules:
    """Which interactions the histories hold (see `DataSettings`)."""

    unknown_items: str
    user_core: int
    item_core: int
    cutoffs: tuple[Cutoff, Cutoff] | None = None
    """When validation and test begin, for a temporal split; None: leave-one-out."""


@dataclass(frozen=True, eq=False)
class Histories:
    """The users and items that the rules keep.

    Attributes:
        user_ids: in order of first appearance; with a temporal split, of first appearance in training, then the others.
        kept_items: bool [rows of the catalogue].
        prefixes: the histories, their parts before test, and before validation: int32, kept items numbered from 0.
        dropped: reason to count.
        times: when validation and test begin, in seconds since 1970, for a temporal split.
    """

    user_ids: list[str]
    kept_items: Flags
    prefixes: tuple[Ragged, ...]
    dropped: dict[str, int]
    times: tuple[float, float] | None


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
        unfinished = Path(tempfile.mkdtemp(prefix=".", suffix=UNFINISHED, dir=stored.parent))
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
    prefixes = tuple(
        Ragged(_read(stored / f"{name}.npy", mapped), _read(stored / f"{name}_offsets.npy", mapped))
        for name in PREFIXES
    )
    user_ids = scan_parquet(stored / "users.parquet").collect()["user_id"].to_list()
    if any(len(rows.values) != rows.offsets[-1] or len(rows) != len(user_ids) for rows in prefixes):
        raise ValueError(f"{stored}: damaged")
    times = None if record["times"] is None else (record["times"][0], record["times"][1])
    return Histories(user_ids, np.load(stored / "kept_items.npy"), prefixes, record["dropped"], times)


def _read(path: Path, mapped: bool) -> Ints:
    # Copy on write: pages are shared with other processes, and torch accepts the array.
    return np.asarray(np.load(path, mmap_mode="c" if mapped else None))


def _publish(unfinished: Path, stored: Path) -> None:
    """Rename the complete folder, and remove those of earlier tables and of killed processes."""
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
            if other.suffix == UNFINISHED:
                if time.time() - other.stat().st_mtime > ABANDONED:
                    shutil.rmtree(other)
            elif json.loads((other / "record.json").read_text(encoding="utf-8"))["source"] != source:
                shutil.rmtree(other)


def _make(out: Path, folder: Path, items: pl.DataFrame, rules: HistoryRules) -> None:
    """Write the files of the histories."""
    (out / "work").mkdir()
    with Database(out / "work", default_memory(), (folder / INTERACTIONS).stat().st_size) as database:
        order = check_interactions(folder)
        times = _times(database, folder, rules.cutoffs, order) if rules.cutoffs else None
        dropped = _order(database, folder, items, rules, order, times)
        n_users, read = database.count("users"), database.count("source")
        training = partial(_pairs, database, 1) if rules.cutoffs else None
        left = Remaining(partial(_pairs, database), n_users, len(items), dropped, training)
        left.apply_cores(rules.user_core, rules.item_core)
        lengths = [left.lengths()]
        if not len(lengths[0]):
            reasons = "; ".join(f"{reason}: {count}" for reason, count in dropped.items() if count)
            raise InputError(
                f"{folder}: nothing left of {read} interactions ({reasons}); a user needs at least "
                f"{1 if times else MIN_HISTORY}, and user_core is {rules.user_core}, item_core {rules.item_core}"
            )
        if times:
            lengths += [left.lengths(partial(_pairs, database, parts)) for parts in (2, 1)]
        else:
            lengths += [lengths[0] - 1, lengths[0] - 2]
        _write(out, left, lengths)
        users = pl.concat(database.chunks("users", "user_id", in_order=True))
        users.filter(pl.Series(left.keep_user)).write_parquet(out / "users.parquet")
    shutil.rmtree(out / "work")
    tables = [path for path in (folder / INTERACTIONS, folder / ITEMS) if path.exists()]
    source = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in tables]
    dropped_counts = {reason: count for reason, count in dropped.items() if count}
    write_json(out / "record.json", {"source": source, "dropped": dropped_counts, "times": times})


def _times(database: Database, folder: Path, cutoffs: tuple[Cutoff, Cutoff], order: list[str]) -> tuple[float, float]:
    """When validation and test begin. Raises InputError where the data has no times, or a part no interactions.

    A fraction is of all rows of the file, so that it depends on nothing but the times.
    """
    path = folder / INTERACTIONS
    if "timestamp" not in order:
        raise InputError(
            f"{path}: a temporal split needs the column 'timestamp'; the file has only 'position', the order within a "
            "user. Prepare the data with times, or set dataset.split=leave_one_out"
        )
    source = parquet_files([path])
    rows, first, last = database.row(f"SELECT count(*), min(timestamp), max(timestamp) FROM {source}")
    times = []
    for cutoff in cutoffs:
        if isinstance(cutoff, float):
            place = int(cutoff * rows + 1e-6)  # 0.29 * 100 is less than 29
            cutoff = database.row(f"SELECT timestamp FROM {source} ORDER BY timestamp LIMIT 1 OFFSET {place}")[0]
        times.append(seconds_of(cutoff))
    validation, test = times
    texts = [f"{name}={cutoff}" for name, cutoff in zip(("validation_from", "test_from"), cutoffs, strict=True)]
    texts = [f"dataset.{text} ({time_text(time)})" for text, time in zip(texts, times, strict=True)]
    period = f"the times of the file are {time_text(first)} to {time_text(last)}"
    if validation >= test:
        raise InputError(f"{path}: {texts[0]} is not before {texts[1]}; {period}")
    empty = {f"before {texts[0]}": f"timestamp < {validation!r}",
             f"from {texts[0]} to {texts[1]}": f"timestamp >= {validation!r} AND timestamp < {test!r}",
             f"from {texts[1]} on": f"timestamp >= {test!r}"}  # fmt: skip
    for when, condition in empty.items():
        if not database.row(f"SELECT count(*) FROM {source} WHERE {condition}")[0]:
            raise InputError(f"{path}: no interactions {when}; {period}")
    return validation, test


def _order(
    database: Database,
    folder: Path,
    items: pl.DataFrame,
    rules: HistoryRules,
    order: list[str],
    times: tuple[float, float] | None,
) -> Counter[str]:
    """Create the tables `users` and `ordered`, the interactions by user and time.

    `users` are in order of first appearance; with `times`, in training first. `ordered.part` is then 0, 1 or 2:
    training, validation, test.
    """
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
    part, trained = "0", "true"
    if times:
        part, trained = (
            f"(timestamp >= {times[0]!r})::INT + (timestamp >= {times[1]!r})::INT",
            f"timestamp < {times[0]!r}",
        )
    run(
        "CREATE TABLE users AS SELECT user_id, (row_number() OVER (ORDER BY trained NULLS LAST, earliest) - 1)::INT AS "
        f"user_code FROM (SELECT user_id, min(row) AS earliest, min(row) FILTER (WHERE {trained}) AS trained "
        "FROM source GROUP BY user_id) ORDER BY trained NULLS LAST, earliest"
    )
    key = f"user_code, item_code, {moment}"
    run(
        f"CREATE TABLE ordered AS SELECT user_code, item_code, ({part})::TINYINT AS part FROM "
        f"(SELECT {key}, min(row) AS row FROM source JOIN users USING (user_id) JOIN items USING (item_id) "
        f"GROUP BY {key}) ORDER BY user_code, {moment}, row"
    )
    dropped["interactions: unknown items"] = unknown
    dropped["interactions: exact duplicates"] = database.count("source") - unknown - database.count("ordered")
    return dropped


def _pairs(database: Database, parts: int | None = None) -> Iterator[tuple[Ints, Ints]]:
    """The interactions: all, or those of the first `parts` of training, validation and test."""
    for chunk in database.chunks("ordered", "user_code, item_code, part", in_order=True):
        chunk = chunk if parts is None else chunk.filter(pl.col("part") < parts)
        yield chunk["user_code"].to_numpy(), chunk["item_code"].to_numpy()


def _write(out: Path, left: Remaining, lengths: Sequence[Ints]) -> None:
    """Write the arrays, one chunk of interactions after the other; `lengths` of each of `PREFIXES`."""
    complete = np.concatenate([[0], np.cumsum(lengths[0])]).astype(np.int64)
    np.save(out / "kept_items.npy", left.keep_item)
    for name, own in zip(PREFIXES, lengths, strict=True):
        np.save(out / f"{name}_offsets.npy", np.concatenate([[0], np.cumsum(own)]).astype(np.int64))
        _save(out / f"{name}.npy", _prefixes(left.values(), complete, own), own.sum())


def _prefixes(chunks: Iterable[Ints], offsets: Ints, lengths: Ints) -> Iterator[Ints]:
    """The first `lengths` [rows] values of each row."""
    start = 0
    for chunk in chunks:
        end = start + len(chunk)
        first, stop = np.searchsorted(offsets, start, side="right") - 1, np.searchsorted(offsets, end)
        within = np.diff(np.clip(offsets[first : stop + 1], start, end))
        yield chunk[np.arange(start, end) < np.repeat(offsets[first:stop] + lengths[first:stop], within)]
        start = end


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
