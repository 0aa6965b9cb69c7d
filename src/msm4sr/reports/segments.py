"""The tables of a grid report by segments of the users (`evaluation.segments`)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from msm4sr.evaluation.popularity import Bucket
from msm4sr.evaluation.segments import POPULARITY, segments
from msm4sr.reports.comparison import Comparison, Score, user_tables
from msm4sr.reports.table_writer import Column, Table
from msm4sr.reports.tables import TableBuilder, metric_cells, metric_name

BY_SEGMENT = ("recall@10", "ndcg@10")

Found = Mapping[str, Sequence[Mapping[str, Sequence[Bucket]]]]
"""Row to its seeds, each with the segments of each kind."""


def segment_tables(comparison: Comparison, data: str) -> Iterator[Table]:
    """A table for each kind of segment, except the target's popularity, which has its own; means over seeds."""
    tables = {row.name: user_tables(comparison.results.finished(data, row.name)) for row in comparison.rows}
    found = {name: [segments(table) for table in seeds] for name, seeds in tables.items()}
    for kind in dict.fromkeys(kind for seeds in found.values() for seed in seeds for kind in seed):
        if kind != POPULARITY:
            yield _table(comparison, data, kind, found)


def _table(comparison: Comparison, data: str, kind: str, found: Found) -> Table:
    of_rows = {name: [seed[kind] for seed in seeds if kind in seed] for name, seeds in found.items()}
    build = TableBuilder((row for row in comparison.rows if of_rows[row.name]), comparison.results)
    users = {one.name: one.users for seeds in of_rows.values() for seed in seeds for one in seed}
    for metric in BY_SEGMENT:
        for name, count in users.items():
            scores = []
            for row in build.rows:
                values = [one.metrics[metric] for seed in of_rows[row.name] for one in seed if one.name == name]
                scores.append(Score((float(np.mean(values)),)) if values else None)
            build.add(Column(f"{name} (n={count:,})", metric_name(metric)), metric_cells(scores))
    slug = re.sub(r"[^A-Za-z0-9_.]+", "-", kind).strip("-") or "column"
    note = f"Users by {kind} (n: users); test part, means over seeds."
    return build.table(f"{comparison.name}-by-{slug}-{data}", f"By {kind}, {data}{comparison.suffix}", [note])
