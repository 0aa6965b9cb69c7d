"""`msm4sr tune`: search for the settings with the best validation metric."""

from __future__ import annotations

import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from msm4sr.cli.console import (
    Changes,
    Cpus,
    Data,
    FeatureSources,
    Gpus,
    Jobs,
    ModelName,
    Preset,
    RayAddress,
    Seed,
    SettingsFile,
    check_workers,
    chosen_executor,
    console,
    feature_sources,
    handle_errors,
    progress_bar,
    say_next,
)
from msm4sr.cluster import check_local_path, check_one_machine
from msm4sr.errors import InputError

if TYPE_CHECKING:  # heavy modules are imported by the command that needs them, so that --help is quick
    from msm4sr.data.dataset import Dataset
    from msm4sr.experiments.search import Search
    from msm4sr.experiments.settings import RunSettings
    from msm4sr.experiments.tune import Trial, Tuning
    from msm4sr.features.store import Features

SHOWN = 10  # trials in the table


StudyFolder = Annotated[Path, typer.Option("--out", help="The study's folder.", show_default=False)]
SearchSpace = Annotated[
    str | None,
    typer.Option(
        "--search", metavar="FILE | NAME", help="A search file, or a model with a search space.", show_default="MODEL"
    ),
]
Seconds = Annotated[
    int,
    typer.Option(
        "--seconds", min=0, help="Start no further trial once the trials have run for so many seconds in total."
    ),
]
Trials = Annotated[
    int | None, typer.Option("--trials", min=1, help="Largest number of trials.", show_default="no limit")
]
Storage = Annotated[
    str,
    typer.Option(
        "--storage",
        metavar="sqlite | journal | postgresql://...",
        help="Where trials are stored: SQLite or a journal in the study's folder (for workers on other machines), or "
        "PostgreSQL.",
    ),
]
Save = Annotated[
    Path | None,
    typer.Option("--save", help="Copy best.yaml to it, e.g. configs/models/DATASET/NAME.yaml.", show_default=False),
]


def tune(
    data: Data,
    out: StudyFolder,
    model: ModelName = None,
    search: SearchSpace = None,
    seconds: Seconds = 1800,
    trials: Trials = None,
    preset: Preset = None,
    file: SettingsFile = None,
    changes: Changes = [],
    seed: Seed = None,
    features: FeatureSources = [],
    save: Save = None,
    storage: Storage = "sqlite",
    jobs: Jobs = 1,
    ray: RayAddress = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
) -> None:
    """Search for the settings of a model with the best validation ndcg@10. The test items are never ranked.

    Rerun the command to continue an interrupted study.
    """
    with handle_errors(f"interrupted; finished trials are kept in {out}. Rerun the command to continue."):
        if find_spec("optuna") is None:
            raise InputError("tuning needs optuna: pip install 'msm4sr[tune]'")
        import optuna

        from msm4sr.data.dataset import load_dataset
        from msm4sr.experiments.search import load_search
        from msm4sr.experiments.stages import describe_data
        from msm4sr.experiments.study_storage import SQLITE, check_storage
        from msm4sr.experiments.tune import Tuning, best_text, check_folder
        from msm4sr.experiments.tune import tune as run_trials
        from msm4sr.files import write_text

        check_workers(ray, cpus, gpus)
        check_local_path("--out", out)
        check_storage(storage)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        preset, model = preset or "best", model or "msm4sr"
        space = load_search(search, model)
        settings = _settings(data, space, model, preset, file, changes, seed)
        check_folder(out, storage)
        dataset = load_dataset(data, settings.dataset)
        describe_data(dataset)
        rows = _features(out, dataset, settings, preset, features)
        tuning = Tuning(out.absolute(), space, settings, dataset, rows, seconds, trials, storage)
        with chosen_executor(jobs, ray, cpus, gpus, [data], out) as executor, progress_bar() as progress:
            if ray is not None and storage == SQLITE:
                check_one_machine("--storage sqlite", "give --storage journal, or PostgreSQL")
            ended = run_trials(tuning, _print_trial, executor, progress)
        _print_table(ended)
        text = best_text(tuning, ended, preset, _command(tuning, preset, file, changes, features))
        for target in filter(None, (out / "best.yaml", save)):
            write_text(target, text)
            console.print(f"best settings: {target}", markup=False)
        given: list[str | Path] = ["--model", model, "--preset", preset, "--settings", save or out / "best.yaml"]
        given += [word for source in features for word in ("--features", source)]
        say_next("run", data, *given, "--out", "RUN")


def _settings(
    data: Path, space: Search, model: str, preset: str, file: Path | None, changes: list[str], seed: int | None
) -> RunSettings:
    """The settings of the first trial, checked."""
    from msm4sr.experiments.search import check_defaults
    from msm4sr.experiments.settings import resolve_settings

    settings = resolve_settings(preset, model, changes, seed, file, data)
    check_defaults(space, settings)
    settings.device.check()
    if settings.warm_start.run:
        raise InputError("warm_start.run: every trial is trained from scratch; leave it out")
    if settings.device.processes > 1:
        raise InputError("device.devices: a trial runs on one device; use --jobs or --ray to run several")
    return settings


def _command(tuning: Tuning, preset: str, file: Path | None, changes: list[str], sources: list[str]) -> str:
    """The command that ran the study, without the folders of its files."""
    words = ["msm4sr", "tune", f"DATA/{tuning.dataset.folder.resolve().name}", "--model", tuning.settings.model.name]
    words += ["--search", tuning.search.name, "--seconds", f"{tuning.seconds:.0f}"]
    words += [] if tuning.trials is None else ["--trials", str(tuning.trials)]
    words += ["--preset", preset, *([] if file is None else ["--settings", file.name])]
    words += [word for change in changes for word in ("--set", change)]
    precomputed = feature_sources(sources)[1]
    words += [word for name, vectors in precomputed.items() for word in ("--features", f"{name}={vectors.name}")]
    return shlex.join([*words, "--seed", str(tuning.settings.seed), "--out", "STUDY"])


def _features(
    out: Path, dataset: Dataset, settings: RunSettings, preset: str, sources: list[str]
) -> dict[str, Features]:
    """The features of the items, kept in the study's folder or the folder of --features."""
    from msm4sr.experiments.run import Run, read_precomputed, remove_empty
    from msm4sr.experiments.stages import extract_stage

    kept, files = feature_sources(sources)
    folder = (kept or out / "features").absolute()
    run = Run(out, dataset.folder.absolute(), folder, preset, settings, read_precomputed(files))
    try:
        with progress_bar() as progress:
            return extract_stage(run, dataset, progress)
    except (InputError, OSError):
        remove_empty(run.features, run.folder)
        raise


def _print_trial(trial: Trial) -> None:
    value = "" if trial.value is None else f"{trial.value:.4f}"
    result = trial.reason or ("the defaults" if trial.is_default else _values(trial))
    console.print(f"trial {trial.number:>2}  {trial.state:<8}  {value}  {trial.seconds:.0f} s  {result}", markup=False)


def _values(trial: Trial) -> str:
    return ", ".join(f"{key}={value}" for key, value in trial.values.items())


def _print_table(trials: list[Trial]) -> None:
    from msm4sr.experiments.tune import counts

    numbers = (Column(name, justify="right") for name in ("trial", "validation ndcg@10", "seconds"))
    table = Table(*numbers, "settings")
    for trial in trials[:SHOWN]:
        value = trial.state if trial.value is None else f"{trial.value:.4f}"
        result = ("the defaults: " if trial.is_default else "") + (trial.reason or _values(trial))
        table.add_row(str(trial.number), value, f"{trial.seconds:.0f}", escape(result))
    table.add_section()
    table.add_row(f"all {len(trials)}", "", f"{sum(trial.seconds for trial in trials):.0f}", counts(trials))
    console.print(table)
