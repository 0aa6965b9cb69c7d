"""`msm4sr run`, and each of its stages as a command: extract, pretrain, finetune, evaluate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msm4sr.cli.console import (
    Changes,
    Cpus,
    Data,
    Devices,
    FeatureSources,
    Gpus,
    Log,
    ModelName,
    MovedData,
    Out,
    Overwrite,
    Preset,
    RayAddress,
    Resume,
    RunFolder,
    Seed,
    SettingsFile,
    Strict,
    WarmStart,
    check_workers,
    chosen_executor,
    console,
    feature_sources,
    handle_errors,
    progress_bar,
    say_next,
)
from msm4sr.cli.evaluate import evaluate_run, load, new_model
from msm4sr.cli.request import Request
from msm4sr.errors import InputError
from msm4sr.executors import Executor, LocalExecutor

if TYPE_CHECKING:  # heavy modules are imported by the command that needs them, so that --help is quick
    from msm4sr.data.dataset import Dataset
    from msm4sr.experiments.run import Run
    from msm4sr.models.base import Model
    from msm4sr.training.callbacks import Callback
    from msm4sr.training.device import Device

Again = Annotated[bool, typer.Option("--overwrite", help="Train a stage again that has weights; results are removed.")]


def run(
    data: Data,
    out: Out,
    preset: Preset = None,
    model: ModelName = None,
    file: SettingsFile = None,
    changes: Changes = [],
    seed: Seed = None,
    features: FeatureSources = [],
    overwrite: Overwrite = False,
    strict: Strict = False,
    resume: Resume = False,
    warm_start: WarmStart = None,
    devices: Devices = None,
    log: Log = None,
    ray: RayAddress = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
) -> None:
    """Extract features, pre-train, fine-tune, evaluate: from a prepared folder to recommendations."""
    with handle_errors(
        f"interrupted; finished work is kept in {out}. Rerun the command with --resume to continue; results are "
        "bit-identical."
    ):
        from msm4sr.experiments.loggers import check_logger

        check_logger(log)
        check_workers(ray, cpus, gpus)
        changes = [*changes, *_device_changes(devices)]
        request = Request(
            data, out, preset, model, file, changes, seed, features, overwrite, strict, resume, warm_start
        )
        if ray is not None:
            _run_on_ray(request, ray, cpus, gpus, log)
            return
        with _locked(out, request.settings().device):
            started, dataset, network = _start(request)
            for stage in ("pretrain", "finetune"):
                _train(started, stage, dataset, network, resume, log)
            if started.settings.device.is_first:
                evaluate_run(started, dataset, network)


def _run_on_ray(request: Request, address: str, cpus: int | None, gpus: float | None, log: str | None) -> None:
    """All stages: extraction and training on the cluster, evaluation here."""
    from msm4sr.experiments.ray_training import train_on_ray
    from msm4sr.experiments.run import locked_run
    from msm4sr.experiments.stages import restore_last
    from msm4sr.ray_executor import RayExecutor

    files = [request.data, *feature_sources(request.features)[1].values()]
    files += [request.warm_start] if request.warm_start else []
    with locked_run(request.out), chosen_executor(1, address, cpus, gpus, files, request.out) as executor:
        assert isinstance(executor, RayExecutor)
        started, dataset = _plan(request)
        begin = new_model if request.resumes else _begin
        network = begin(started, dataset, request.strict, executor=executor)
        with progress_bar() as progress:
            train_on_ray(started, executor, log, progress)
        restore_last(started, dataset, network)
        evaluate_run(started, dataset, network)


def extract(
    data: Data,
    out: Out,
    preset: Preset = None,
    model: ModelName = None,
    file: SettingsFile = None,
    changes: Changes = [],
    seed: Seed = None,
    features: FeatureSources = [],
    overwrite: Overwrite = False,
    strict: Strict = False,
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="NUMBER/COUNT", help="Encode only this shard of the items, e.g. 3/16."),
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Join the shards; all of them must be complete.")] = False,
    ray: RayAddress = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
) -> None:
    """The first stage: create the run folder, encode texts and images. Next: pretrain RUN."""
    kept = next((folder for folder in features if "=" not in folder), str(out))
    with handle_errors(f"interrupted; finished chunks are kept in {kept}. Rerun the command to continue."):
        from msm4sr.experiments.run import locked_run
        from msm4sr.experiments.stages import extract_run_shard
        from msm4sr.features.store_builder import Shard

        check_workers(ray, cpus, gpus)
        only = None if shard is None else Shard.parse(shard)
        if only is not None and merge:
            raise InputError("--shard and --merge are two steps: run each shard first, then --merge without --shard")
        if only is not None and ray is not None:
            raise InputError("--shard is for machines without Ray; use --ray alone")
        request = Request(data, out, preset, model, file, changes, seed, features, overwrite, strict)
        if only is None:
            with locked_run(out):
                planned, dataset = _plan(request)
                files = [data, *(found.file for found in planned.precomputed.values())]
                with chosen_executor(1, ray, cpus, gpus, files, out) as executor:
                    _begin(planned, dataset, strict, merge, executor)
            say_next("pretrain", out)
            return
        planned, dataset = _plan(request)
        with progress_bar() as progress:
            extract_run_shard(planned, dataset, only, progress, strict=strict)
        say_next("extract", data, "--out", out, "--merge", *request.options())


def pretrain(
    folder: RunFolder,
    data: MovedData = None,
    resume: Resume = False,
    overwrite: Again = False,
    devices: Devices = None,
    log: Log = None,
) -> None:
    """The second stage: pre-train on content. Next: finetune RUN."""
    _train_one("pretrain", "finetune", folder, data, resume, overwrite, _device_changes(devices), log)


def finetune(
    folder: RunFolder,
    data: MovedData = None,
    resume: Resume = False,
    overwrite: Again = False,
    devices: Devices = None,
    log: Log = None,
) -> None:
    """The third stage: fine-tune with item IDs, from the pre-trained weights. Next: evaluate RUN."""
    _train_one("finetune", "evaluate", folder, data, resume, overwrite, _device_changes(devices), log)


def _train_one(
    stage: str,
    following: str,
    folder: Path,
    data: Path | None,
    resume: bool,
    overwrite: bool,
    changes: list[str],
    log: str | None,
) -> None:
    """Train one stage, from the weights of the stage before."""
    with handle_errors(
        f"interrupted. Run `msm4sr {stage} {folder} --resume` to continue, or `msm4sr {following} {folder}` to use the "
        "best epoch so far."
    ):
        from msm4sr.experiments.loggers import check_logger
        from msm4sr.experiments.machine import use_threads_of
        from msm4sr.experiments.run import open_run
        from msm4sr.experiments.stages import restore_last
        from msm4sr.training.checkpoint import best_file

        check_logger(log)
        started = open_run(folder, changes, data)
        _check_resume(resume, overwrite)
        if not resume and not overwrite and best_file(started.checkpoints, stage).exists():
            raise InputError(
                f"{folder}: already has weights of {stage}; --resume completes an interrupted training, --overwrite "
                "trains the stage again and removes later stages and results"
            )
        with _locked(folder, started.settings.device):
            if resume:
                use_threads_of(started.checkpoints, [stage])
            with _first_process_first(started.settings.device):
                dataset, network = load(started)
            if stage not in network.tasks and started.settings.device.is_first:
                console.print(f"{network.label} has no {stage} stage: nothing is trained")
            restore_last(started, dataset, network, before=stage)
            _train(started, stage, dataset, network, resume, log)
        if started.settings.device.is_first:
            say_next(following, folder)


def _start(request: Request) -> tuple[Run, Dataset, Model]:
    """The run, its data and a new model, in every process; the first one prepares what the others read."""
    from msm4sr.experiments.machine import use_threads_of
    from msm4sr.experiments.run import open_run, with_processes_of

    settings = request.settings()
    device = settings.device
    with _first_process_first(device):
        if not device.is_first:
            started = with_processes_of(open_run(request.out), settings)
            if request.resumes:
                use_threads_of(started.checkpoints)
            return started, *load(started)
        planned, dataset = _plan(request)
        begin = new_model if request.resumes else _begin
        return planned, dataset, begin(planned, dataset, request.strict)


def _locked(folder: Path, device: Device) -> AbstractContextManager[None]:
    """The lock of a run folder, which the first of several processes holds."""
    from msm4sr.experiments.run import locked_run

    return locked_run(folder) if device.is_first else nullcontext()


@contextmanager
def _first_process_first(device: Device) -> Iterator[None]:
    """Run the block in the first process before the others, which print nothing, and connect all of them."""
    if not device.is_first:
        console.quiet = True
        device.connect()
    yield
    if device.is_first:
        device.connect()


def _plan(request: Request) -> tuple[Run, Dataset]:
    """The requested run, or the existing one to resume, checked; nothing is written yet."""
    from msm4sr.data.dataset import load_dataset
    from msm4sr.experiments.machine import use_threads_of
    from msm4sr.experiments.run import plan_run, resume_run
    from msm4sr.experiments.stages import describe_data, describe_settings

    _check_resume(request.resume, request.overwrite)
    settings = request.settings()
    folder, precomputed = feature_sources(request.features)
    dataset = load_dataset(request.data, settings.dataset)  # first, so that wrong data is reported before any writing
    if request.resumes:
        planned = resume_run(request.data, request.out, settings, folder, precomputed)
        use_threads_of(planned.checkpoints)
    else:
        preset = request.source.preset if request.source else request.preset or "best"
        planned = plan_run(request.data, request.out, settings, preset, folder, request.overwrite, precomputed)
    describe_data(dataset)
    describe_settings(planned, dataset)
    for option in request.without_effect():
        console.print(f"{option}: has no effect on {settings.model.name}", markup=False)
    return planned, dataset


def _begin(
    planned: Run, dataset: Dataset, strict: bool, merge: bool = False, executor: Executor = LocalExecutor()
) -> Model:
    """Extract the features, then write config.yaml, so that every run has its features."""
    from msm4sr.experiments.run import begin_run
    from msm4sr.experiments.warm_start import start_warm

    network = new_model(planned, dataset, strict, merge, executor)
    if planned.settings.warm_start.run:  # so that weights that do not fit are refused before anything is written
        start_warm(planned, dataset, network)
    begin_run(planned, dataset.identity)
    return network


def _check_resume(resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise InputError("--resume continues an interrupted training, --overwrite starts it again: use one of them")


def _device_changes(devices: int | None) -> list[str]:
    return [] if devices is None else [f"device.devices={devices}"]


def _train(run: Run, stage: str, dataset: Dataset, network: Model, resume: bool, log: str | None) -> None:
    from msm4sr.experiments.loggers import LoggerCallback, make_logger
    from msm4sr.experiments.stages import train_stage
    from msm4sr.training.callbacks import TrainingProgress

    with progress_bar() as progress:
        callbacks: list[Callback] = [TrainingProgress(progress)]
        if log is not None and run.settings.device.is_first:
            callbacks.append(LoggerCallback(partial(make_logger, log, run.folder)))
        train_stage(run, stage, dataset, network, callbacks, resume=resume)
