"""The report page of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from msm4sr.data.dataset import Dataset, test_targets
from msm4sr.data.items import has_image
from msm4sr.data.schema import read_parquet
from msm4sr.evaluation.beyond_accuracy import MEASURES as LIST_MEASURES
from msm4sr.evaluation.metrics import CUTOFFS
from msm4sr.evaluation.segments import Segment, segments
from msm4sr.evaluation.users import tested
from msm4sr.experiments.model_folder import beyond_accuracy_columns, metric_columns
from msm4sr.experiments.run import Run
from msm4sr.files import write_text
from msm4sr.models.base import Model
from msm4sr.recommend.recommender import Recommender
from msm4sr.reports.pages.charts import learning_curves
from msm4sr.reports.pages.page import ExampleUser, render
from msm4sr.reports.pages.thumbnails import Thumbnails
from msm4sr.reports.segments import BY_SEGMENT
from msm4sr.reports.tables import places

EXAMPLES = 6  # users shown
HEADLINE = ("recall@20", "ndcg@10", "mrr")
MEASURES = ("recall", "ndcg", "map", "precision", "mrr")  # in reading order


@dataclass(frozen=True)
class RunReport:
    """The content of a run's report."""

    name: str
    data_lines: Sequence[tuple[str, str]]  # label and value
    metrics: Mapping[str, Mapping[str, float]]  # label, such as "test, seen items included", to metrics
    epochs: Sequence[Mapping[str, object]]  # the lines of metrics.jsonl
    settings_yaml: str
    beyond_accuracy: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # protocol to metrics
    segments: Mapping[str, Sequence[Segment]] = field(default_factory=dict)  # of the test part, by kind
    users: Sequence[ExampleUser] = ()
    folder: Path | None = None  # of the data set, for the images
    comparison: Sequence[tuple[str, Mapping[str, float]]] = ()  # systems and their test metrics, in order


def write_run_report(
    run: Run,
    dataset: Dataset,
    model: Model,
    metrics: Mapping[str, Any],
    comparison: Sequence[tuple[str, Mapping[str, float]]] = (),
) -> Path:
    """Write `report.html` into the folder of a run, whose seed draws the example users, and return its path.

    `metrics` are as in its metrics.json; `comparison` has systems and their test metrics, shown as a table.
    """
    file = run.folder / "report.html"
    report = RunReport(
        name=f"{metrics['run']['model']} on {dataset.folder.name}",
        data_lines=_data_lines(dataset),
        metrics=metric_columns(metrics),
        epochs=run.epochs(),
        settings_yaml=(run.folder / "config.yaml").read_text(encoding="utf-8"),
        beyond_accuracy=beyond_accuracy_columns(metrics),
        segments=segments(tested(read_parquet(run.folder / "users.parquet"))),
        users=_example_users(dataset, model, run.settings.seed) if run.settings.is_fine_tuned(model) else (),
        folder=dataset.folder,
        comparison=comparison,
    )
    write_text(file, run_page(report))
    return file


def _example_users(dataset: Dataset, model: Model, seed: int) -> list[ExampleUser]:
    """A few users with their history before test, ten recommendations, and their first test item."""
    targets = test_targets(dataset)
    known = np.flatnonzero(targets.histories.lengths)
    rows = np.random.default_rng(seed).choice(known, min(EXAMPLES, len(known)), replace=False)
    first = np.cumsum(targets.counts) - targets.counts  # target of each history
    recommender = Recommender.from_dataset(model, dataset)
    examples = []
    for row in sorted(rows.tolist()):
        history = [recommender.catalogue.item(item) for item in targets.histories[row].tolist()]
        found = recommender.recommend([item.item_id for item in history]).items
        recommended = [(recommender.item(one.item_id), one.score) for one in found]
        target = recommender.catalogue.item(int(targets.targets[first[row]]))
        user = row if targets.users is None else targets.users[row]
        examples.append(ExampleUser(f"User {dataset.user_ids[user]}", history, recommended, target))
    return examples


def _data_lines(dataset: Dataset) -> list[tuple[str, str]]:
    """The size of the data, as label and value."""
    users, items, interactions = dataset.n_users, dataset.n_items, dataset.n_interactions
    with_text = int((dataset.items["title"].is_not_null() | dataset.items["text"].is_not_null()).sum())
    with_image = sum(map(has_image, dataset.items["image"].to_list()))
    return [
        ("Users", f"{users:,}"),
        ("Items", f"{items:,}"),
        ("Interactions", f"{interactions:,} (mean {interactions / users:.1f} per user)"),
        ("Sparsity", f"{1 - interactions / (users * items):.2%}"),
        ("Split", dataset.split),
        ("Items with title or text", f"{with_text:,} ({with_text / items:.1%})"),
        ("Items with an image", f"{with_image:,} ({with_image / items:.1%})"),
        *((f"Dropped {reason}", f"{count:,}") for reason, count in dataset.dropped.items()),
    ]


def run_page(report: RunReport) -> str:
    """The HTML of report.html: data, metrics, comparison, learning curves, example users, settings."""
    label, test = next(((label, of) for label, of in report.metrics.items() if label.startswith("test")), ("", {}))
    compared = _metric_order(values for _, values in report.comparison)
    return render(
        "run.html.jinja",
        title=report.name,
        report=report,
        protocol=label.partition(", ")[2],
        headline=[(name, test[name]) for name in HEADLINE if name in test],
        metric_names=_metric_order(report.metrics.values()),
        lists=[
            name
            for name in LIST_MEASURES
            if any(f"{name}@{CUTOFFS[0]}" in of for of in report.beyond_accuracy.values())
        ],
        cutoffs=CUTOFFS,
        by_segment=BY_SEGMENT if report.segments else (),
        compared=compared,
        places={name: places([values.get(name) for _, values in report.comparison]) for name in compared},
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
    """The duration of training, in words; empty if no epoch was logged."""
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
