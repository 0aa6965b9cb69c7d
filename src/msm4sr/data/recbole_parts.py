"""The parts of a temporal split as RecBole's benchmark files: RecBole cannot split by a time for all users itself.

`NAME.train.inter`, `NAME.valid.inter` and `NAME.test.inter` are for general recommenders. `NAME.train-sequential.inter`
and so on are for sequential ones: each row has the latest items before its item. Validation and test have the targets
of the users with training interactions, as the main metrics.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from msm4sr.data.dataset import Dataset, of_known_users, test_targets, training_histories, validation_targets
from msm4sr.data.remaining import Ints
from msm4sr.errors import InputError
from msm4sr.ragged import Ragged

PARTS = ("train", "valid", "test")
LONGEST = 50  # items of a history that RecBole's sequential models read (MAX_ITEM_LIST_LENGTH)
TYPES = {"user_id": "token", "item_id_list": "token_seq", "item_id": "token"}


def recbole_parts(dataset: Dataset, separator: str) -> dict[str, pl.DataFrame]:
    """The name of each part to its columns `user_id`, `item_id`, and `item_id_list` for a sequential model.

    Raises InputError for an item ID that contains the separator.
    """
    if any(separator in item_id for item_id in dataset.item_ids):
        raise InputError(f"{dataset.folder}: an item ID contains {separator!r}, which separates the items of a history")
    general, sequential = {}, {}
    for name, targets in (("valid", validation_targets(dataset)), ("test", test_targets(dataset))):
        known = of_known_users(dataset, targets)
        row = np.arange(len(known.targets)) if known.rows is None else known.rows
        end = known.histories.offsets[1:][row]
        general[name] = _columns(dataset, known.target_users, known.targets)
        lists = _lists(dataset, known.histories.values, known.histories.offsets[row], end, separator)
        sequential[f"{name}-sequential"] = general[name].with_columns(item_id_list=lists)
    histories = training_histories(dataset)
    users, place = histories.row_numbers, np.arange(len(histories.values))
    start = histories.offsets[users]
    train = _columns(dataset, users, histories.values)
    lists = _lists(dataset, histories.values, start, place, separator)
    follows = pl.Series(place > start)
    sequential["train-sequential"] = train.with_columns(item_id_list=lists).filter(follows)
    return {"train": train} | general | sequential


def _columns(dataset: Dataset, users: Ints, items: Ints) -> pl.DataFrame:
    names = pl.Series(dataset.user_ids), pl.Series(dataset.item_ids)
    return pl.DataFrame({"user_id": names[0].gather(users), "item_id": names[1].gather(items)})


def _lists(dataset: Dataset, values: Ints, start: Ints, end: Ints, separator: str) -> pl.Series:
    """The latest items of values[start:end] of each row, as a text."""
    lengths = np.minimum(end - start, LONGEST)
    rows = Ragged.from_lengths(np.arange(lengths.sum()), lengths)
    place = rows.values - np.repeat(rows.offsets[1:], lengths) + np.repeat(end, lengths)
    items = pl.Series(dataset.item_ids).gather(values[place])
    frame = (
        pl.DataFrame({"row": rows.row_numbers, "item": items}).group_by("row").agg(pl.col("item").str.join(separator))
    )
    return pl.DataFrame({"row": np.arange(len(lengths))}).join(frame, on="row", how="left", maintain_order="left")[
        "item"
    ]


def write_recbole_parts(parts: dict[str, pl.DataFrame], folder: Path, name: str) -> None:
    """Write `NAME.PART.inter` of each part."""
    for part, table in parts.items():
        typed = table.rename({column: f"{column}:{TYPES[column]}" for column in table.columns})
        typed.write_csv(folder / f"{name}.{part}.inter", separator="\t", quote_style="never")
