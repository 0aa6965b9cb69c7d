"""The main job, and each of its stages alone: run, extract, pretrain, finetune, evaluate."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from msm4sr.cli.console import (
    Changes,
    Data,
    FeaturesFolder,
    ModelName,
    Out,
    Overwrite,
    Preset,
    RunFolder,
    Seed,
    TrainingProgress,
    console,
    progress_bar,
    say_next,
    told,
)
from msm4sr.errors import InputError

if TYPE_CHECKING:  # what is heavy is imported by the command that needs it, so that --help answers at once
    from msm4sr.data.dataset import Dataset
    from msm4sr.experiments.run import Run
    from msm4sr.models.base import Model


def run(
    data: Data,
    out: Out,
    preset: Preset = "best",
    model: ModelName = "msm4sr",
    changes: Changes = [],  # noqa: B006  # typer reads it, nobody changes it
    seed: Seed = None,
    features: FeaturesFolder = None,
    overwrite: Overwrite = False,
) -> None:
    """Extract features, pre-train, fine-tune, evaluate: from a prepared folder to recommendations."""
    with told(f"interrupted; what was done is kept in {out}"):
        started, dataset, network = _start(data, out, preset, model, changes, seed, features, overwrite)
        _train(started, "pretrain", dataset, network)
        _train(started, "finetune", dataset, network)
        _evaluate(started, dataset, network)


def extract(
    data: Data,
    out: Out,
    preset: Preset = "best",
    model: ModelName = "msm4sr",
    changes: Changes = [],  # noqa: B006
    seed: Seed = None,
    features: FeaturesFolder = None,
    overwrite: Overwrite = False,
) -> None:
    """The first stage alone: make the run folder and read texts and pictures. Next: pretrain RUN."""
    with told(f"interrupted; finished parts are kept in {out}, and the same command goes on"):
        _start(data, out, preset, model, changes, seed, features, overwrite)
        say_next("pretrain", out)


def pretrain(folder: RunFolder) -> None:
    """The second stage alone: pre-train on content. Starts anew from the extracted features. Next: finetune RUN."""
    with told(f"interrupted; the best validated epoch is kept: msm4sr finetune {folder} goes on from it"):
        started = _open(folder)
        dataset, network = _load(started)
        _train(started, "pretrain", dataset, network)
        say_next("finetune", folder)


def finetune(folder: RunFolder) -> None:
    """The third stage alone: fine-tune with item IDs, from the pre-trained weights. Next: evaluate RUN."""
    with told(f"interrupted; the best validated epoch is kept: msm4sr evaluate {folder} measures it"):
        from msm4sr.experiments.run import restore_last

        started = _open(folder)
        dataset, network = _load(started)
        restore_last(started, network, before="finetune")
        _train(started, "finetune", dataset, network)
        say_next("evaluate", folder)


def evaluate(folder: RunFolder) -> None:
    """The last stage alone: rank all items for every user, write metrics.json, the model folder and report.html."""
    with told():
        from msm4sr.experiments.run import restore_last

        started = _open(folder)
        dataset, network = _load(started)
        restore_last(started, network)
        _evaluate(started, dataset, network)


def _start(
    data: Path,
    out: Path,
    preset: str,
    model: str,
    changes: list[str],
    seed: int | None,
    features: Path | None,
    overwrite: bool,
) -> tuple[Run, Dataset, Model]:
    from msm4sr.data.dataset import load_dataset
    from msm4sr.experiments.run import begin_run, describe_data, plan_run, tidy
    from msm4sr.experiments.settings import resolve_settings

    settings = resolve_settings(preset, model, changes, seed)
    dataset = load_dataset(data, settings.dataset)  # wrong data is told before anything is made
    if features is not None and (features / "config.yaml").exists():
        features = features / "features"  # another run's
    started = plan_run(data, out, settings, preset, features, overwrite)
    describe_data(dataset, console.print)
    try:
        network = _extract(started, dataset)
        begin_run(started)
    except (InputError, OSError):
        tidy(started)
        raise
    return started, dataset, network


def _open(folder: Path) -> Run:
    from msm4sr.experiments.run import open_run

    return open_run(folder)


def _load(run: Run) -> tuple[Dataset, Model]:
    from msm4sr.experiments.run import load_run_data

    dataset = load_run_data(run, console.print)
    return dataset, _extract(run, dataset)


def _extract(run: Run, dataset: Dataset) -> Model:
    from msm4sr.experiments.run import build_model, extract_stage

    with progress_bar() as progress:
        features = extract_stage(run, dataset, progress, progress.console.print)
    return build_model(run.settings, dataset, features)


def _train(run: Run, stage: str, dataset: Dataset, network: Model) -> None:
    from msm4sr.experiments.run import train_stage

    with progress_bar() as progress:
        train_stage(run, stage, dataset, network, TrainingProgress(progress), progress.console.print)


def _evaluate(run: Run, dataset: Dataset, network: Model) -> None:
    from msm4sr.experiments.run import evaluate_stage
    from msm4sr.serving.report import write_run_report

    with progress_bar() as progress:
        task = progress.add_task("evaluate", total=2 * dataset.n_users)
        metrics = evaluate_stage(run, dataset, network, lambda users: progress.advance(task, users))
    report = write_run_report(run, dataset, network, metrics)
    _summary(metrics)
    console.print(f"report: {report}", markup=False)
    say_next("recommend", run.folder, "--user", dataset.user_ids[0])


def _summary(metrics: dict[str, Any]) -> None:
    about = metrics["run"]
    console.print(f"{about['model']} on {about['data']}: {about['protocol']}", markup=False)
    table = Table()  # without a title, which would be wrapped at the table's width
    table.add_column("metric")
    table.add_column("validation", justify="right")
    table.add_column("test", justify="right")
    for name, value in metrics["test"].items():
        table.add_row(name, f"{metrics['validation'][name]:.4f}", f"{value:.4f}")
    console.print(table)
    seconds = about["training_seconds"]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "darwin" else 1024)
    console.print(
        f"{about['parameters']:,} weights; pre-training {seconds['pretrain']:.0f} s, "
        f"fine-tuning {seconds['finetune']:.0f} s (validation apart); peak memory {memory / 1024:.2f} GiB"
    )
