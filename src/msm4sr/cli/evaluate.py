"""`msm4sr evaluate`: the last stage of a run, or a finished run on other data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from msm4sr.cli.console import RunFolder, console, handle_errors, progress_bar, say_next
from msm4sr.executors import Executor, LocalExecutor

if TYPE_CHECKING:  # heavy modules are imported by the command that needs them, so that --help is quick
    from msm4sr.data.dataset import Dataset
    from msm4sr.experiments.run import Run
    from msm4sr.models.base import Model


def evaluate(
    folder: RunFolder,
    data: Annotated[
        Path | None, typer.Option("--data", help="The prepared folder, if it has moved; or other data.")
    ] = None,
) -> None:
    """The last stage: rank all items for every user, write metrics.json, the model folder and report.html.

    With --data of other content, evaluate the stored model without training and write to RUN/evaluations/ only.
    """
    with handle_errors():
        from msm4sr.experiments.other_data import other_data
        from msm4sr.experiments.run import locked_run, open_run
        from msm4sr.experiments.stages import restore_last

        started = open_run(folder, data=data)
        with locked_run(folder):
            if data is not None and (other := other_data(started)) is not None:
                evaluate_elsewhere(started, other)
                return
            dataset, network = load(started)
            restore_last(started, dataset, network)
            evaluate_run(started, dataset, network)


def load(run: Run) -> tuple[Dataset, Model]:
    """The data of a run, verified, and a new model over its features."""
    from msm4sr.experiments.run import check_data
    from msm4sr.experiments.stages import load_run_data

    dataset = load_run_data(run)
    check_data(run, dataset.identity)
    return dataset, new_model(run, dataset)


def new_model(
    run: Run, dataset: Dataset, strict: bool = False, merge: bool = False, executor: Executor = LocalExecutor()
) -> Model:
    """A new model over extracted features."""
    from msm4sr.experiments.stages import build_model, extract_stage

    with progress_bar() as progress:
        features = extract_stage(run, dataset, progress, strict=strict, merge=merge, executor=executor)
    return build_model(run.settings, dataset, features)


def evaluate_run(run: Run, dataset: Dataset, network: Model) -> None:
    """Evaluate a run on its own data, and print its metrics."""
    from msm4sr.experiments.metrics import evaluate_stage
    from msm4sr.reports.run_report import write_run_report

    with progress_bar() as progress:
        metrics = evaluate_stage(run, dataset, network, progress)
    report = write_run_report(run, dataset, network, metrics)
    _summary(metrics)
    console.print(f"report: {report}", markup=False)
    if run.settings.is_fine_tuned(network):
        say_next("recommend", run.folder, "--user", dataset.user_ids[0])


def evaluate_elsewhere(run: Run, dataset: Dataset) -> None:
    """Evaluate a run on other data, and print the metrics."""
    from msm4sr.experiments.other_data import evaluate_on

    with progress_bar() as progress:
        folder, metrics = evaluate_on(run, dataset, progress)
    _summary(metrics)
    console.print(f"{metrics['run']['new_items']:,} items are new to the model; results: {folder}", markup=False)


def _summary(metrics: dict[str, Any]) -> None:
    from msm4sr.evaluation.beyond_accuracy import MEASURES
    from msm4sr.experiments.model_folder import beyond_accuracy_columns, metric_columns

    about = metrics["run"]
    console.print(f"{about['model']} on {about['data']}: {about['protocol']}", markup=False)
    columns = metric_columns(metrics)
    headers = (Column(label.replace(", ", "\n"), justify="right") for label in columns)
    table = Table("metric", *headers)  # no title: it would be wrapped at the width of the table
    for name in metrics["test"]:
        table.add_row(name, *(f"{column[name]:.4f}" for column in columns.values()))
    console.print(table)
    lists = next(iter(beyond_accuracy_columns(metrics).values()))
    shown = ", ".join(
        f"{measure.replace('_', ' by ')} {lists[name]:.3g}"
        for measure in MEASURES
        if (name := f"{measure}@10") in lists
    )
    console.print(f"lists of 10: {shown}", markup=False)
    seconds = about["training_seconds"]
    console.print(
        f"{about['parameters']:,} parameters; pre-training {seconds['pretrain']:.0f} s, "
        f"fine-tuning {seconds['finetune']:.0f} s (excluding validation); peak memory {about['peak_memory_mib']} MiB"
    )
