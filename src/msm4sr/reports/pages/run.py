"""The page of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msm4sr.reports.pages.charts import learning_curves
from msm4sr.reports.pages.page import render
from msm4sr.reports.pages.recommendations import ExampleUser
from msm4sr.reports.pages.thumbnails import Thumbnails

HEADLINE = ("recall@20", "ndcg@10", "mrr")
MEASURES = ("recall", "ndcg", "mrr")  # in reading order


@dataclass(frozen=True)
class RunReport:
    """The content of a run's report.

    Attributes:
        name: of the run.
        data_lines: label and value, e.g. ("Users", "2,987"), ("Dropped interactions: exact duplicates", "13").
        metrics: {"validation": {"ndcg@10": ...}, "test": {...}}, as in metrics.json.
        epochs: the lines of metrics.jsonl (`stage`, `epoch`, `loss`, `seconds`, metrics).
        settings_yaml: the run's config.yaml.
        users: a few example users.
        folder: of the data set, for their images.
        comparison: systems and their test metrics, in the order of the table.
    """

    name: str
    data_lines: Sequence[tuple[str, str]]
    metrics: Mapping[str, Mapping[str, float]]
    epochs: Sequence[Mapping[str, object]]
    settings_yaml: str
    users: Sequence[ExampleUser] = ()
    folder: Path | None = None
    comparison: Sequence[tuple[str, Mapping[str, float]]] = ()


def run_page(report: RunReport) -> str:
    """A run's report.html: data, metrics, comparison, learning curves, example users, settings."""
    test = report.metrics.get("test", {})
    compared = _metric_order(values for _, values in report.comparison)
    best = {
        name: max((values[name] for _, values in report.comparison if name in values), default=math.nan)
        for name in compared
    }
    return render(
        "run.html.jinja",
        title=report.name,
        report=report,
        headline=[(name, test[name]) for name in HEADLINE if name in test],
        metric_names=_metric_order(report.metrics.values()),
        compared=compared,
        best=best,
        charts=learning_curves(report.epochs),
        effort=_effort(report.epochs),
        thumbnails=Thumbnails(report.folder),
    )


def _metric_order(tables: Iterable[Mapping[str, float]]) -> list[str]:
    """Names in reading order: recall by cutoff, ndcg by cutoff, mrr, then all others."""

    def order(name: str) -> tuple[int, int]:
        measure, _, cutoff = name.partition("@")
        known = MEASURES.index(measure) if measure in MEASURES else len(MEASURES)
        return known, int(cutoff) if cutoff.isdigit() else 0

    return sorted(dict.fromkeys(name for table in tables for name in table), key=order)


def _effort(epochs: Sequence[Mapping[str, object]]) -> str:
    """The duration of training, in words; empty where no epoch was logged."""
    if not epochs:
        return ""
    seconds = [value for epoch in epochs if isinstance(value := epoch.get("seconds"), int | float)]
    count = f"{len(epochs)} epoch" + ("s" if len(epochs) != 1 else "")
    return f"{count} in {_duration(sum(seconds))}" if seconds else count


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
