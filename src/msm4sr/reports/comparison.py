"""The statistics of a grid: means and deviations over seeds, and a paired test of each row against a reference row.

The reference of a column (a metric on a data set) is the best baseline or, if all rows are variants of one system
(`VARIANTS`), the full system. The test is a paired bootstrap over users, of metrics that are averaged over a row's
seeds; p-values are adjusted by Holm's method over the rows of the column.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from msm4sr.errors import InputError, command
from msm4sr.evaluation.metrics import METRICS as ALL_METRICS
from msm4sr.evaluation.metrics import metrics_per_user
from msm4sr.evaluation.significance import RESAMPLES, Difference, holm, mean_over_seeds, paired_bootstrap
from msm4sr.evaluation.users import Part, users_of
from msm4sr.experiments.grid import Row
from msm4sr.reports.results import GridResults, Outcome
from msm4sr.reports.table_writer import signed

METRICS = ("recall@5", "recall@10", "recall@20", "ndcg@5", "ndcg@10", "ndcg@20")  # the columns of the paper
LEVEL = 0.05  # of significance, after Holm's adjustment; confidence intervals have the level 1 - LEVEL
VARIANTS = ("ablation", "modality", "sensitivity", "any_modality")
EXCLUDES = "evaluation.exclude_seen"
FULL_RANKING = ", full ranking, seen items "  # in the protocol of a run, between its split and "included" or "excluded"
PROTOCOLS = {False: "seen items included", True: "seen items excluded"}

PerUser = Mapping[str, npt.NDArray[np.float64]]
"""Metric to its value for each user: [users]."""


@dataclass(frozen=True)
class Score:
    """A metric of a row on a data set: one value per finished seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / len(self.values)

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation (n - 1) over seeds; None for one seed."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None


Scores = Mapping[tuple[str, str, str], Score]
"""(data set, row, metric) to the score of a row that has a finished cell."""


@dataclass(frozen=True)
class PairedTest:
    """A row tested against a reference row."""

    against: str
    difference: Difference  # of the means over users, row minus reference, with its unadjusted p-value
    p: float  # adjusted by Holm's method over the rows of the column
    users: int

    @property
    def interval(self) -> str:
        """The difference with its interval."""
        return f"{signed(self.difference.mean)} [{signed(self.difference.low)}, {signed(self.difference.high)}]"

    @property
    def sign(self) -> int:
        """1: significantly better, -1: significantly worse, 0: neither."""
        return int(np.sign(self.difference.mean)) if self.p <= LEVEL else 0


@dataclass(frozen=True)
class Comparison:
    """Rows that are ranked by one protocol, with their scores on the test part and the tests between them."""

    results: GridResults  # those of its protocol
    metrics: tuple[str, ...]
    resamples: int
    excludes_seen: bool
    protocol: str = ""  # what a title adds if a grid has several protocols, such as "seen items excluded"
    split: str = "leave-one-out"
    secondary: bool = False  # a second evaluation, with seen items excluded, where a row's own protocol includes them
    scores: Scores = field(default_factory=dict)
    references: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(data set, metric) to the row that the others are tested against."""
    tests: Mapping[tuple[str, str, str], PairedTest] = field(default_factory=dict)
    """(data set, row, metric) to the test of the row."""
    untested: Sequence[tuple[str, str]] = ()
    """Data set, and which row is not tested on it and why."""

    @property
    def rows(self) -> tuple[Row, ...]:
        return self.results.rows

    @property
    def name(self) -> str:
        """The name of the grid with the protocol, for files."""
        return "-".join([self.results.name, *self.protocol.replace(",", "").split()])

    @property
    def suffix(self) -> str:
        """The protocol, to be appended to a title."""
        return f", {self.protocol}" if self.protocol else ""

    @property
    def is_of_variants(self) -> bool:
        return self.results.kind in VARIANTS

    def label(self, row: str) -> str:
        return self.results.labels[row]

    def best(self, data: str, metric: str, ours: bool) -> str | None:
        """The best of our rows, or of the baselines."""
        names = [row.name for row in self.rows if (row.name in self.results.ours) == ours]
        means = {name: self.scores[data, name, metric].mean for name in names if (data, name, metric) in self.scores}
        return max(means, key=means.__getitem__, default=None)

    def improvement(self, data: str, metric: str) -> float | None:
        """The relative improvement of the best of our rows over the best baseline."""
        mine, other = self.best(data, metric, True), self.best(data, metric, False)
        if mine is None or other is None or self.is_of_variants:
            return None
        base = self.scores[data, other, metric].mean
        return self.scores[data, mine, metric].mean / base - 1 if base > 0 else None


def check_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    """These metrics, by default those of the paper. Raises InputError for an unknown metric."""
    for metric in metrics:
        if metric not in ALL_METRICS:
            raise InputError(f"--metric {metric}: there is no such metric; there are {', '.join(ALL_METRICS)}")
    return tuple(dict.fromkeys(metrics)) or METRICS


def measure(results: GridResults, metrics: Sequence[str] = METRICS, resamples: int = RESAMPLES) -> list[Comparison]:
    """Scores and tests of a grid, one comparison per protocol: rows of different protocols are not comparable.

    Without resamples of the paired bootstrap there are no tests.
    """
    protocols = sorted({_protocol(outcome) for outcome in results.all()})
    several = [len(set(values)) > 1 for values in zip(*protocols, strict=True)]
    return [
        _compare(
            Comparison(
                results.where(lambda cell, own=protocol: _protocol(cell) == own),  # type: ignore[misc]
                tuple(metrics),
                resamples,
                protocol[1],
                ", ".join(itertools.compress([protocol[0], PROTOCOLS[protocol[1]]], several)),
                protocol[0],
            )
        )
        for protocol in protocols
    ]


def _protocol(cell: Outcome) -> tuple[str, bool]:
    """The split of a cell in words, and whether seen items are excluded."""
    settings, split = cell.settings, "leave-one-out"
    if settings.get("dataset.split") == "temporal":
        validation, test = settings.get("dataset.validation_from", 0.8), settings.get("dataset.test_from", 0.9)
        split = f"temporal split at {validation} and {test}, {settings.get('dataset.targets', 'first')} targets"
    return split, bool(settings.get(EXCLUDES, False))


def measure_seen_excluded(results: GridResults, comparisons: Sequence[Comparison]) -> list[Comparison]:
    """All rows of each split with seen items excluded, unless that changes none of them."""
    found, splits = [], list(dict.fromkeys(one.split for one in comparisons))
    for split in splits:
        part = results.where(lambda cell, own=split: _protocol(cell)[0] == own)  # type: ignore[misc]
        metrics = [outcome.metrics for outcome in part.all() if outcome.state == "finished"]
        if any(of["test"] != of["seen_excluded"]["test"] for of in metrics):
            own = [one for one in comparisons if one.split == split]
            parts = [split] * (len(splits) > 1) + ["all rows"] * (len(own) > 1) + [PROTOCOLS[True]]
            one = replace(own[0], results=part, excludes_seen=True, protocol=", ".join(parts), secondary=True)
            found.append(_compare(one))
    return found


def scores_of(comparison: Comparison, part: Part) -> Scores:
    """The scores of a part, of all rows that have a finished cell."""
    found = {}
    for data in comparison.results.data:
        for row in comparison.rows:
            cells = comparison.results.finished(data, row.name)
            parts = [(c.metrics["seen_excluded"] if comparison.secondary else c.metrics)[part] for c in cells]
            for metric in comparison.metrics if parts else ():
                for cell, values in zip(cells, parts, strict=True):
                    if metric not in values:
                        raise InputError(f"{cell.folder}: has no {metric}; {command('evaluate', cell.folder)} adds it")
                found[data, row.name, metric] = Score(tuple(float(values[metric]) for values in parts))
    return found


def _compare(comparison: Comparison) -> Comparison:
    """The comparison with scores, references and tests."""
    comparison = replace(comparison, scores=scores_of(comparison, "test"))
    columns = [(data, metric) for data in comparison.results.data for metric in comparison.metrics]
    references = {column: row for column in columns if (row := _reference(comparison, *column)) is not None}
    comparison = replace(comparison, references=references)
    tests: dict[tuple[str, str, str], PairedTest] = {}
    untested: list[tuple[str, str]] = []
    for data in comparison.results.data if comparison.resamples else ():
        values, users, reasons = _values_per_user(comparison, data)
        tests |= _tests(comparison, data, values, users)
        untested += [(data, reason) for reason in reasons]
    return replace(comparison, tests=tests, untested=untested)


def _reference(comparison: Comparison, data: str, metric: str) -> str | None:
    """The row that a column's other rows are tested against; None if it has no finished cell."""
    if not comparison.is_of_variants:
        return comparison.best(data, metric, ours=False)
    names = {row.name for row in comparison.rows}
    full = next((name for name in comparison.results.ours if name in names), "")
    return full if (data, full, metric) in comparison.scores else None


def _values_per_user(comparison: Comparison, data: str) -> tuple[dict[str, PerUser], int, list[str]]:
    """Row to its metrics per user, averaged over seeds, references first; the number of users; why rows are missing."""
    users: pl.DataFrame | None = None
    values: dict[str, PerUser] = {}
    reasons = []
    rows = [row.name for row in comparison.rows if (data, row.name, comparison.metrics[0]) in comparison.scores]
    references = {row for (name, _), row in comparison.references.items() if name == data}
    for row in sorted(rows, key=lambda name: name not in references):
        finished = comparison.results.finished(data, row)
        tables = user_tables(finished)
        if len(tables) < len(finished):
            reasons.append(f"{comparison.label(row)} has no users.parquet (`msm4sr evaluate` makes it)")
            continue
        users = tables[0].select("user_id", "item_id") if users is None else users
        if any(not table.select("user_id", "item_id").equals(users) for table in tables):
            reasons.append(f"{comparison.label(row)} was tested on other users or items than the others")
            continue
        column = "rank_seen_excluded" if comparison.secondary else "rank"
        seeds = [metrics_per_user(table[column].to_numpy(), users_of(table)) for table in tables]
        values[row] = {metric: mean_over_seeds([seed[metric] for seed in seeds]) for metric in comparison.metrics}
    return values, 0 if users is None else users["user_id"].n_unique(), reasons


def user_tables(outcomes: Sequence[Outcome]) -> list[pl.DataFrame]:
    """The test part of users.parquet of the outcomes that have it."""
    return [table for outcome in outcomes if (table := outcome.test_users) is not None]


def _tests(
    comparison: Comparison, data: str, values: Mapping[str, PerUser], users: int
) -> dict[tuple[str, str, str], PairedTest]:
    """The tests of a data set; all of them share the resamples of the users."""
    pairs = [
        (row, metric, reference)
        for metric in comparison.metrics
        if (reference := comparison.references.get((data, metric), "")) in values
        for row in values
        if row != reference
    ]
    if not pairs:
        return {}
    first = np.stack([values[row][metric] for row, metric, _ in pairs], axis=1)
    second = np.stack([values[reference][metric] for _, metric, reference in pairs], axis=1)
    differences = paired_bootstrap(first, second, resamples=comparison.resamples, confidence=1 - LEVEL)
    tests = {}
    for metric, column in itertools.groupby(zip(pairs, differences, strict=True), key=lambda test: test[0][1]):
        own = list(column)
        for ((row, _, reference), found), p in zip(own, holm([found.p for _, found in own]), strict=True):
            tests[data, row, metric] = PairedTest(reference, found, p, users)
    return tests
