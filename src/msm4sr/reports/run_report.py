"""The report page of a run, from what the run folder holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msm4sr.data.dataset import Dataset, test_targets
from msm4sr.experiments.run import Run
from msm4sr.files import write_text
from msm4sr.models.base import Model
from msm4sr.recommend.recommender import Recommender
from msm4sr.reports.pages.recommendations import ExampleUser
from msm4sr.reports.pages.run import RunReport, run_page

EXAMPLES = 6  # users shown


def write_run_report(
    run: Run,
    dataset: Dataset,
    model: Model,
    metrics: Mapping[str, Any],
    comparison: Sequence[tuple[str, Mapping[str, float]]] = (),
) -> Path:
    """Write `report.html` into the folder of a run and return its path.

    Args:
        run: the run; its seed draws the example users.
        dataset: that it was trained on.
        model: that it trained.
        metrics: as in its metrics.json.
        comparison: systems and their test metrics, shown as a table.
    """
    file = run.folder / "report.html"
    report = RunReport(
        name=f"{metrics['run']['model']} on {dataset.folder.name}",
        data_lines=data_lines(dataset),
        metrics={split: metrics[split] for split in ("validation", "test")},
        epochs=run.epochs(),
        settings_yaml=(run.folder / "config.yaml").read_text(encoding="utf-8"),
        users=example_users(dataset, model, run.settings.seed),
        folder=dataset.folder,
        comparison=comparison,
    )
    write_text(file, run_page(report))
    return file


def example_users(dataset: Dataset, model: Model, seed: int) -> list[ExampleUser]:
    """A few users with their history (all but the test item), ten recommendations, and the test item."""
    targets = test_targets(dataset)
    users = np.random.default_rng(seed).choice(dataset.n_users, min(EXAMPLES, dataset.n_users), replace=False)
    recommender = Recommender.from_dataset(model, dataset)
    examples = []
    for user in sorted(users.tolist()):
        history = [recommender.catalogue.item(row) for row in targets.histories[user].tolist()]
        found = recommender.recommend([item.item_id for item in history]).items
        examples.append(
            ExampleUser(
                label=f"User {dataset.user_ids[user]}",
                history=history,
                recommended=[(recommender.item(one.item_id), one.score) for one in found],
                target=recommender.catalogue.item(int(targets.targets[user])),
            )
        )
    return examples


def data_lines(dataset: Dataset) -> list[tuple[str, str]]:
    """The size of the data, as label and value."""
    text = dataset.items.select(dataset.items["title"].is_not_null() | dataset.items["text"].is_not_null())
    with_text = int(text.to_series().sum())
    with_image = int((dataset.items["image"].list.len().fill_null(0) > 0).sum())
    density = dataset.n_interactions / (dataset.n_users * dataset.n_items)
    lines = [
        ("Users", f"{dataset.n_users:,}"),
        ("Items", f"{dataset.n_items:,}"),
        ("Interactions", f"{dataset.n_interactions:,} (mean {dataset.n_interactions / dataset.n_users:.1f} per user)"),
        ("Sparsity", f"{1 - density:.2%}"),
        ("Items with text", f"{with_text:,} ({with_text / dataset.n_items:.1%})"),
        ("Items with an image", f"{with_image:,} ({with_image / dataset.n_items:.1%})"),
    ]
    return lines + [(f"Dropped {reason}", f"{count:,}") for reason, count in dataset.dropped.items()]
