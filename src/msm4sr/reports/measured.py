"""What is computed of a grid's cells: means, deviations, and each row's test against the one it is compared with.

A row is compared with the best baseline of a column (a metric on a data set), or, where all rows are variants of one
system, with the full one (`VARIANTS`): a paired bootstrap over users, the metric of a user averaged over each row's
seeds, and Holm's correction over the rows of the column.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from msm4sr.errors import InputError
from msm4sr.evaluation.metrics import CUTOFFS, metrics_per_user
from msm4sr.evaluation.popularity import BUCKETS, bucket_metrics
from msm4sr.evaluation.significance import RESAMPLES, Difference, holm, mean_over_seeds, paired_bootstrap
from msm4sr.evaluation.users import Part
from msm4sr.experiments.grid import Row
from msm4sr.reports.results import GridResults

ALL_METRICS = (*(f"{name}@{k}" for name in ("recall", "ndcg") for k in CUTOFFS), "mrr")
METRICS = ("recall@5", "recall@10", "recall@20", "ndcg@5", "ndcg@10", "ndcg@20")  # the columns of the paper
LEVEL = 0.05  # of significance, after Holm's correction; intervals hold 1 - LEVEL
VARIANTS = ("ablation", "modality", "sensitivity", "any_modality")
EXCLUDES = "evaluation.exclude_seen"
LEFT_OUT = "seen_excluded"  # of metrics.json


@dataclass(frozen=True)
class Score:
    """A metric of a row on a data set, a value of each finished seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / len(self.values)

    @property
    def deviation(self) -> float | None:
        """The sample's (n - 1) over seeds; of one seed there is none."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Test:
    """A row against another one."""

    __test__ = False  # pytest must not collect it

    against: str
    difference: Difference
    p: float
    """After Holm's correction over the rows of its column."""
    users: int

    @property
    def sign(self) -> int:
        """1: significantly better, -1: worse, 0: neither."""
        return int(np.sign(self.difference.mean)) if self.p <= LEVEL else 0


@dataclass(frozen=True)
class Measured:
    """All rows that share a protocol, with what was computed of them."""

    results: GridResults
    rows: tuple[Row, ...]
    metrics: tuple[str, ...]
    excludes_seen: bool
    resamples: int
    scores: Mapping[tuple[str, str, str], Score]
    """(data, row, metric); rows without a finished cell have none."""
    against: Mapping[tuple[str, str], str]
    """(data, metric) to the row that the others are compared with."""
    tests: Mapping[tuple[str, str, str], Test]
    untested: Sequence[tuple[str, str]]
    """Data set, and which row could not be compared on it, and why."""
    beside: bool = False
    """A second look at rows that rank histories: the same weights, with the histories left out."""

    @property
    def look(self) -> str:
        """What follows a data set's name in a title, to tell the second look from the first."""
        return ", histories left out" if self.beside else ""

    def label(self, row: str) -> str:
        return next(info.label for info in self.rows if info.name == row)

    def column(self, data: str, metric: str) -> list[float | None]:
        """The mean of each row; None where no cell is finished."""
        scores = [self.scores.get((data, row.name, metric)) for row in self.rows]
        return [None if score is None else score.mean for score in scores]

    def best(self, data: str, metric: str, ours: bool) -> str | None:
        """The best of our rows, or of the baselines."""
        names = [row.name for row in self.rows if (row.name in self.results.ours) == ours]
        there = [name for name in names if (data, name, metric) in self.scores]
        return max(there, key=lambda name: self.scores[data, name, metric].mean, default=None)

    def improvement(self, data: str, metric: str) -> float | None:
        """By what share the best of ours is above the best baseline."""
        mine, other = self.best(data, metric, True), self.best(data, metric, False)
        if mine is None or other is None or self.results.kind in VARIANTS:
            return None
        base = self.scores[data, other, metric].mean
        return self.scores[data, mine, metric].mean / base - 1 if base > 0 else None


def check_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    """InputError for a name that is no metric."""
    for metric in metrics:
        if metric not in ALL_METRICS:
            raise InputError(f"--metric {metric}: there is no such metric; there are {', '.join(ALL_METRICS)}")
    return tuple(metrics) or METRICS


def measure(results: GridResults, metrics: Sequence[str] = METRICS, resamples: int = RESAMPLES) -> list[Measured]:
    """Scores and tests; one for each protocol among the rows, so that none stands beside another by accident.

    InputError: cells of one row have different protocols.
    """
    protocols: dict[bool, list[Row]] = {}
    for row in results.rows:
        finished = [outcome for data in results.data for outcome in results.finished(data, row.name)]
        excludes = {bool(outcome.settings.get(EXCLUDES, False)) for outcome in finished}
        if len(excludes) > 1:
            raise InputError(
                f"{results.folder / 'cells'}: row {row.name}: {EXCLUDES} is true in some of its cells and false in "
                "others; run them again with one protocol"
            )
        for value in excludes or {bool(row.changes.get(EXCLUDES, False))}:
            protocols.setdefault(value, []).append(row)
    return [
        _measured(results, tuple(rows), tuple(metrics), excludes, resamples)
        for excludes, rows in sorted(protocols.items())
    ]


def measure_seen_excluded(measured: Sequence[Measured]) -> Measured | None:
    """All rows with the histories left out, from the same weights: what systems that never rank them are like.

    None where the rows have protocols of their own, or none of them would be another.
    """
    if [one.excludes_seen for one in measured] != [False]:
        return None
    (one,) = measured
    cells = [outcome.metrics for outcome in one.results.all() if outcome.state == "finished"]
    if all(cell["test"] == cell.get(LEFT_OUT, cell)["test"] for cell in cells):
        return None
    return _measured(one.results, one.rows, one.metrics, True, one.resamples, beside=True)


def scores_of(
    results: GridResults, rows: Sequence[Row], metrics: Sequence[str], part: Part, left_out: bool = False
) -> dict[tuple[str, str, str], Score]:
    """(data, row, metric) to the metric on a part, of the rows that have a finished cell.

    `left_out`: with the histories left out, of the rows whose cells have all measured that.
    """
    found = {}
    for data in results.data:
        for row in rows:
            cells = [outcome.metrics for outcome in results.finished(data, row.name)]
            if left_out:
                cells = [cell[LEFT_OUT] for cell in cells] if all(LEFT_OUT in cell for cell in cells) else []
            if cells:
                for metric in metrics:
                    found[data, row.name, metric] = Score(tuple(float(cell[part][metric]) for cell in cells))
    return found


def _measured(
    results: GridResults,
    rows: tuple[Row, ...],
    metrics: tuple[str, ...],
    excludes: bool,
    resamples: int,
    beside: bool = False,
) -> Measured:
    scores = scores_of(results, rows, metrics, "test", beside)
    plain = Measured(results, rows, metrics, excludes, resamples, scores, {}, {}, (), beside)
    against: dict[tuple[str, str], str] = {}
    tests: dict[tuple[str, str, str], Test] = {}
    untested: list[tuple[str, str]] = []
    for data in results.data:
        for metric in metrics:
            full = next((name for name in results.ours if name in {row.name for row in rows}), None)
            other = full if results.kind in VARIANTS else plain.best(data, metric, ours=False)
            if other is not None and (data, other, metric) in scores:
                against[data, metric] = other
        tests |= _tests(plain, data, against, untested)
    return replace(plain, against=against, tests=tests, untested=untested)


def _tests(
    measured: Measured,
    data: str,
    against: Mapping[tuple[str, str], str],
    untested: list[tuple[str, str]],
) -> dict[tuple[str, str, str], Test]:
    """Each row of a data set against the reference of each metric; what cannot be paired is told to `untested`."""
    users: pl.DataFrame | None = None
    per_user: dict[str, dict[str, npt.NDArray[np.float64]]] = {}
    rows = [row.name for row in measured.rows if (data, row.name, measured.metrics[0]) in measured.scores]
    references = {against[data, metric] for metric in measured.metrics if (data, metric) in against}
    for row in sorted(rows, key=lambda name: name not in references):  # what the others are compared with comes first
        tables = [outcome.test_users() for outcome in measured.results.finished(data, row)]
        if any(table is None for table in tables):
            untested.append((data, f"{measured.label(row)} has no users.parquet (`msm4sr evaluate` makes it)"))
            continue
        found = [table for table in tables if table is not None]
        who = found[0].select("user_id", "item_id")
        users = who if users is None else users
        if any(not table.select("user_id", "item_id").equals(users) for table in found):
            untested.append((data, f"{measured.label(row)} was tested on other users or items than the others"))
            continue
        ranks = "rank_seen_excluded" if measured.beside else "rank"
        each = [metrics_per_user(table[ranks].to_numpy()) for table in found]
        per_user[row] = {metric: mean_over_seeds([one[metric] for one in each]) for metric in measured.metrics}
    pairs = [
        (row, metric, against[data, metric])
        for metric in measured.metrics
        if against.get((data, metric)) in per_user
        for row in per_user
        if row != against[data, metric]
    ]
    if not pairs or users is None:
        return {}
    first = np.stack([per_user[row][metric] for row, metric, _ in pairs], axis=1)
    second = np.stack([per_user[other][metric] for _, metric, other in pairs], axis=1)
    differences = paired_bootstrap(first, second, resamples=measured.resamples, confidence=1 - LEVEL)
    tests = {}
    for metric in measured.metrics:
        column = [place for place, pair in enumerate(pairs) if pair[1] == metric]
        corrected = holm([differences[place].p for place in column])
        for place, p in zip(column, corrected, strict=True):
            row, _, other = pairs[place]
            tests[data, row, metric] = Test(other, differences[place], p, len(users))
    return tests


def by_popularity(
    measured: Measured, data: str, metrics: Sequence[str]
) -> tuple[dict[str, int], dict[tuple[str, str, str], float]]:
    """Users of each bucket of `evaluation.popularity`, and (row, metric, bucket) to the mean over the row's seeds.

    Buckets without users are left out, and so are rows without users.parquet.
    """
    counts: dict[str, int] = {}
    found: dict[tuple[str, str, str], float] = {}
    for row in measured.rows:
        tables = [outcome.test_users() for outcome in measured.results.finished(data, row.name)]
        seeds = [
            bucket_metrics(table["rank"].to_numpy(), table["item_count"].to_numpy())
            for table in tables
            if table is not None
        ]
        for place, bucket in enumerate(BUCKETS):
            there = [seed[place] for seed in seeds if seed[place].users]
            if there:
                counts.setdefault(bucket, there[0].users)
                for metric in metrics:
                    found[row.name, metric, bucket] = float(np.mean([one.metrics[metric] for one in there]))
    return {bucket: counts[bucket] for bucket in BUCKETS if bucket in counts}, found
