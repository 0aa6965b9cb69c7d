"""The metrics of a run: every user ranked on validation and on test, with seen items included and excluded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from msm4sr.data.dataset import Dataset, cold_start_targets, item_categories, item_rows, known_users
from msm4sr.data.remaining import Ints
from msm4sr.data.schema import writing
from msm4sr.digests import file_digest
from msm4sr.dotted import flatten
from msm4sr.errors import InputError
from msm4sr.evaluation.beyond_accuracy import BeyondAccuracy, ItemFacts
from msm4sr.evaluation.cold import cold_metrics
from msm4sr.evaluation.evaluate import rank_users
from msm4sr.evaluation.metrics import chance, mean_metrics
from msm4sr.evaluation.ranking import Lists, OnLists, Protocol, Ranks, rank_targets
from msm4sr.evaluation.users import Part, targets_of, users_of, users_table
from msm4sr.experiments.content import content_vectors, run_keywords
from msm4sr.experiments.machine import hardware, memory_peak, versions
from msm4sr.experiments.model_folder import row_ids, save_model
from msm4sr.experiments.run import Run, write_metrics
from msm4sr.experiments.stages import build_model, complete_catalogue, complete_run, extract_stage
from msm4sr.files import atomic_file
from msm4sr.models.base import Model, Scorer
from msm4sr.models.carry_over import Common, carry_over
from msm4sr.progress import Advance, NoProgress, Progress
from msm4sr.ragged import Ragged
from msm4sr.tensor_files import read_checksum
from msm4sr.training.identity import CODE_VERSION, inputs_identity
from msm4sr.training.stages import STAGES

PARTS: tuple[Part, ...] = ("validation", "test")
PROTOCOLS: tuple[Protocol, ...] = ("seen_included", "seen_excluded")


@dataclass(frozen=True)
class Measured:
    """The ranks of all targets by both protocols, and what the lists of the test part are like."""

    users: pl.DataFrame  # users.parquet
    lists: Mapping[Protocol, BeyondAccuracy]
    temporal: bool

    def metrics(self) -> dict[str, Any]:
        """The metrics of `evaluate_stage`, and "versions"."""
        known = self.users.filter(pl.col("user_count") > 0).partition_by("part", as_dict=True)
        means: dict[str, dict[str, Any]] = {
            column: {part: mean_metrics(known[part,][column].to_numpy(), users_of(known[part,])) for part in PARTS}
            for column in ("rank", "rank_seen_excluded")
        }
        result = means["rank"] | {"seen_excluded": means["rank_seen_excluded"]}
        if self.temporal:
            result["cold"] = {part: cold_metrics(self.users.filter(pl.col("part") == part)) for part in PARTS}
        result["beyond_accuracy"] = {protocol: sums.metrics() for protocol, sums in self.lists.items()}
        return result | {"versions": versions()}


def measure(
    dataset: Dataset,
    rank: Callable[[Part, Advance, OnLists | None], Mapping[Protocol, Ranks]],
    facts: ItemFacts,
    protocol: Protocol,
    progress: Progress,
) -> Measured:
    """Rank the users of validation and test with `rank`, which calls `on_lists` as `rank_targets` does.

    Lists are those of users with training interactions. `protocol` is that of the settings.
    """
    lists: dict[Protocol, BeyondAccuracy] = {name: BeyondAccuracy(facts) for name in PROTOCOLS}
    ranks: dict[Part, tuple[Ranks, Ranks]] = {}
    targets = {part: targets_of(dataset, part) for part in PARTS}
    users = targets["test"].users
    known = known_users(dataset)[slice(None) if users is None else users]

    def add(name: Protocol, histories: Ints, found: Lists) -> None:
        lists[name].add(found[known[histories]])

    with progress.task("evaluate", sum(len(each.histories) for each in targets.values()), "users") as advance:
        for part in PARTS:
            found = rank(part, advance, add if part == "test" else None)
            ranks[part] = found[protocol], found["seen_excluded"]
    return Measured(users_table(dataset, ranks), lists, dataset.temporal is not None)


def write_users(folder: Path, measured: Measured) -> None:
    """Write users.parquet."""
    with atomic_file(folder / "users.parquet") as file, writing(file):
        measured.users.write_parquet(file)


def evaluate_stage(
    run: Run, dataset: Dataset, model: Model, progress: Progress = NoProgress(), *, extract_content: bool = False
) -> dict[str, Any]:
    """Evaluate the model and write users.parquet, the model folder and, last, metrics.json.

    Args:
        extract_content: see `content_vectors`.

    Returns:
        The contents of metrics.json: metrics of "validation" and "test" by the protocol of the settings,
        "seen_excluded" (both again, with seen items excluded), "beyond_accuracy" (see `evaluation.beyond_accuracy`; of
        the test lists, by protocol), "held_out" if items are held out of training, "cold" for a temporal split (see
        `evaluation.cold`), "run", "versions", and "identity" (digests of what the metrics depend on). With a temporal
        split all but "cold" are of the users with training interactions.
    """
    settings = run.settings
    device = settings.device.torch_device()
    model.to(device)
    scorer = settings.scorer_of(model)
    facts = ItemFacts.of(dataset, content_vectors(run, dataset, extract_content))

    def rank(part: Part, advance: Advance, on_lists: OnLists | None) -> dict[Protocol, Ranks]:
        return rank_users(scorer, dataset, part, PROTOCOLS, advance, on_lists)

    found = measure(dataset, rank, facts, settings.evaluation.protocol, progress)
    result = found.metrics()
    if settings.dataset.hold_out_items:
        result["held_out"] = evaluate_cold_start(run, dataset, model)
    result["run"] = describe(run, dataset, model)
    if not settings.is_fine_tuned(model):
        result["run"]["protocol"] += ", not fine-tuned"
    write_users(run.folder, found)
    run.metrics_file.unlink(missing_ok=True)  # of an earlier evaluation
    save_model(run, dataset, model, result)
    content = {"content": dataset.content_digest} if model.uses_features or model.uses_categories else {}
    keywords_of = run_keywords(run) if model.uses_features else None
    identity = {"code": CODE_VERSION, "data": dataset.identity | content, "inputs": inputs_identity(model)}
    result["identity"] = flatten(identity) | {
        **({} if keywords_of is None else {"keywords": keywords_of}),
        "settings": run.settings_digest,
        "users.parquet": file_digest(run.folder / "users.parquet"),
        "model.safetensors": read_checksum(run.folder / "model" / "model.safetensors"),
    }
    write_metrics(run.folder, result)  # last: a run with this file is complete
    return result


def describe(run: Run, dataset: Dataset, model: Scorer) -> dict[str, Any]:
    """How the run was made: data, settings, protocol, seconds, memory and hardware."""
    device = run.settings.device.torch_device()
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
        "protocol": f"{dataset.split}, full ranking, seen items {'excluded' if excludes else 'included'}",
        "training_seconds": seconds,
        **({"warm_start": settings.warm_start.run} if settings.warm_start.run else {}),
        "peak_memory_mib": round(memory_peak()),
        "hardware": hardware(device),
    }
    if device.type == "cuda":
        about["peak_gpu_memory_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
    return about


def evaluate_cold_start(run: Run, dataset: Dataset, model: Model) -> dict[str, Any]:
    """Strict cold start: rank held-out items by their content, for users whose last interaction is with one of them.

    The model is not retrained: it gets the content of the new items, and every per-item weight is 0 (equation 12).

    Returns:
        The numbers of users, of targets and of new items, metrics "among_all" items and "among_held_out" items, and
        the expected metrics of a random order, "chance_among_all" and "chance_among_held_out".

    Raises:
        InputError: no test target is held out.
    """
    settings, complete = run.settings, complete_catalogue(run, dataset)
    targets = cold_start_targets(complete, dataset)
    if not len(targets.targets):
        raise InputError(f"{run.data}: no test target is held out; raise dataset.hold_out_items")
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
    there, here = row_ids(dataset, model), row_ids(catalogue, model)
    common = {kind: Common.of(there[kind], here[kind]) for kind in there}
    carry_over(dict(model.named_parameters()), extended, common, zero_new=True)
    extended.to(settings.device.torch_device()).eval()
    scorer = settings.scorer_of(extended)
    protocol = settings.evaluation.protocol
    ranks = {
        name: rank_targets(scorer, targets, (protocol,), among=among)[protocol]
        for name, among in (("among_all", None), ("among_held_out", new))
    }
    metrics = {name: mean_metrics(rank, targets.target_users) for name, rank in ranks.items()}
    sizes = {"chance_among_all": complete.n_items, "chance_among_held_out": int(new.sum())}
    chances = {name: chance(n_items, targets.counts) for name, n_items in sizes.items()}
    counts = {"users": len(targets.histories), "targets": len(targets.targets), "items": int(new.sum())}
    return {**counts, **metrics, **chances}
