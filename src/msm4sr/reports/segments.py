"""The tables of a grid report by segments of the users (`evaluation.segments`)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from msm4sr.evaluation.segments import Segment, segments
from msm4sr.reports.comparison import Comparison, Score, user_tables
from msm4sr.reports.table_writer import Column, Table
from msm4sr.reports.tables import TableBuilder, metric_cells, metric_name

BY_SEGMENT = ("recall@10", "ndcg@10")


@dataclass(frozen=True)
class SegmentMetrics:
    """Metrics of the rows on one data set by segments of one kind, means over seeds."""

    kind: str
    users: Mapping[str, int]  # segment to its number of users, in the first row that has it
    differ: bool  # whether rows or seeds have other users in their segments
    metrics: Mapping[tuple[str, str, str], float]  # by row, metric and segment


def segment_metrics(comparison: Comparison, data: str) -> list[SegmentMetrics]:
    """By every kind of segment, for the rows with users.parquet."""
    tables = {row.name: user_tables(comparison.results.finished(data, row.name)) for row in comparison.rows}
    found = {name: [segments(table) for table in seeds] for name, seeds in tables.items()}
    return [
        _by(kind, found) for kind in dict.fromkeys(kind for seeds in found.values() for one in seeds for kind in one)
    ]


def _by(kind: str, found: Mapping[str, Sequence[Mapping[str, Sequence[Segment]]]]) -> SegmentMetrics:
    """By segments of one kind; `found` has the segments of each row and seed."""
    users: dict[str, int] = {}
    values: dict[tuple[str, str, str], list[float]] = {}
    counts = [{one.name: one.users for one in seed[kind]} for seeds in found.values() for seed in seeds if kind in seed]
    for row, seeds in found.items():
        for one in (one for seed in seeds for one in seed.get(kind, ())):
            users.setdefault(one.name, one.users)
            for metric in BY_SEGMENT:
                values.setdefault((row, metric, one.name), []).append(one.metrics[metric])
    means = {place: float(np.mean(of_seeds)) for place, of_seeds in values.items()}
    return SegmentMetrics(kind, users, any(one != counts[0] for one in counts), means)


def segment_tables(comparison: Comparison, data: str, found: Sequence[SegmentMetrics]) -> list[Table]:
    """A table for each kind of segment."""
    names: list[str] = []
    for one in found:
        name = re.sub(r"[^\w.]+", "-", one.kind).strip("-") or "column"
        names.append(f"{name}-{len(names)}" if name in names else name)
    return [_table(comparison, data, *both) for both in zip(found, names, strict=True)]


def _table(comparison: Comparison, data: str, found: SegmentMetrics, name: str) -> Table:
    named = {row for row, _, _ in found.metrics}
    build = TableBuilder((row for row in comparison.rows if row.name in named), comparison.results)
    for metric in BY_SEGMENT:
        for segment, users in found.users.items():
            values = [found.metrics.get((row.name, metric, segment)) for row in build.rows]
            scores = [None if value is None else Score((value,)) for value in values]
            cells = metric_cells(scores, not found.differ)
            size = "" if found.differ else f" (n={users:,})"
            build.add(Column(f"{segment}{size}", metric_name(metric)), cells)
    note = f"Users by {found.kind} (n: users); test part, means over seeds."
    if found.differ:
        note = f"Users by {found.kind}; test part, means over seeds. The segments of the rows have different users."
    title = f"By {found.kind}, {data}{comparison.suffix}"
    return build.table(f"{comparison.name}-by-{name}-{data}", title, [note])
