"""The size of a prepared folder, by which a preset chooses settings before the data are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from msm4sr.data.schema import INTERACTIONS, scan_parquet


@dataclass(frozen=True)
class DataSize:
    """How large a data set is. Items are those that have interactions."""

    users: int
    items: int
    interactions: int


def measure_size(folder: Path) -> DataSize | None:
    """The size of a prepared folder; None if it cannot be read, as loading then reports."""
    counts = [pl.col("user_id").n_unique(), pl.col("item_id").n_unique(), pl.len().alias("interactions")]
    try:
        row = scan_parquet(folder / INTERACTIONS).select(counts).collect(engine="streaming").row(0)
    except (OSError, pl.exceptions.PolarsError):
        return None
    return DataSize(*row)
