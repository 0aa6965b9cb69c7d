"""From a source to a prepared folder: the pipeline that all sources share.

A source yields two tables in blocks: interactions and items. This module then, in this order,

1. drops interactions without a rating or under `min_rating`, and those with an item that the catalogue lacks
   (`unknown_items: drop`);
2. keeps the first of items with the same ID;
3. keeps the first of interactions with the same user, item and time, and with `repeats: last` the latest of a user's
   interactions with the same item;
4. drops users with fewer than `user_core` and items with fewer than `item_core` interactions until all that remain
   satisfy both; such items leave the catalogue too;
5. sorts interactions by user (first appearance among the rows that 1 left), time, **order in the files**; items are in
   the order of their file, then those that only the interactions mention, by first appearance in the result;
6. copies images, writes the tables, and `provenance.json`: sources with their hashes, settings, the counts after each
   step, what was dropped and why, and hashes of the result.

The folder does not depend on the clock, on paths or on the order of threads: the same input gives the same bytes
everywhere. Data can be larger than memory: blocks are written to `parts/` inside the unfinished folder, and DuckDB
joins, groups and sorts them there. Beyond the limit of memory are only 5 bytes for each user and item.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from msm4sr.data.database import Database, default_memory
from msm4sr.data.preparation.catalogue import ImageFolder, write_catalogue
from msm4sr.data.preparation.describe_users import read_user_table, write_user_table
from msm4sr.data.preparation.numbering import Numbering
from msm4sr.data.preparation.source import PrepareReport, Rules, Source
from msm4sr.data.schema import INTERACTIONS, ITEMS, PROVENANCE, file_record, result_record
from msm4sr.files import atomic_folder, write_json


def prepare(source: Source, out: Path, rules: Rules | None = None, memory: int | None = None) -> PrepareReport:
    """Write the prepared folder `out`, new or empty; it appears complete or not at all.

    Args:
        source: the format and its files.
        out: the folder to create.
        rules: which interactions and items are kept; None: those of the source.
        memory: bytes that this process may use; None: half of the free memory.

    Raises:
        InputError: `out` is not empty, a file cannot be read or has too many invalid rows, an image lies outside the
            folder of images, nothing is left, or the memory is too small.
        OSError: the disk is full.
    """
    report = PrepareReport(out.resolve(), rules or source.rules)
    images = ImageFolder(source.images, report)
    users = read_user_table(source)
    with atomic_folder(out) as folder:
        (folder / "parts").mkdir()
        (folder / "images").mkdir()
        read = sum(path.stat().st_size for path in source.files if path.exists())
        with Database(folder / "parts", memory or default_memory(), read) as database:
            numbering = Numbering(source, report, database)
            blocks, catalogue = source.read_interactions(report), source.read_items(report)
            if catalogue is not None:
                numbering.read_items(catalogue)
            interactions = numbering.read_interactions(blocks)
            interactions.apply(report.rules, report)
            if not interactions.count:
                raise report.nothing_left(source.files[0], "; use a smaller core")
            interactions.write(folder / INTERACTIONS, report)
            if users is not None:
                write_user_table(users, source, folder, report)
            kept = interactions.seen_items()
            if report.rules.unseen_items == "keep" and not report.rules.item_core:
                kept |= numbering.listed_items()
            if catalogue is not None or source.images is not None:
                numbering.add_unlisted(interactions.table)
        if numbering.catalogue is not None:
            write_catalogue(numbering.catalogue, kept, images, source.files[-1], folder, report)
        if catalogue is None:
            report.items_kept = int(kept.sum())
            if not report.with_image:
                (folder / ITEMS).unlink(missing_ok=True)
        shutil.rmtree(folder / "parts")
        write_json(folder / PROVENANCE, _provenance(source, report, folder))
    report.notes += numbering.times.future()
    return report


def _provenance(source: Source, report: PrepareReport, folder: Path) -> dict[str, Any]:
    counts = asdict(report)
    return {
        "made_by": f"msm4sr {version('msm4sr')}, polars {pl.__version__}, duckdb {duckdb.__version__}",
        "format": source.format,
        "sources": [file_record(path) for path in [*source.files, *([source.users] if source.users else [])]],
        "settings": {**report.rules.model_dump(mode="json"), **source.settings()},
        **{name: counts[name] for name in counts if name not in ("out", "rules")},
        "result": result_record(folder),
    }
