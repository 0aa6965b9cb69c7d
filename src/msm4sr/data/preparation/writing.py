"""The tables and images of a prepared folder, streamed to disk."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from msm4sr.data.kcore import Flags
from msm4sr.data.preparation.images import ImageFolder, SafeNames, copy_images, is_url
from msm4sr.data.preparation.report import PrepareReport
from msm4sr.data.preparation.rows import MICROSECONDS
from msm4sr.data.preparation.rules import Interactions, distinct
from msm4sr.data.schema import ITEM_COLUMNS, ITEMS

ROW_GROUP = 1 << 20  # interactions of a row group
ITEM_GROUP = 1 << 16  # items of a row group: their texts are long


def write_interactions(
    interactions: Interactions, user_ids: pl.Series, item_ids: pl.Series, path: Path, report: PrepareReport
) -> None:
    """Write sorted interactions; numbers become IDs a chunk at a time."""
    user, time = interactions.user, interactions.order
    report.interactions_kept, report.users = len(user), distinct(user, len(user_ids))
    columns = {"user_id": pl.Series(user), "item_id": pl.Series(interactions.item)}
    if time is not None and interactions.has_time:
        columns["timestamp"] = pl.Series(time // MICROSECONDS)
        begin, end = (datetime.fromtimestamp(int(t) // MICROSECONDS, UTC) for t in (time.min(), time.max()))
        report.order += f", from {begin:%Y-%m-%d} to {end:%Y-%m-%d}"
    else:
        first = np.flatnonzero(np.diff(user, prepend=-1))
        lengths = np.diff(first, append=len(user))
        columns["position"] = pl.Series((np.arange(len(user)) - np.repeat(first, lengths)).astype(np.int32))
    if interactions.rating is not None:
        columns["rating"] = pl.Series(interactions.rating).fill_nan(None)
    named = [
        pl.col(column).map_batches(ids.gather, return_dtype=pl.String, is_elementwise=True)
        for column, ids in (("user_id", user_ids), ("item_id", item_ids))
    ]
    _write(pl.DataFrame(columns).lazy().with_columns(named), path, ROW_GROUP)


def write_part(frame: pl.DataFrame, folder: Path, number: int) -> Path:
    """Write a part of the catalogue, to be read again by `write_catalogue`."""
    path = folder / f"{number:06d}.parquet"
    frame.write_parquet(path, compression="lz4")
    return path


def write_catalogue(
    parts: Sequence[Path], kept: Flags, images: ImageFolder, where: Path, folder: Path, report: PrepareReport
) -> None:
    """Copy the images of the items that are kept (bool [codes]), and join the parts in `items.parquet`.

    `parts` have the column `code` and some of `ITEM_COLUMNS`; they are overwritten. `where` names the file of the items
    in messages.
    """
    names = SafeNames()
    for path in parts:
        part = pl.read_parquet(path)
        part = part.filter(pl.Series(kept[part["code"].to_numpy()]))
        ids = part["item_id"].to_list()
        listed = [paths or [] for paths in part["image"].to_list()] if "image" in part.columns else [None] * len(ids)
        copied: list[list[str] | None] = []
        for item_id, paths in zip(ids, listed, strict=True):
            found = images.find(item_id, paths, f"{where}: item {item_id!r}")
            copied.append(copy_images(item_id, found, folder, names) or None)
        part = part.with_columns(pl.Series("image", copied, ITEM_COLUMNS["image"]))
        part = part.select(name for name in ITEM_COLUMNS if name in part.columns)
        report.items_kept += len(part)
        report.with_urls += sum(any(map(is_url, paths or ())) for paths in copied)
        for name in part.columns[1:]:
            counter = f"with_{name}"
            setattr(report, counter, getattr(report, counter) + part[name].count())
        part.write_parquet(path, compression="lz4")
    write_items(pl.scan_parquet(list(parts), glob=False), folder / ITEMS)


def write_items(items: pl.LazyFrame, path: Path) -> None:
    """Stream a catalogue to disk."""
    _write(items, path, ITEM_GROUP)


def _write(table: pl.LazyFrame, path: Path, group: int) -> None:
    table.sink_parquet(path, compression="zstd", row_group_size=group, maintain_order=True, engine="streaming")
