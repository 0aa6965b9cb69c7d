"""A small data set with times, and the same with another future."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from msm4sr.data.dataset import Dataset, DataSettings, load_dataset

Event = tuple[str, str, int]
DAY = 86_400


def write(folder: Path, log: list[Event], items: str | None = "fedcba", order: str = "timestamp") -> Path:
    folder.mkdir(exist_ok=True)
    pl.DataFrame(log, ["user_id", "item_id", order], orient="row").write_parquet(folder / "interactions.parquet")
    if items is not None:
        pl.DataFrame({"item_id": list(items)}).write_parquet(folder / "items.parquet")
    return folder


def temporal(**changes: Any) -> DataSettings:
    return DataSettings(split="temporal", **changes)


LOG: list[Event] = [
    (f"u{u}", f"i{(u * 7 + n * n) % 11}", DAY * (u % 5) + n * DAY) for u in range(20) for n in range(3 + u % 6)
]
ITEMS = [f"i{n}" for n in range(11)]
CUTS = {"validation_from": "1970-01-06", "test_from": "1970-01-08"}


def load(log: list[Event], folder: Path, items: list[str] | None = ITEMS, **changes: Any) -> Dataset:
    folder.mkdir(exist_ok=True)
    write(folder, log, None)
    if items is not None:
        pl.DataFrame({"item_id": items}).write_parquet(folder / "items.parquet")
    return load_dataset(folder, temporal(**(CUTS | changes)))


def with_other_future(log: list[Event], begin: int, seed: int = 0) -> list[Event]:
    """The interactions from `begin` on with users and items permuted, and all rows in another order."""
    rng = np.random.default_rng(seed)
    past, future = ([event for event in log if (event[2] >= begin) is late] for late in (False, True))
    users, items = (rng.permutation([event[n] for event in future]).tolist() for n in (0, 1))
    mixed = [*past, *zip(users, items, [event[2] for event in future], strict=True)]
    return [*mixed[len(past) :], *mixed[: len(past)]]
