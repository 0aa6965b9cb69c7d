"""The metrics of a run: every user ranked on validation and on test, with seen items included and excluded."""

from __future__ import annotations

from typing import Any

import torch

from msm4sr.data.dataset import Dataset
from msm4sr.evaluation.evaluate import rank_users
from msm4sr.evaluation.metrics import mean_metrics
from msm4sr.evaluation.ranking import Ranks
from msm4sr.evaluation.users import Part, users_table
from msm4sr.experiments.cold_start import evaluate_cold_start
from msm4sr.experiments.machine import hardware, memory_peak, versions
from msm4sr.experiments.model_folder import save_model
from msm4sr.experiments.run import Run
from msm4sr.files import atomic_file, write_json
from msm4sr.models.base import Model
from msm4sr.progress import NoProgress, Progress
from msm4sr.training.stages import STAGES, scorer_of


def evaluate_stage(run: Run, dataset: Dataset, model: Model, progress: Progress = NoProgress()) -> dict[str, Any]:
    """Evaluate the model and write users.parquet, the model folder and, last, metrics.json.

    Returns:
        The contents of metrics.json: metrics of "validation" and "test" by the protocol of the settings,
        "seen_excluded" (both again, with seen items excluded), "held_out" if items are held out of training, "run"
        and "versions".
    """
    settings = run.settings
    device = settings.device.torch_device()
    model.to(device)
    scorer = scorer_of(model, settings)
    parts: tuple[Part, ...] = ("validation", "test")
    ranks: dict[Part, tuple[Ranks, Ranks]] = {}
    with progress.task("evaluate", len(parts) * dataset.n_users, "users") as advance:
        for part in parts:
            found = rank_users(scorer, dataset, part, ("seen_included", "seen_excluded"), advance)
            ranks[part] = found[settings.evaluation.protocol], found["seen_excluded"]
    result: dict[str, Any] = {part: mean_metrics(rank) for part, (rank, _) in ranks.items()}
    result["seen_excluded"] = {part: mean_metrics(seen_excluded) for part, (_, seen_excluded) in ranks.items()}
    if settings.dataset.hold_out_items:
        result["held_out"] = evaluate_cold_start(run, dataset, model)
    result["run"] = _describe(run, dataset, model, device)
    if scorer is not model:
        result["run"]["protocol"] += ", not fine-tuned"
    result["versions"] = versions()
    with atomic_file(run.folder / "users.parquet") as file:
        users_table(dataset, ranks).write_parquet(file)
    save_model(run, dataset, model, result)
    write_json(run.metrics_file, result)  # last: a run with this file is complete
    return result


def _describe(run: Run, dataset: Dataset, model: Model, device: torch.device) -> dict[str, Any]:
    """How the run was made: data, settings, protocol, seconds, memory and hardware."""
    settings, epochs = run.settings, run.epochs()
    seconds = {stage: round(sum(row["seconds"] for row in epochs if row["stage"] == stage), 1) for stage in STAGES}
    excludes = settings.evaluation.exclude_seen or not model.ranks_seen_items
    about = {
        "data": dataset.folder.name,
        "users": dataset.n_users,
        "items": dataset.n_items,
        "interactions": dataset.n_interactions,
        "model": settings.model.name,
        "preset": run.preset,
        "seed": settings.seed,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "protocol": f"leave-one-out, full ranking, seen items {'excluded' if excludes else 'included'}",
        "training_seconds": seconds,
        "peak_memory_mib": round(memory_peak()),
        "hardware": hardware(device),
    }
    if device.type == "cuda":
        about["peak_gpu_memory_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
    return about
