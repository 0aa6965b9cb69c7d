"""Strict cold start: items that were held out of training, recommended by their content."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import torch

from msm4sr.data.dataset import Dataset, cold_start_targets, item_categories, item_rows
from msm4sr.errors import InputError
from msm4sr.evaluation.metrics import chance, mean_metrics
from msm4sr.evaluation.ranking import rank_targets
from msm4sr.experiments.run import Run
from msm4sr.experiments.stages import build_model, extract_stage, whole_catalogue, whole_run
from msm4sr.models.base import Model
from msm4sr.models.extend import grow
from msm4sr.ragged import Ragged
from msm4sr.training.tasks import scorer_of


def evaluate_cold_start(run: Run, dataset: Dataset, model: Model) -> dict[str, Any]:
    """How the items that were held out are recommended when they arrive, to the users who took one of them last.

    The model is not trained again: of the new items it knows the content, and whatever it has for each item alone is 0.
    They are ranked among all items, and among one another; chance stands beside.
    """
    settings, whole = run.settings, whole_catalogue(run, dataset)
    targets = cold_start_targets(whole, dataset)
    if not len(targets.targets):
        raise InputError(f"{run.data}: no user's last item is held out; raise dataset.hold_out_items")
    known = item_rows(whole, dataset)
    new = ~np.isin(np.arange(whole.n_items), known)
    _, names = item_categories(dataset)
    catalogue = replace(
        dataset,
        item_ids=whole.item_ids,
        histories=Ragged(known[dataset.histories.values].astype(np.int32), dataset.histories.offsets),
        items=_with_categories(whole.items, set(names)),  # the model knows no others
    )
    grown = build_model(settings, catalogue, extract_stage(whole_run(run), whole))
    grow(model, grown, torch.from_numpy(known))
    grown.to(settings.device.torch_device()).eval()
    scorer = scorer_of(grown, settings)
    excludes = settings.evaluation.exclude_seen or not model.ranks_seen_items
    ranks = {
        name: rank_targets(scorer, targets, exclude_seen=excludes, among=among)
        for name, among in (("among_all", None), ("among_held_out", new))
    }
    return {
        "users": len(targets.targets),
        "items": int(new.sum()),
        **{name: mean_metrics(rank) for name, rank in ranks.items()},
        "chance_among_all": chance(whole.n_items),
        "chance_among_held_out": chance(int(new.sum())),
    }


def _with_categories(items: pl.DataFrame, known: set[str]) -> pl.DataFrame:
    """The items with those of their categories that are known."""
    left = [[name for name in names or () if name in known] for names in items["categories"].to_list()]
    return items.with_columns(pl.Series("categories", left, dtype=pl.List(pl.String)))
