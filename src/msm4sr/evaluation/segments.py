"""Metrics of segments of the users: by history length, popularity and category of the target, and own columns.

They follow from `users.parquet` of a run (`evaluation.users`). A segment's metrics are means
over the users with a target in it, of these targets.

    history length       items of the history that the target is ranked after, in `BUCKETS`
    popularity of the target
                         its training interactions, in the same buckets; 0: an item without training data
    category             of the target: the `MOST` categories with the most targets, each with all targets that have
                         it, then those with other categories only, then those without a category
    a column of users.parquet of the data
                         each value; numbers with more than `MOST` values by quartile, and the `MOST` most frequent
                         strings, then the others
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from msm4sr.evaluation.metrics import mean_metrics
from msm4sr.evaluation.users import OWN, users_of

MOST = 10  # values of a column, or categories, that are segments of their own
NONE, OTHERS = "none", "others"
POPULARITY = "popularity of the target"
BUCKETS = {"0": (0, 0), "1-5": (1, 5), "6-10": (6, 10), "11-20": (11, 20), "21-50": (21, 50), ">50": (51, None)}
"""From name to the lowest and the highest count; None: no upper bound."""

Groups = Mapping[str, npt.NDArray[np.bool_]]
"""The rows of each segment: name to bool [rows]."""


class Segment(NamedTuple):
    """A segment, the number of its users, and their metrics."""

    name: str
    users: int
    metrics: dict[str, float]


def segments(table: pl.DataFrame) -> dict[str, list[Segment]]:
    """The segments of each kind, in the order of the module; kinds that divide nothing are omitted.

    `table` is what `evaluation.users.tested` returns.
    """
    ranks, users, found = table["rank"].to_numpy(), users_of(table), {}
    for kind, groups in groups_of(table).items():
        some = {name: rows for name, rows in groups.items() if rows.any()}
        if len(some) > 1:
            found[kind] = [
                Segment(name, len(np.unique(users[rows])), mean_metrics(ranks[rows], users[rows]))
                for name, rows in some.items()
            ]
    return found


def groups_of(table: pl.DataFrame) -> dict[str, Groups]:
    """The segments of each kind; of a run that an earlier version evaluated, only those that it recorded."""
    found: dict[str, Groups] = {}
    for kind, column in (("history length", "history_length"), (POPULARITY, "item_count")):
        if column in table.columns:
            found[kind] = _buckets(table[column].to_numpy())
    if "categories" in table.columns:
        found["category"] = _categories(table["categories"])
    for column in table.columns:
        if column.startswith(OWN):
            name = column.removeprefix(OWN)
            found[f"{name} (column)" if name in found else name] = _values(table[column])
    return found


def _buckets(counts: npt.NDArray[np.int32]) -> Groups:
    return {
        name: (counts >= low) & (counts <= (np.iinfo(np.int32).max if high is None else high))
        for name, (low, high) in BUCKETS.items()
    }


def _categories(lists: pl.Series) -> Groups:
    frame = lists.to_frame("names").select(pl.col("names").fill_null([]))
    counts = frame.explode("names").drop_nulls().group_by("names").len()
    names = counts.sort(["len", "names"], descending=[True, False])["names"].head(MOST).to_list()
    groups = {name: frame.select(pl.col("names").list.contains(name)).to_series().to_numpy() for name in names}
    empty = frame.select(pl.col("names").list.len() == 0).to_series().to_numpy()
    listed = np.logical_or.reduce([empty, *groups.values()])
    return groups | {_free(OTHERS, groups): ~listed, _free(NONE, groups): empty}


def _values(column: pl.Series) -> Groups:
    known = column.is_not_null().to_numpy()
    values = column.drop_nulls().unique().sort()
    groups: dict[str, npt.NDArray[np.bool_]]
    if column.dtype.is_numeric() and len(values) > MOST:
        edges = np.unique(np.quantile(column.drop_nulls().to_numpy(), [0, 0.25, 0.5, 0.75, 1], method="lower"))
        numbers = column.cast(pl.Float64).fill_null(np.nan).to_numpy()
        groups = {}
        for number, (low, high) in enumerate(pairwise(edges.tolist())):
            above = numbers >= low if number == 0 else numbers > low
            name = " to ".join(np.format_float_positional(edge, trim="-") for edge in (low, high))  # all digits
            groups[name if number == 0 else f"over {name}"] = above & (numbers <= high)
    else:
        if len(values) > MOST:
            counts = column.drop_nulls().value_counts().sort(["count", column.name], descending=[True, False])
            values = counts[column.name].head(MOST)
        groups = {str(value): (column == value).fill_null(False).to_numpy() for value in values}
    listed = np.logical_or.reduce([~known, *groups.values()])
    return groups | {_free(OTHERS, groups): ~listed, _free("unknown", groups): ~known}


def _free(name: str, used: Groups) -> str:
    """The name of a rest, in parentheses where a value has it."""
    return f"({name})" if name in used else name
