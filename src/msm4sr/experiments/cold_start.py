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
from msm4sr.experiments.stages import build_model, complete_catalogue, complete_run, extract_stage
from msm4sr.models.base import Model
from msm4sr.models.extend import extend_catalogue
from msm4sr.ragged import Ragged
from msm4sr.training.stages import scorer_of


def evaluate_cold_start(run: Run, dataset: Dataset, model: Model) -> dict[str, Any]:
    """Rank the held-out items for the users whose last interaction is with one of them.

    The model is not retrained: it gets the content of the new items, and every per-item weight is 0 (equation 12).

    Returns:
        The numbers of users and of new items, metrics "among_all" items and "among_held_out" items, and the expected
        metrics of a random order, "chance_among_all" and "chance_among_held_out".

    Raises:
        InputError: no user's last item is held out.
    """
    settings, complete = run.settings, complete_catalogue(run, dataset)
    targets = cold_start_targets(complete, dataset)
    if not len(targets.targets):
        raise InputError(f"{run.data}: no user's last item is held out; raise dataset.hold_out_items")
    known = item_rows(complete, dataset)
    new = ~np.isin(np.arange(complete.n_items), known)
    known_categories = pl.element().is_in(item_categories(dataset)[1])  # the model has no weights for others
    catalogue = replace(
        dataset,
        item_ids=complete.item_ids,
        histories=Ragged(known[dataset.histories.values].astype(np.int32), dataset.histories.offsets),
        items=complete.items.with_columns(pl.col("categories").list.eval(pl.element().filter(known_categories))),
    )
    extended = build_model(settings, catalogue, extract_stage(complete_run(run), complete))
    extend_catalogue(model, extended, torch.from_numpy(known))
    extended.to(settings.device.torch_device()).eval()
    scorer = scorer_of(extended, settings)
    protocol = settings.evaluation.protocol
    ranks = {
        name: rank_targets(scorer, targets, (protocol,), among=among)[protocol]
        for name, among in (("among_all", None), ("among_held_out", new))
    }
    metrics = {name: mean_metrics(rank) for name, rank in ranks.items()}
    chances = {"chance_among_all": chance(complete.n_items), "chance_among_held_out": chance(int(new.sum()))}
    return {"users": len(targets.targets), "items": int(new.sum()), **metrics, **chances}
