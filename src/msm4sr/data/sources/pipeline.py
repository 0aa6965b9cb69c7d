"""From what a format's reader yields to a prepared folder: the one way that all formats share.

A reader yields two tables in blocks: interactions and items. This module then, in this order,

1. leaves out interactions without a rating or under `min_rating`, and those whose item the catalogue lacks
   (`unknown_items: drop`);
2. of items with the same ID keeps the first;
3. makes one of interactions that are the same in user, item and time (the first stays), and with
   `repeats: last` one of a user's interactions with the same item (the latest stays);
4. takes users under `user_core` and items under `item_core` out, again and again until all that remain satisfy
   both; such items leave the catalogue too;
5. sorts interactions by user (first appearance among the rows that 1 left), time, **order in the file**; items
   stand in the order of their file, then those that only the log knows, by first appearance in the result;
6. copies pictures, writes the tables, and `provenance.json`: sources with their hashes, settings, the counts
   after each step, what was dropped and why, and hashes of the result.

No clock, no path and no order of threads enters the folder: the same input gives the same bytes everywhere.
Memory holds numbers, and each ID once; texts go through the disk (`parts/`, inside the unfinished folder).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from msm4sr.data.kcore import Flags, Ints, k_core
from msm4sr.data.provenance import PROVENANCE, file_record, result_record
from msm4sr.data.schema import INTERACTIONS, ITEM_COLUMNS, ITEMS
from msm4sr.data.sources.images import Pictures, SafeNames, copy_pictures, is_url
from msm4sr.data.sources.rows import BadRows, read_rows
from msm4sr.errors import InputError
from msm4sr.files import atomic_folder, write_json

MICROSECONDS = 10**6
END_OF_TIME = 253_402_300_800  # seconds: the year 10000; what lies beyond was written in another unit
ROW_GROUP = 1 << 20  # interactions of a row group
ITEM_GROUP = 1 << 16  # items of a row group: their texts are long


class Rules(BaseModel):
    """What is kept of what a format holds. The same words for every format."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_rating: float | None = Field(None, description="Interactions rated lower, or not at all, are left out.")
    user_core: int = Field(0, ge=0, description="Users with fewer interactions leave; 0 keeps all.")
    item_core: int = Field(0, ge=0, description="Items with fewer interactions leave, the catalogue too; 0 keeps all.")
    repeats: Literal["keep", "last"] = Field(
        "keep", description="'last': of a user's interactions with the same item the latest alone stays."
    )
    unknown_items: Literal["keep", "drop"] = Field(
        "keep", description="What an interaction is whose item the catalogue lacks: an item of which nothing is known."
    )
    unseen_items: Literal["keep", "drop"] = Field(
        "keep", description="What an item is that nobody (who is left) took: a candidate like any other."
    )
    max_invalid_fraction: float = Field(
        0.01, ge=0, le=1, description="Share of unusable rows in a file that is put up with."
    )


LIKE_PAPER: Mapping[str, Any] = {"user_core": 5, "repeats": "last", "unseen_items": "drop"}
"""The paper's setting: users with at least 5 interactions, repeats collapsed, the items that were taken."""


@dataclass(frozen=True)
class Drop:
    """What was left out for one reason, with the first case."""

    reason: str
    count: int
    example: str


@dataclass
class PrepareReport:
    """What was read, kept and dropped; `provenance.json` of the folder holds the same."""

    out: Path
    rules: Rules = field(default_factory=Rules)
    interactions_read: int = 0
    interactions_kept: int = 0
    users: int = 0
    items_read: int | None = None
    """None without a table of items: the items are those of the log."""
    items_kept: int = 0
    with_title: int = 0
    with_text: int = 0
    with_categories: int = 0
    with_image: int = 0
    with_addresses: int = 0
    """Of the items with image, those that have an address which is yet to be fetched."""
    order: str = ""
    """What the order of a history rests on."""
    steps: list[dict[str, int | str]] = field(default_factory=list)
    """After each step: its name, and how many interactions, users and taken items were left."""
    dropped: list[Drop] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def drop(self, reason: str, count: int, example: str) -> None:
        """Count what is left out; the first example of a reason stays."""
        if not count:
            return
        for place, drop in enumerate(self.dropped):
            if drop.reason == reason:
                self.dropped[place] = Drop(reason, drop.count + count, drop.example)
                return
        self.dropped.append(Drop(reason, count, example))

    def drop_bad(self, path: Path, what: str, bad: BadRows) -> None:
        """Count the bad rows of a file that has been read."""
        for kind, (count, first) in bad.kinds.items():
            self.drop(f"{what}: {kind}", count, f"{path.name}, line {first}")

    def step(self, name: str, interactions: int, users: int | None = None, items: int | None = None) -> None:
        counts = {"interactions": interactions, "users": users, "items": items}
        self.steps.append({"step": name, **{key: count for key, count in counts.items() if count is not None}})

    def lines(self) -> list[str]:
        """The report, a line a fact, to be printed."""
        read = "the log's" if self.items_read is None else f"{self.items_read:,} read"
        kept = f"{self.interactions_kept:,} kept of {self.interactions_read:,}"
        return [
            f"interactions  {kept}, {self.users:,} users",
            f"order         {self.order}",
            f"items         {self.items_kept:,} kept ({read}): {self.with_title:,} with title, "
            f"{self.with_text:,} text, {self.with_categories:,} categories, {self.with_image:,} image",
            *(f"dropped       {drop.count:,} {drop.reason} (first: {drop.example})" for drop in self.dropped),
            *(f"note          {note}" for note in self.notes),
            f"written       {self.out}",
        ]


@dataclass(frozen=True)
class Source:
    """A format: its files, and how they are read.

    `interactions` yields blocks of `row` int64 (place in the file), `user_id` and `item_id` str (not null, not
    empty), and as far as the format has them `time` int64 (microseconds since 1970) and `rating` float. Without
    `time` the rows of a user are in order, and `position` is written.
    `items` yields blocks of `row`, `item_id` and what the format has of `title`, `text` (str), `categories`,
    `image` (list[str]: files of the folder of pictures, or addresses); None: the items are those of the log.
    Both count what they cannot use in the report; every block has the same columns.
    """

    format: str
    files: Sequence[Path]
    interactions: Callable[[PrepareReport], Iterator[pl.DataFrame]]
    items: Callable[[PrepareReport], Iterator[pl.DataFrame]] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    unit: str = "line"
    """What `row` counts, for messages."""
    order: str = ""
    """What histories are ordered by, for the report; a reader may set the report's `order` instead."""
    positions: bool = False
    """Whether `time` is a place within the user and no time: then `position` is written as without one."""


@dataclass
class _Log:
    """The interactions as numbers, in file order."""

    user: Ints  # int32
    item: Ints  # int32
    time: Ints | None  # int64, microseconds
    rating: Ints | None  # float32

    def keep(self, kept: Ints) -> None:
        """Only these rows (flags, or places in their new order), one column at a time: memory is the limit."""
        self.user, self.item = self.user[kept], self.item[kept]
        self.time = None if self.time is None else self.time[kept]
        self.rating = None if self.rating is None else self.rating[kept]


def prepare(source: Source, out: Path, rules: Rules, images: Path | None = None) -> PrepareReport:
    """Write the prepared folder `out`; it appears whole or not at all.

    `images`: the folder in which the items' pictures are found. Without it only addresses are kept.

    Raises InputError: `out` exists and is not empty, a file cannot be read or has too many bad rows, a picture
    lies outside `images`, nothing is left.
    """
    report = PrepareReport(out.resolve(), rules, order=source.order)
    pictures = Pictures(images)
    with atomic_folder(out) as folder:
        (folder / "parts").mkdir()
        items: dict[str, int] = {}
        parts = list(_spill_items(source, items, folder / "parts", report))
        n_catalogue = len(items)
        users: dict[str, int] = {}
        log = _read_log(source, users, items, report)
        user_ids, item_ids = pl.Series(list(users), dtype=pl.String), pl.Series(list(items), dtype=pl.String)
        del users, items
        taken = _filter(log, len(user_ids), len(item_ids), source, report)
        _write_log(log, user_ids, item_ids, folder / INTERACTIONS, report)
        del log, user_ids

        stay = np.zeros(len(item_ids), dtype=bool)
        stay[:n_catalogue] = rules.unseen_items == "keep" and not rules.item_core
        stay[taken] = True
        (folder / "images").mkdir()
        if source.items is not None or images is not None:
            parts += _log_only(item_ids, taken[taken >= n_catalogue], parts, folder / "parts")
            _finish_items(parts, stay, pictures, source, folder, report)
        if source.items is None:
            report.items_kept = int(stay.sum())
            if not report.with_image:
                (folder / ITEMS).unlink(missing_ok=True)
        if pictures.missing:
            report.drop("images that the folder of images lacks", len(pictures.missing), pictures.missing[0])
        shutil.rmtree(folder / "parts")
        write_json(folder / PROVENANCE, _provenance(source, report, folder))
    return report


def read_interactions(
    path: Path,
    parse: Callable[[bytes], tuple[str, str, int | None, float | None]],
    report: PrepareReport,
    header: bool = False,
) -> Iterator[pl.DataFrame]:
    """Blocks for `Source.interactions` out of the lines of a file; `parse` gives user, item, time, rating.

    A time or a rating that the format does not have is None in every row.
    """
    bad = BadRows()
    schema = {
        "row": pl.Int64(),
        "user_id": pl.String(),
        "item_id": pl.String(),
        "time": pl.Int64(),
        "rating": pl.Float32(),
    }
    for numbers, rows in read_rows(path, parse, bad, report.rules.max_invalid_fraction, header):
        user, item, time, rating = zip(*rows, strict=True)
        yield pl.DataFrame([numbers, user, item, time, rating], schema)
    report.interactions_read = bad.rows
    report.drop_bad(path, "interactions", bad)


def missing_report(report: PrepareReport) -> str:
    """Why nothing is left, for the message."""
    return "; ".join(f"{drop.count} {drop.reason}" for drop in report.dropped) or "the file has no rows"


# Reading


def _spill_items(source: Source, codes: dict[str, int], folder: Path, report: PrepareReport) -> Iterator[Path]:
    """Number the items in `codes`; write their rows, each with its `code`, in files that are yielded."""
    if source.items is None:
        return
    report.items_read = 0
    for number, block in enumerate(source.items(report)):
        before = len(codes)
        ids = block["item_id"].to_list()
        code = np.fromiter((codes.setdefault(name, len(codes)) for name in ids), np.int32, len(ids))
        new = (code >= before) & pl.Series(code).is_first_distinct().to_numpy()
        if not new.all():
            first = int(np.argmin(new))
            example = f"{source.files[-1].name}, {source.unit} {block['row'][first]}: {ids[first]!r}"
            report.drop("items with an ID that an earlier row has", int((~new).sum()), example)
        part = block.drop("row").with_columns(code=code).filter(pl.Series(new))
        path = folder / f"{number:06d}.parquet"
        part.write_parquet(path, compression="lz4")
        yield path
    if not codes:
        raise InputError(f"{source.files[-1]}: no item with an ID in {report.items_read:,} rows")


def _read_log(source: Source, users: dict[str, int], items: dict[str, int], report: PrepareReport) -> _Log:
    """The interactions that the rules on single rows keep, coded by `users` and `items`, which grow."""
    rules, path = report.rules, source.files[0]
    columns: dict[str, list[Ints]] = {}
    known_only = rules.unknown_items == "drop" and source.items is not None
    for block in source.interactions(report):
        if rules.min_rating is not None:
            if "rating" not in block.columns:
                raise InputError(f"{path}: has no ratings; leave min_rating out")
            low = f"interactions rated under {rules.min_rating:g}"
            block = _keep(block, pl.col("rating").is_not_null(), "interactions without a rating", source, report)
            block = _keep(block, pl.col("rating") >= rules.min_rating, low, source, report)
        names = block["item_id"].to_list()
        item = np.fromiter((items.get(name, -1) for name in names), np.int32, len(names))
        if known_only:
            reason = "interactions with an item that the catalogue lacks"
            block = _keep(block, pl.Series(item >= 0), reason, source, report, "item_id")
            item = item[item >= 0]
        elif (item < 0).any():
            item = np.fromiter((items.setdefault(name, len(items)) for name in names), np.int32, len(names))
        names = block["user_id"].to_list()
        columns.setdefault("item", []).append(item)
        columns.setdefault("user", []).append(
            np.fromiter((users.setdefault(name, len(users)) for name in names), np.int32, len(names))
        )
        for name, dtype in (("time", pl.Int64), ("rating", pl.Float32)):
            if name in block.columns:
                columns.setdefault(name, []).append(block[name].cast(dtype).to_numpy())
    report.step("read", report.interactions_read)
    if not users:
        raise InputError(f"{path}: no interaction is left of {report.interactions_read:,} ({missing_report(report)})")
    joined = {name: np.concatenate(columns.pop(name)) for name in list(columns)}
    log = _Log(joined["user"], joined["item"], joined.get("time"), joined.get("rating"))
    del joined
    report.step("usable rows", len(log.user), len(users), _distinct(log.item, len(items)))
    return log


def _keep(
    block: pl.DataFrame, met: pl.Expr | pl.Series, reason: str, source: Source, report: PrepareReport, shown: str = ""
) -> pl.DataFrame:
    """The rows that meet a condition; the others are counted."""
    flags = block.select(met.fill_null(False) if isinstance(met, pl.Expr) else met).to_series()
    if flags.all():
        return block
    row = block.row(int(flags.arg_min() or 0), named=True)
    value = f": {row[shown]!r}" if shown else ""
    report.drop(reason, len(block) - int(flags.sum()), f"{source.files[0].name}, {source.unit} {row['row']}{value}")
    return block.filter(flags)


# Filtering and sorting


def _filter(log: _Log, n_users: int, n_items: int, source: Source, report: PrepareReport) -> Ints:
    """Rules 3 to 5 on `log` in place; the items that are left in it, by first appearance."""
    rules = report.rules

    def counted(step: str, reason: str, kept: Flags) -> None:
        if not kept.all():
            report.drop(reason, int((~kept).sum()), f"step '{step}'")
            log.keep(kept)
        report.step(step, len(log.user), _distinct(log.user, n_users), _distinct(log.item, n_items))

    if log.time is not None and not source.positions:
        counted("exact duplicates", "interactions that repeat another, time included", ~_repeated(log, with_time=True))
    if rules.repeats == "last":
        repeated = _repeated(log, with_time=False)
        counted("repeats collapsed", "interactions with an item that the user took again later", ~repeated)
    if rules.user_core or rules.item_core:
        cores = ((rules.user_core, "user"), (rules.item_core, "item"))
        name = " and ".join(f"at least {core} of each {whose}" for core, whose in cores if core)
        kept = k_core(log.user, log.item, n_users, n_items, rules.user_core, rules.item_core)[2]
        counted(name, "interactions outside the core", kept)
    if not len(log.user):
        raise InputError(
            f"{source.files[0]}: no interaction is left of {report.interactions_read:,} ({missing_report(report)}); "
            "ask for a smaller core"
        )
    log.keep(np.lexsort((log.user,) if log.time is None else (log.time, log.user)))  # stable: ties keep file order
    if source.positions:
        log.time = None  # it has done its work
    return pl.Series(log.item).unique(maintain_order=True).to_numpy()


def _repeated(log: _Log, with_time: bool) -> Flags:
    """Rows with another of the same user and item: at the same time and earlier in the file (`with_time`), else
    at a later time, or later in the file."""
    if log.time is None:
        order = np.lexsort((log.item, log.user))
    else:
        order = np.lexsort((log.time, log.item, log.user))
    user, item = log.user[order], log.item[order]
    same = (user[1:] == user[:-1]) & (item[1:] == item[:-1])
    if with_time:
        assert log.time is not None
        time = log.time[order]
        same &= time[1:] == time[:-1]
    repeated = np.zeros(len(order), dtype=bool)
    repeated[order[1:] if with_time else order[:-1]] = same
    return repeated


def _distinct(codes: Ints, count: int) -> int:
    seen = np.zeros(count, dtype=bool)
    seen[codes] = True
    return int(seen.sum())


# Writing


def _write_log(log: _Log, user_ids: pl.Series, item_ids: pl.Series, path: Path, report: PrepareReport) -> None:
    """Stream the table to disk: IDs become texts a chunk at a time."""
    report.interactions_kept = len(log.user)
    report.users = _distinct(log.user, len(user_ids))
    columns = {"user_id": pl.Series(log.user), "item_id": pl.Series(log.item)}
    if log.time is None:
        first = np.flatnonzero(np.diff(log.user, prepend=-1))
        lengths = np.diff(first, append=len(log.user))
        columns["position"] = pl.Series((np.arange(len(log.user)) - np.repeat(first, lengths)).astype(np.int32))
    else:
        columns["timestamp"] = pl.Series(log.time // MICROSECONDS)
        begin, end = (datetime.fromtimestamp(int(t) // MICROSECONDS, UTC) for t in (log.time.min(), log.time.max()))
        report.order += f", from {begin:%Y-%m-%d} to {end:%Y-%m-%d}"
    if log.rating is not None:
        columns["rating"] = pl.Series(log.rating).fill_nan(None)

    def named(column: str, names: pl.Series) -> pl.Expr:
        return pl.col(column).map_batches(names.gather, return_dtype=pl.String, is_elementwise=True)

    table = pl.DataFrame(columns).lazy()
    table = table.with_columns(named("user_id", user_ids), named("item_id", item_ids))
    _write(table, path, ROW_GROUP)


def _write(table: pl.LazyFrame, path: Path, group: int) -> None:
    table.sink_parquet(path, compression="zstd", row_group_size=group, maintain_order=True, engine="streaming")


def _log_only(item_ids: pl.Series, code: Ints, parts: Sequence[Path], folder: Path) -> list[Path]:
    """A part for the items that only the log knows, with the columns of the other parts."""
    if not len(code) and parts:
        return []
    schema = pl.read_parquet_schema(parts[0]) if parts else {"item_id": pl.String(), "code": pl.Int32()}
    known = {"item_id": item_ids.gather(code), "code": pl.Series(code, dtype=pl.Int32)}
    part = pl.DataFrame(
        {name: known[name] if name in known else pl.repeat(None, len(code), dtype=dtype, eager=True)
         for name, dtype in schema.items()}
    )  # fmt: skip
    path = folder / f"{len(parts):06d}.parquet"
    part.write_parquet(path, compression="lz4")
    return [path]


def _finish_items(
    parts: Sequence[Path], stay: Flags, pictures: Pictures, source: Source, folder: Path, report: PrepareReport
) -> None:
    """Finish each part (who stays, pictures), then join them in `items.parquet`."""
    safe = SafeNames()
    for path in parts:
        part = pl.read_parquet(path)
        part = part.filter(pl.Series(stay[part["code"].to_numpy()])).drop("code")
        ids = part["item_id"].to_list()
        named = [names or [] for names in part["image"].to_list()] if "image" in part.columns else [None] * len(ids)
        image: list[list[str] | None] = []
        for item_id, wanted in zip(ids, named, strict=True):
            found = pictures.of_item(item_id, wanted, f"{source.files[-1]}: item {item_id!r}")
            image.append(copy_pictures(item_id, found, folder, safe) or None)
        part = part.drop("image", strict=False).with_columns(pl.Series("image", image, ITEM_COLUMNS["image"]))
        report.items_kept += len(part)
        report.with_addresses += sum(any(map(is_url, names or ())) for names in image)
        for name in ("title", "text", "categories", "image"):
            if name in part.columns:
                counter = f"with_{name}"
                setattr(report, counter, getattr(report, counter) + part[name].count())
        order = ["item_id", *(name for name in ITEM_COLUMNS if name != "item_id" and name in part.columns)]
        part.select(order).write_parquet(path, compression="lz4")
    write_items(pl.scan_parquet(list(parts), glob=False), folder / ITEMS)


def write_items(items: pl.LazyFrame, path: Path) -> None:
    """Stream a catalogue to disk."""
    _write(items, path, ITEM_GROUP)


def _provenance(source: Source, report: PrepareReport, folder: Path) -> dict[str, Any]:
    counts = asdict(report)
    for name in ("out", "rules"):
        del counts[name]
    return {
        "made_by": f"msm4sr {version('msm4sr')}, polars {pl.__version__}",
        "format": source.format,
        "sources": [file_record(path) for path in source.files],
        "settings": {**report.rules.model_dump(mode="json"), **source.settings},
        **counts,
        "result": result_record(folder),
    }
