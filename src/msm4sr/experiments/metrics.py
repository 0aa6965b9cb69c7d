"""The metrics of a run: every user ranked once on validation and on test."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch

from msm4sr.data.dataset import Dataset
from msm4sr.evaluation.evaluate import rank_users_both
from msm4sr.evaluation.metrics import mean_metrics
from msm4sr.evaluation.users import Part, users_table
from msm4sr.experiments.cold_start import evaluate_cold_start
from msm4sr.experiments.machine import hardware, memory_peak, versions
from msm4sr.experiments.model_folder import save_model
from msm4sr.experiments.run import Run, _write
from msm4sr.files import atomic_file
from msm4sr.models.base import Model
from msm4sr.training.tasks import STAGES, scorer_of


def evaluate_stage(
    run: Run, dataset: Dataset, model: Model, on_progress: Callable[[int], object] = lambda users: None
) -> dict[str, Any]:
    """Validation and test metrics into metrics.json, each user's ranks into users.parquet, and the model folder.

    metrics.json comes after users.parquet: where the one is, the other is.

    `on_progress` is told how many users were ranked since the last call, twice `dataset.n_users` in all.
    """
    settings = run.settings
    epochs = run.epochs()
    excludes = settings.evaluation.exclude_seen or not model.ranks_seen_items
    device = settings.device.torch_device()
    model.to(device)
    scorer = scorer_of(model, settings)
    parts: tuple[Part, ...] = ("validation", "test")
    ranks = {part: rank_users_both(scorer, dataset, part, settings.evaluation, on_progress) for part in parts}
    result: dict[str, Any] = {part: mean_metrics(rank) for part, (rank, _) in ranks.items()}
    result["seen_excluded"] = {part: mean_metrics(left_out) for part, (_, left_out) in ranks.items()}
    if settings.dataset.hold_out_items:
        result["held_out"] = evaluate_cold_start(run, dataset, model)
    result["run"] = {
        "data": dataset.folder.name,
        "users": dataset.n_users,
        "items": dataset.n_items,
        "interactions": dataset.n_interactions,
        "model": settings.model.name,
        "preset": run.preset,
        "seed": settings.seed,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "protocol": "leave-one-out, full ranking, "
        + ("history never ranked" if excludes else "history ranked like any item"),
        "training_seconds": {
            stage: round(sum(row["seconds"] for row in epochs if row["stage"] == stage), 1) for stage in STAGES
        },
        "peak_memory_mib": round(memory_peak()),
        "hardware": hardware(device),
    }
    if device.type == "cuda":
        result["run"]["peak_gpu_memory_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
    result["versions"] = versions()
    if scorer is not model:
        result["run"]["protocol"] += ", not fine-tuned"
    with atomic_file(run.folder / "users.parquet") as file:
        users_table(dataset, ranks).write_parquet(file)
    save_model(run, dataset, model, result)
    _write(run.metrics_file, json.dumps(result, indent=2) + "\n")  # last: a run that has it is whole
    return result
