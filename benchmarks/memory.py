"""The peak memory of each part of a run over a large catalogue.

    python benchmarks/generate.py SHOP --items 1000000 --users 500000 --length 20
    python benchmarks/memory.py SHOP --features FOLDER

Steps, checkpoints and the ranking of some users reach the peak of a complete run: no part keeps more as it continues.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from common import Changes, Preset, Threads, describe, memory_now, memory_peak, reset_memory_peak
from steps import Limit, Stage, run_steps

from msm4sr.cli.console import handle_errors, progress_bar
from msm4sr.data.dataset import Targets, load_dataset, validation_targets
from msm4sr.evaluation.ranking import rank_targets
from msm4sr.experiments.settings import resolve_settings
from msm4sr.experiments.stages import build_model
from msm4sr.features.extract import Extraction

STAGES: tuple[Stage, ...] = ("pretrain", "finetune")


def report(part: str) -> None:
    """A row, and a new measurement."""
    print(f"| {part} | {memory_now():,.0f} | {memory_peak():,.0f} |", flush=True)
    reset_memory_peak()


def main(
    data: Annotated[Path, typer.Argument(help="A folder that `generate.py` wrote.")],
    features: Annotated[Path, typer.Option(help="The features folder; it is kept.")],
    preset: Preset = "best",
    changes: Changes = [],
    steps: Annotated[int, typer.Option(min=2, help="Steps of each stage.")] = 20,
    users: Annotated[int, typer.Option(min=1, help="Users that are ranked.")] = 500,
    threads: Threads = 2,
) -> None:
    torch.set_num_threads(threads)
    with handle_errors(), tempfile.TemporaryDirectory() as folder:
        settings = resolve_settings(preset, changes=["device.accelerator=cpu", *changes])
        print(f"{describe()}\n\n| after | memory, MiB | peak, MiB |\n|---|--:|--:|")
        report("start")
        dataset = load_dataset(data, settings.dataset)
        report(f"reading {dataset.n_interactions:,} interactions with {dataset.n_items:,} items")
        files = {name: data / f"{name}.parquet" for name in ("text", "visual")}
        with progress_bar() as progress:
            stored = Extraction(dataset, features, settings.features, files, "cpu", False, progress).extract(False)
        report("storing the precomputed embeddings")
        model = build_model(settings, dataset, stored).train()
        report("building the model")
        for stage in STAGES:
            run_steps(stage, model, dataset, settings, Limit(steps), checkpoints=Path(folder))
            report(f"{stage}: {steps} steps and a checkpoint")
        targets = validation_targets(dataset)
        some = Targets(targets.histories.take(np.arange(users)), targets.targets[:users])
        rank_targets(model.eval(), some)
        report(f"ranking {users} users")
        model.save_pretrained(Path(folder) / "model")
        report("storing the model")


if __name__ == "__main__":
    typer.run(main)
