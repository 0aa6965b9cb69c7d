"""From a source to a prepared folder: the pipeline that all sources share.

A source yields two tables in blocks: interactions and items. This module then, in this order,

1. drops interactions without a rating or under `min_rating`, and those with an item that the catalogue lacks
   (`unknown_items: drop`);
2. keeps the first of items with the same ID;
3. keeps the first of interactions with the same user, item and time, and with `repeats: last` the latest of a user's
   interactions with the same item;
4. drops users with fewer than `user_core` and items with fewer than `item_core` interactions until all that remain
   satisfy both; such items leave the catalogue too;
5. sorts interactions by user (first appearance among the rows that 1 left), time, **order in the file**; items are in
   the order of their file, then those that only the interactions mention, by first appearance in the result;
6. copies images, writes the tables, and `provenance.json`: sources with their hashes, settings, the counts after each
   step, what was dropped and why, and hashes of the result.

The folder does not depend on the clock, on paths or on the order of threads: the same input gives the same bytes
everywhere. Memory holds numbers, and each ID once; texts are spilled to the disk (`parts/`, inside the unfinished
folder).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from msm4sr.data.dataset import Ints
from msm4sr.data.preparation.catalogue import ImageFolder, alike_ids, compare_ids, write_catalogue, write_part
from msm4sr.data.preparation.cleaning import Cleaner
from msm4sr.data.preparation.interactions import Interactions
from msm4sr.data.preparation.source import PrepareReport, Rules, Source
from msm4sr.data.preparation.times import Times
from msm4sr.data.schema import INTERACTIONS, ITEMS, PROVENANCE, file_record, result_record
from msm4sr.errors import InputError
from msm4sr.files import atomic_folder, write_json

EXAMPLES = 1000  # unknown IDs that are compared with the catalogue for a message


def prepare(source: Source, out: Path, rules: Rules | None = None) -> PrepareReport:
    """Write the prepared folder `out`, new or empty; it appears complete or not at all.

    Without `rules`, those of the source apply. Raises InputError where `out` is not empty, a file cannot be read or has
    too many invalid rows, an image lies outside the folder of images, or nothing is left.
    """
    report = PrepareReport(out.resolve(), rules or source.rules)
    images = ImageFolder(source.images, report)
    with atomic_folder(out) as folder:
        (folder / "parts").mkdir()
        (folder / "images").mkdir()
        reader = _Reader(source, report)
        times = reader.times
        blocks, catalogue = source.read_interactions(report), source.read_items(report)
        parts = [] if catalogue is None else list(reader.spill_items(catalogue, folder / "parts"))
        n_catalogue = len(reader.items)
        interactions = reader.read_interactions(blocks)
        del reader
        if not len(interactions.user):
            raise report.nothing_left(source.files[0])
        interactions.apply(report.rules, report)
        if not len(interactions.user):
            raise report.nothing_left(source.files[0], "; use a smaller core")
        interactions.sort()
        interactions.write(folder / INTERACTIONS, report)
        seen = pl.Series(interactions.item).unique(maintain_order=True).to_numpy()
        item_ids = interactions.item_ids
        del interactions

        kept = np.zeros(len(item_ids), dtype=bool)
        kept[:n_catalogue] = report.rules.unseen_items == "keep" and not report.rules.item_core
        kept[seen] = True
        if catalogue is not None or source.images is not None:
            parts += _unlisted_items(item_ids, seen[seen >= n_catalogue], parts, folder / "parts")
            write_catalogue(parts, kept, images, source.files[-1], folder, report)
        if catalogue is None:
            report.items_kept = int(kept.sum())
            if not report.with_image:
                (folder / ITEMS).unlink(missing_ok=True)
        shutil.rmtree(folder / "parts")
        write_json(folder / PROVENANCE, _provenance(source, report, folder))
    report.notes += times.future()
    return report


class _Reader:
    """Reads a source, drops what the rules on single rows drop, and numbers users and items."""

    def __init__(self, source: Source, report: PrepareReport) -> None:
        self._source, self._report = source, report
        self.users: dict[str, int] = {}  # number of each ID
        self.items: dict[str, int] = {}  # those of the catalogue first
        self.unknown: list[str] = []  # some IDs that the catalogue lacks
        self.times = Times(report, source.files[0], source.unit)
        self._cleaner = Cleaner(source.unit, report)

    def spill_items(self, blocks: Iterator[pl.DataFrame], folder: Path) -> Iterator[Path]:
        """Write the rows of the catalogue, each with its number as `code`, to files."""
        report, path = self._report, self._source.files[-1]
        report.items_read = 0
        for number, block in enumerate(blocks):
            block = self._cleaner.texts(self._cleaner.ids(block, "items", path), path)
            known = len(self.items)
            code = pl.Series(_numbers(block["item_id"], self.items))
            new = (code >= known) & code.is_first_distinct()
            reason = "items with an ID that an earlier row has"
            block = self._keep(block.with_columns(code=code), new, reason, path, shown="item_id")
            yield write_part(block.drop("row"), folder, number)
        self._cleaner.check("items", report.items_read, path)
        if not self.items:
            raise InputError(f"{path}: no item with an ID in {report.items_read:,} rows")

    def read_interactions(self, blocks: Iterator[pl.DataFrame]) -> Interactions:
        """All interactions in the order of the file. Raises InputError if nothing is left."""
        report, path, catalogue = self._report, self._source.files[0], list(self.items)
        known_only = bool(catalogue) and report.rules.unknown_items == "drop"
        columns: dict[str, list[Ints]] = {}
        for block in blocks:
            block = self._cleaner.ids(block, "interactions", path)
            for name, values in self._numbered(block, path, known_only).items():
                columns.setdefault(name, []).append(values)
        self._cleaner.check("interactions", report.interactions_read, path)
        report.steps.append({"step": "read", "interactions": report.interactions_read})
        if not self.users:
            raise report.nothing_left(path, f"; {compare_ids(self.unknown, catalogue)}" if self.unknown else "")
        per_second = 0
        if times := columns.get("time"):
            possible, per_second = self.times.order(times)
            if not all(map(np.all, possible)):
                for name, chunks in columns.items():
                    columns[name] = [values[rows] for values, rows in zip(chunks, possible, strict=True)]
        joined = {name: np.concatenate(columns.pop(name)) for name in list(columns)}
        unknown = self.unknown or list(self.items)[len(catalogue) :][:EXAMPLES]
        lacking = report.interactions_read - int((joined["item"] < len(catalogue)).sum())
        if catalogue and unknown and 2 * lacking > report.interactions_read:
            report.notes.append(
                f"most interactions are with items outside the catalogue: {compare_ids(unknown, catalogue)}"
            )
        elif catalogue and unknown and (alike := alike_ids(unknown, catalogue)):
            report.notes.append(f"items outside the catalogue: {alike}")
        return Interactions(
            user=joined["user"],
            item=joined["item"],
            order=joined.get("time", joined.get("position")),
            rating=joined.get("rating"),
            per_second=per_second,
            user_ids=pl.Series(list(self.users), dtype=pl.String),
            item_ids=pl.Series(list(self.items), dtype=pl.String),
        )

    def _numbered(self, block: pl.DataFrame, path: Path, known_only: bool) -> dict[str, Ints]:
        lowest = self._report.rules.min_rating
        if lowest is not None:
            if "rating" not in block.columns:
                raise InputError(f"{path}: has no ratings; omit min_rating")
            block = self._keep(block, pl.col("rating").is_not_null(), "interactions without a rating", path)
            block = self._keep(block, pl.col("rating") >= lowest, f"interactions rated under {lowest:g}", path)
        item = _numbers(block["item_id"], self.items, known_only)
        reason = "interactions with an item that the catalogue lacks"
        if len(self.unknown) < EXAMPLES:
            self.unknown += block["item_id"].filter(pl.Series(item < 0)).unique(maintain_order=True).to_list()
        block = self._keep(block, pl.Series(item >= 0), reason, path, shown="item_id")
        columns = {"item": item[item >= 0], "user": _numbers(block["user_id"], self.users)}
        for name, dtype in (("time", None), ("position", pl.Int64), ("rating", pl.Float32)):
            if name in block.columns:
                columns[name] = (block[name] if dtype is None else block[name].cast(dtype)).to_numpy()
        if "time" in columns:
            self.times.add(block["row"], columns["time"])
        return columns

    def _keep(
        self, block: pl.DataFrame, met: pl.Expr | pl.Series, reason: str, path: Path, shown: str = ""
    ) -> pl.DataFrame:
        """The rows that meet a condition; the others are counted, with the value of column `shown` of the first."""
        kept = block.select(met).to_series().fill_null(False)
        if kept.all():
            return block
        row = block.row(int(kept.arg_min() or 0), named=True)
        value = f": {row[shown]!r}" if shown else ""
        example = f"{path.name}, {self._source.unit} {row['row']}{value}"
        self._report.drop(reason, len(block) - int(kept.sum()), example)
        return block.filter(kept)


def _numbers(ids: pl.Series, codes: dict[str, int], known_only: bool = False) -> Ints:
    """The number of each ID (int32); new IDs are added to `codes`, or are -1 (`known_only`)."""
    names = ids.to_list()
    if known_only:
        return np.fromiter((codes.get(name, -1) for name in names), np.int32, len(names))
    return np.fromiter((codes.setdefault(name, len(codes)) for name in names), np.int32, len(names))


def _unlisted_items(item_ids: pl.Series, codes: Ints, parts: Sequence[Path], folder: Path) -> list[Path]:
    """A part for the items that only the interactions mention, with the columns of the other parts."""
    if parts and not len(codes):
        return []
    schema = pl.read_parquet_schema(parts[0]) if parts else {"item_id": pl.String(), "code": pl.Int32()}
    known = {"item_id": item_ids.gather(codes), "code": codes}
    return [write_part(pl.DataFrame({name: known.get(name) for name in schema}, schema), folder, len(parts))]


def _provenance(source: Source, report: PrepareReport, folder: Path) -> dict[str, Any]:
    counts = asdict(report)
    return {
        "made_by": f"msm4sr {version('msm4sr')}, polars {pl.__version__}",
        "format": source.format,
        "sources": [file_record(path) for path in source.files],
        "settings": {**report.rules.model_dump(mode="json"), **source.settings()},
        **{name: counts[name] for name in counts if name not in ("out", "rules")},
        "result": result_record(folder),
    }
