"""Statistics of a prepared folder, as papers print them, and the distributions behind them.

They describe the folder before any rule of `load_dataset` drops users or items. The interactions are streamed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from msm4sr.data.items import has_image
from msm4sr.data.schema import END_OF_TIME, INTERACTIONS, read_items, scan_interactions
from msm4sr.errors import InputError

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of a data set."""

    folder: Path
    items: pl.DataFrame  # as `read_items` gives it
    history_lengths: Counts  # interactions of each user, ascending
    item_counts: Counts  # interactions of each item of the catalogue, ascending; 0 for unseen items
    repeats: int  # interactions with an item that the user had interacted with before
    period: tuple[datetime, datetime] | None  # the times of the first and the last interaction
    months: list[tuple[str, int]]  # ("2009-09", interactions) for each month of the period; empty without times

    @property
    def n_users(self) -> int:
        return len(self.history_lengths)

    @property
    def n_items(self) -> int:
        return len(self.item_counts)

    @property
    def n_interactions(self) -> int:
        return int(self.history_lengths.sum())

    @property
    def sparsity(self) -> float:
        """1 - interactions / (users x items); repeats count as interactions."""
        return 1 - self.n_interactions / (self.n_users * self.n_items)

    @property
    def text_lengths(self) -> Counts:
        """Characters of title and text of each item, 0 if there are none."""
        characters = pl.sum_horizontal(pl.col("title", "text").str.len_chars().fill_null(0)).cast(pl.Int64)
        return self.items.select(characters).to_series().to_numpy()

    def has(self, column: str) -> int:
        """How many items have a title, text, categories or image. Images that are not fetched yet do not count."""
        if column != "image":
            return self.items[column].count()
        return sum(map(has_image, self.items["image"].to_list()))

    def lines(self) -> list[tuple[str, str]]:
        """The statistics as label and value."""

        def share(count: int) -> str:
            return f"{count:,} ({count / self.n_items:.1%})"

        def spread(counts: Counts) -> str:
            return f"mean {counts.mean():.2f}, median {np.median(counts):g}, {counts.min():,} to {counts.max():,}"

        either = self.items.select((pl.col("title").is_not_null() | pl.col("text").is_not_null()).sum()).item()
        addresses = self.items["image"].count() - self.has("image")
        lines = [
            ("Users", f"{self.n_users:,}"),
            ("Items", f"{self.n_items:,}"),
            ("Interactions", f"{self.n_interactions:,}"),
            ("Interactions per user", spread(self.history_lengths)),
            ("Interactions per item", spread(self.item_counts)),
            ("Sparsity", f"{self.sparsity:.3%}"),
            ("Repeated interactions", f"{self.repeats:,} ({self.repeats / self.n_interactions:.1%})"),
            ("Unseen items", share(int((self.item_counts == 0).sum()))),
            ("Items with title or text", share(either)),
            *((f"Items with {column}", share(self.has(column))) for column in ("text", "categories", "image")),
        ]
        if addresses:
            lines.append(("Items with unfetched images", f"{share(addresses)}; download them with fetch-images"))
        if self.period is not None:
            lines.append(("Period", f"{self.period[0]:%Y-%m-%d} to {self.period[1]:%Y-%m-%d}"))
        return lines


def statistics(folder: Path) -> Statistics:
    """Count what a prepared folder contains.

    Raises InputError for a folder that cannot be read, without interactions, or an item that the catalogue lacks.
    """
    interactions, items = scan_interactions(folder), read_items(folder)
    by_user, by_item = (
        interactions.group_by(column).agg(pl.len().cast(pl.Int64)).collect(engine="streaming")
        for column in ("user_id", "item_id")
    )
    users, counts = by_user["len"].sort().to_numpy(), by_item["len"].sort().to_numpy()
    if not len(users):
        raise InputError(f"{folder / INTERACTIONS}: no rows; at least one user with 3 interactions is needed")
    unknown = by_item.join(items, on="item_id", how="anti")
    if len(unknown):
        raise InputError(
            f"{folder / INTERACTIONS}: {len(unknown):,} items are not in items.parquet (for example "
            f"{unknown['item_id'].min()!r}); add them, or prepare the data set again"
        )
    pairs = interactions.select("user_id", "item_id").unique().select(pl.len()).collect(engine="streaming").item()
    period, months = _times(folder, interactions)
    return Statistics(
        folder=folder,
        items=items,
        history_lengths=users,
        item_counts=np.concatenate([np.zeros(len(items) - len(counts), np.int64), counts]),
        repeats=int(users.sum()) - pairs,
        period=period,
        months=months,
    )


def _times(folder: Path, interactions: pl.LazyFrame) -> tuple[tuple[datetime, datetime] | None, list[tuple[str, int]]]:
    if "timestamp" not in interactions.collect_schema():
        return None, []
    times = pl.col("timestamp")
    first, last = interactions.select(times.min().alias("first"), times.max().alias("last")).collect().row(0)
    if last is None or last >= END_OF_TIME:
        raise InputError(
            f"{folder / INTERACTIONS}: column 'timestamp': {last} is not between 1970 and 9999; write seconds"
        )
    month = pl.from_epoch("timestamp", time_unit="s").dt.truncate("1mo").alias("month")
    counted = interactions.group_by(month).len().sort("month").collect(engine="streaming")
    counted = counted.upsample("month", every="1mo") if len(counted) > 1 else counted
    period = (datetime.fromtimestamp(first, UTC), datetime.fromtimestamp(last, UTC))
    return period, [(f"{begin:%Y-%m}", count or 0) for begin, count in counted.select("month", "len").iter_rows()]
