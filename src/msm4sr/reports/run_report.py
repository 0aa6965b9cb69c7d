"""The report page of a run, from what the run folder holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msm4sr.data.dataset import Dataset, test_targets
from msm4sr.experiments.run import Run
from msm4sr.models.base import Model
from msm4sr.recommend.recommender import ItemTable, Recommender
from msm4sr.reports.pages import HistoryAndRecommendations, RunReport, report_page, write_page

SAMPLES = 6  # users shown


def write_run_report(
    run: Run,
    dataset: Dataset,
    model: Model,
    metrics: Mapping[str, Any],
    comparison: Sequence[tuple[str, Mapping[str, float]]] = (),
) -> Path:
    """Write `report.html` into the run folder and return its path. Sampled users are drawn with the run's seed."""
    file = run.folder / "report.html"
    page = report_page(
        RunReport(
            name=f"{metrics['run']['model']} on {dataset.folder.name}",
            data_lines=data_lines(dataset),
            metrics={part: metrics[part] for part in ("validation", "test")},
            curves=run.epochs(),
            settings_yaml=(run.folder / "config.yaml").read_text(encoding="utf-8"),
            samples=sample_users(dataset, model, run.settings.seed),
            comparison=comparison,
        )
    )
    write_page(file, page)
    return file


def sample_users(dataset: Dataset, model: Model, seed: int) -> list[HistoryAndRecommendations]:
    """A few users with their history (all but the test item), ten recommendations, and the item that they took."""
    items = ItemTable.from_dataset(dataset)
    targets = test_targets(dataset)
    users = np.random.default_rng(seed).choice(dataset.n_users, min(SAMPLES, dataset.n_users), replace=False)
    recommender = Recommender.from_dataset(model, dataset)
    samples = []
    for user in sorted(users.tolist()):
        history = targets.histories[user].tolist()
        names = [items.item_ids[item] for item in history]
        chosen = recommender.recommend(names).items
        samples.append(
            HistoryAndRecommendations(
                f"User {dataset.user_ids[user]}", history, chosen, items, int(targets.targets[user])
            )
        )
    return samples


def data_lines(dataset: Dataset) -> list[tuple[str, str]]:
    """What the data is, as label and value."""
    text = dataset.items.select(dataset.items["title"].is_not_null() | dataset.items["text"].is_not_null())
    with_text = int(text.to_series().sum())
    with_picture = int((dataset.items["image"].list.len().fill_null(0) > 0).sum())
    share = dataset.n_interactions / (dataset.n_users * dataset.n_items)
    lines = [
        ("Users", f"{dataset.n_users:,}"),
        ("Items", f"{dataset.n_items:,}"),
        (
            "Interactions",
            f"{dataset.n_interactions:,} (mean {dataset.n_interactions / dataset.n_users:.1f} a user)",
        ),
        ("Sparsity", f"{1 - share:.2%}"),
        ("Items with text", f"{with_text:,} ({with_text / dataset.n_items:.1%})"),
        ("Items with a picture", f"{with_picture:,} ({with_picture / dataset.n_items:.1%})"),
    ]
    return lines + [(f"Dropped {reason}", f"{count:,}") for reason, count in dataset.dropped.items()]
