"""The main job, and each of its stages alone: run, extract, pretrain, finetune, evaluate."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from msm4sr.cli.console import (
    Changes,
    Data,
    Devices,
    FeatureSources,
    Log,
    ModelName,
    Out,
    Overwrite,
    Preset,
    Resume,
    RunFolder,
    Seed,
    SettingsFile,
    Strategy,
    Strict,
    TrainingProgress,
    console,
    handle_errors,
    progress_bar,
    say_next,
)
from msm4sr.errors import InputError

if TYPE_CHECKING:  # what is heavy is imported by the command that needs it, so that --help answers at once
    from msm4sr.data.dataset import Dataset
    from msm4sr.experiments.run import Run
    from msm4sr.features.chunks import Shard
    from msm4sr.models.base import Model
    from msm4sr.training.trainer import Monitor


def run(
    data: Data,
    out: Out,
    preset: Preset = "best",
    model: ModelName = "msm4sr",
    file: SettingsFile = None,
    changes: Changes = [],
    seed: Seed = None,
    features: FeatureSources = [],
    overwrite: Overwrite = False,
    strict: Strict = False,
    resume: Resume = False,
    devices: Devices = None,
    strategy: Strategy = None,
    log: Log = None,
) -> None:
    """Extract features, pre-train, fine-tune, evaluate: from a prepared folder to recommendations."""
    with handle_errors(f"interrupted; what was done is kept in {out}: the same command with --resume goes on"):
        _check_log(log)
        changes = [*changes, *_device_changes(devices, strategy)]
        started, dataset, network = _start(
            data, out, preset, model, file, changes, seed, features, overwrite, resume, strict
        )
        for stage in ("pretrain", "finetune"):
            _train(started, stage, dataset, network, resume, log)
        if _first(started):
            _evaluate(started, dataset, network)


def extract(
    data: Data,
    out: Out,
    preset: Preset = "best",
    model: ModelName = "msm4sr",
    file: SettingsFile = None,
    changes: Changes = [],
    seed: Seed = None,
    features: FeatureSources = [],
    overwrite: Overwrite = False,
    strict: Strict = False,
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="NUMBER/COUNT", help="Encode this share of the items alone, e.g. 3/16."),
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Join the shards, which must all be there.")] = False,
) -> None:
    """The first stage alone: make the run folder and read texts and pictures. Next: pretrain RUN.

    Started by torchrun or `fabric run`, each process encodes its share and the first one joins them.
    """
    with handle_errors(f"interrupted; finished parts are kept in {out}, and the same command goes on"):
        from msm4sr.experiments.processes import launched
        from msm4sr.features.chunks import Shard

        share = None if shard is None else Shard.parse(shard)
        if share is not None and merge:
            raise InputError("--shard and --merge are two steps: first each shard, then --merge alone")
        processes = launched() if share is None and not merge else None
        console.quiet = processes is not None and processes.rank > 0
        started, dataset = _plan(data, out, preset, model, file, changes, seed, features, overwrite)
        if share is not None:
            _encode_shard(started, dataset, share, strict)
            say_next("extract", data, "--out", out, "--merge")
            return
        if processes is not None:
            _encode_shard(started, dataset, Shard(processes.rank + 1, processes.count), strict)
            processes.wait()
        if processes is None or processes.rank == 0:
            _begin(started, dataset, strict, merge or processes is not None)
            say_next("pretrain", out)
        if processes is not None:
            processes.wait()


def pretrain(
    folder: RunFolder,
    resume: Resume = False,
    devices: Devices = None,
    strategy: Strategy = None,
    log: Log = None,
) -> None:
    """The second stage alone: pre-train on content. Starts anew from the extracted features. Next: finetune RUN."""
    with handle_errors(
        f"interrupted; msm4sr pretrain {folder} --resume goes on; the best validated epoch so far is kept, and "
        f"msm4sr finetune {folder} goes on from it"
    ):
        _check_log(log)
        started = _open(folder, devices, strategy)
        dataset, network = _load_together(started)
        _train(started, "pretrain", dataset, network, resume, log)
        if _first(started):
            say_next("finetune", folder)


def finetune(
    folder: RunFolder,
    resume: Resume = False,
    devices: Devices = None,
    strategy: Strategy = None,
    log: Log = None,
) -> None:
    """The third stage alone: fine-tune with item IDs, from the pre-trained weights. Next: evaluate RUN."""
    with handle_errors(
        f"interrupted; msm4sr finetune {folder} --resume goes on; the best validated epoch so far is kept, and "
        f"msm4sr evaluate {folder} measures it"
    ):
        from msm4sr.experiments.stages import restore_last

        _check_log(log)
        started = _open(folder, devices, strategy)
        dataset, network = _load_together(started)
        restore_last(started, dataset, network, before="finetune")
        _train(started, "finetune", dataset, network, resume, log)
        if _first(started):
            say_next("evaluate", folder)


def evaluate(folder: RunFolder) -> None:
    """The last stage alone: rank all items for every user, write metrics.json, the model folder and report.html."""
    with handle_errors():
        from msm4sr.experiments.stages import restore_last

        started = _open(folder)
        dataset, network = _load(started)
        restore_last(started, dataset, network)
        _evaluate(started, dataset, network)


def _start(
    data: Path,
    out: Path,
    preset: str,
    model: str,
    file: Path | None,
    changes: list[str],
    seed: int | None,
    features: list[str],
    overwrite: bool,
    resume: bool,
    strict: bool,
) -> tuple[Run, Dataset, Model]:
    """The run, its data and a new model, in every process: the first one prepares what the others then read."""
    from msm4sr.experiments.settings import resolve_settings

    device = resolve_settings(preset, model, changes, seed, file).device
    if not device.is_first:
        console.quiet = True
        device.connect()
        started = _open(out)
        return started, *_load(started)
    planned, dataset = _plan(data, out, preset, model, file, changes, seed, features, overwrite, resume)
    begun = resume and (out / "config.yaml").exists()
    network = _extract(planned, dataset, strict) if begun else _begin(planned, dataset, strict)
    device.connect()
    return planned, dataset, network


def _plan(
    data: Path,
    out: Path,
    preset: str,
    model: str,
    file: Path | None,
    changes: list[str],
    seed: int | None,
    features: list[str],
    overwrite: bool,
    resume: bool = False,
) -> tuple[Run, Dataset]:
    """The run that is asked for, or with `resume` the one that stands there, checked; nothing is written yet."""
    from msm4sr.data.dataset import load_dataset
    from msm4sr.experiments.run import plan_run, resume_run
    from msm4sr.experiments.settings import resolve_settings
    from msm4sr.experiments.stages import describe_data

    if resume and overwrite:
        raise InputError("--resume goes on with a run, --overwrite replaces it: give one of them")
    settings = resolve_settings(preset, model, changes, seed, file)
    folder, vectors = feature_sources(features)
    dataset = load_dataset(data, settings.dataset)  # wrong data is told before anything is made
    if resume and (out / "config.yaml").exists():
        planned = resume_run(data, out, settings, folder, vectors)
    else:
        planned = plan_run(data, out, settings, preset, folder, overwrite, vectors)
    describe_data(dataset, console.print)
    return planned, dataset


def feature_sources(values: list[str]) -> tuple[Path | None, dict[str, Path]]:
    """The values of --features: a folder to keep features in, and modality to file of one's own vectors."""
    folders: list[Path] = []
    vectors: dict[str, Path] = {}
    for value in values:
        named = re.fullmatch(r"([^/\\=.]+)=(.+)", value)
        if named is None or Path(value).is_dir():
            # another run's folder stands for its features
            folders.append(Path(value) / "features" if (Path(value) / "config.yaml").exists() else Path(value))
        elif named[1] in vectors:
            raise InputError(f"--features {value}: there are vectors for {named[1]} already; one file a modality")
        else:
            vectors[named[1]] = Path(named[2])
    if len(folders) > 1:
        raise InputError(f"--features: features are kept in one folder, not in {' and '.join(map(str, folders))}")
    return (folders[0] if folders else None), vectors


def _begin(planned: Run, dataset: Dataset, strict: bool, merge: bool = False) -> Model:
    """The features, then the run's config.yaml, so that a run that exists has its features."""
    from msm4sr.experiments.run import begin_run, tidy

    try:
        network = _extract(planned, dataset, strict, merge)
        begin_run(planned)
    except (InputError, OSError):
        tidy(planned)
        raise
    return network


def _encode_shard(planned: Run, dataset: Dataset, shard: Shard, strict: bool) -> None:
    from msm4sr.experiments.stages import shard_stage

    with progress_bar() as progress:
        shard_stage(planned, dataset, shard, progress, strict=strict)


def _device_changes(devices: int | None, strategy: str | None) -> list[str]:
    given = {"devices": devices, "strategy": strategy}
    return [f"device.{name}={value}" for name, value in given.items() if value is not None]


def _open(folder: Path, devices: int | None = None, strategy: str | None = None) -> Run:
    from msm4sr.experiments.run import open_run

    return open_run(folder, _device_changes(devices, strategy))


def _check_log(log: str | None) -> None:
    if log is not None:
        from msm4sr.experiments.loggers import check_logger

        check_logger(log)


def _first(run: Run) -> bool:
    """Whether this is the process that speaks and writes."""
    return run.settings.device.is_first


def _load_together(run: Run) -> tuple[Dataset, Model]:
    """The data and a new model, in every process; what is still to be extracted the first one extracts."""
    device = run.settings.device
    if not device.is_first:
        console.quiet = True
        device.connect()
        return _load(run)
    loaded = _load(run)
    device.connect()
    return loaded


def _load(run: Run) -> tuple[Dataset, Model]:
    from msm4sr.experiments.stages import load_run_data

    dataset = load_run_data(run, console.print)
    return dataset, _extract(run, dataset)


def _extract(run: Run, dataset: Dataset, strict: bool = False, merge: bool = False) -> Model:
    from msm4sr.experiments.stages import build_model, extract_stage

    with progress_bar() as progress:
        features = extract_stage(run, dataset, progress, progress.console.print, strict=strict, merge=merge)
    return build_model(run.settings, dataset, features)


def _train(run: Run, stage: str, dataset: Dataset, network: Model, resume: bool, log: str | None) -> None:
    from msm4sr.experiments.loggers import Logged, make_logger
    from msm4sr.experiments.stages import train_stage

    with progress_bar() as progress:
        monitor: Monitor = TrainingProgress(progress)
        if log is not None and _first(run):
            monitor = Logged(make_logger(log, run.folder), monitor)
        train_stage(run, stage, dataset, network, monitor, progress.console.print, resume)


def _evaluate(run: Run, dataset: Dataset, network: Model) -> None:
    from msm4sr.experiments.metrics import evaluate_stage
    from msm4sr.reports.run_report import write_run_report

    with progress_bar() as progress:
        metrics = evaluate_stage(run, dataset, network, progress)
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
    console.print(
        f"{about['parameters']:,} weights; pre-training {seconds['pretrain']:.0f} s, "
        f"fine-tuning {seconds['finetune']:.0f} s (validation apart); peak memory {about['peak_memory_mib']} MiB"
    )
