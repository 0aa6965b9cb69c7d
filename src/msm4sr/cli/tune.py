"""Tuning on validation."""

from __future__ import annotations

import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from msm4sr.cli.console import (
    Changes,
    Data,
    FeatureSources,
    ModelName,
    Preset,
    Seed,
    SettingsFile,
    console,
    handle_errors,
    progress_bar,
    say_next,
)
from msm4sr.cli.stages import feature_sources
from msm4sr.errors import InputError

if TYPE_CHECKING:  # what is heavy is imported by the command that needs it, so that --help answers at once
    from msm4sr.experiments.tune import Trial

SHOWN = 10  # trials in the table


def tune(
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="The study's folder.", show_default=False)],
    model: ModelName = "msm4sr",
    search: Annotated[
        str | None,
        typer.Option(
            "--search",
            metavar="FILE | NAME",
            help="A search file, or a model for its search space.",
            show_default="MODEL",
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, help="How many in all.", show_default="those of the budget")
    ] = None,
    preset: Preset = "best",
    file: SettingsFile = None,
    changes: Changes = [],
    seed: Seed = None,
    features: FeatureSources = [],
    save: Annotated[
        Path | None,
        typer.Option("--save", help="Copy best.yaml there, e.g. configs/models/DATASET/NAME.yaml.", show_default=False),
    ] = None,
) -> None:
    """Search a model's settings by validation ndcg@10; the test items are never ranked.

    The same command goes on with a study that was interrupted, and may run several times at once.
    """
    with handle_errors(f"interrupted; finished trials are kept in {out}, and the same command goes on"):
        if find_spec("optuna") is None:
            raise InputError("tuning needs optuna: pip install 'msm4sr[tune]'")
        import optuna

        from msm4sr.data.dataset import load_dataset
        from msm4sr.experiments import tune as tuning
        from msm4sr.experiments.run import Run, read_precomputed, tidy
        from msm4sr.experiments.search import check_defaults, load_search
        from msm4sr.experiments.settings import change_settings, resolve_settings, with_values
        from msm4sr.experiments.stages import describe_data, extract_stage

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        searched = load_search(search, model)
        settings = resolve_settings(preset, model, seed=seed, file=file)
        settings = with_values(settings, searched.budget, f"the budget of search {searched.name}")
        settings = change_settings(settings, changes)
        check_defaults(searched, settings)
        settings.device.check()
        if settings.device.processes > 1:
            raise InputError("device.devices: a trial runs on one device; start the same command several times instead")
        tuning.check_folder(out)
        kept, vectors = feature_sources(features)
        dataset = load_dataset(data, settings.dataset)
        describe_data(dataset, console.print)
        reads = Run(
            out, data.absolute(), (kept or out / "features").absolute(), preset, settings, read_precomputed(vectors)
        )
        try:
            with progress_bar() as progress:
                vectors_of_items = extract_stage(reads, dataset, progress, progress.console.print)
        except (InputError, OSError):
            tidy(reads)
            raise
        task = tuning.Tuning(out, searched, settings, trials or searched.trials, dataset, vectors_of_items)

        def tell(trial: tuning.Trial) -> None:
            console.print(f"{_outcome(trial)}  {trial.seconds:.0f} s  {_said(trial)}", markup=False)

        ended = tuning.tune(task, tell)
        _table(ended)
        words = ["msm4sr", "tune", f"DATA/{dataset.folder.resolve().name}", "--model", model]
        words += ["--search", searched.name, "--trials", str(task.trials), "--preset", preset]
        words += [] if file is None else ["--settings", file.name]
        words += [word for change in changes for word in ("--set", change)]
        words += ["--seed", str(settings.seed), "--out", "STUDY"]
        text = tuning.best_text(task, ended, preset, shlex.join(words))
        for target in (out / "best.yaml", save):
            if target is not None:
                tuning.write_text(target, text)
                console.print(f"best settings: {target}", markup=False)
        say_next("run", data, "--model", model, "--preset", preset, "--settings", save or out / "best.yaml")


def _outcome(trial: Trial) -> str:
    return f"trial {trial.number:>2}  {trial.state:<8}  " + ("" if trial.value is None else f"{trial.value:.4f}")


def _said(trial: Trial) -> str:
    return trial.reason or ("the defaults" if trial.is_default else _values(trial))


def _values(trial: Trial) -> str:
    return ", ".join(f"{key}={value}" for key, value in trial.values.items())


def _table(trials: list[Trial]) -> None:
    table = Table()
    for name in ("trial", "validation ndcg@10", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("settings")
    for trial in trials[:SHOWN]:
        value = trial.state if trial.value is None else f"{trial.value:.4f}"
        said = ("the defaults: " if trial.is_default else "") + (trial.reason or _values(trial))
        table.add_row(str(trial.number), value, f"{trial.seconds:.0f}", escape(said))
    console.print(table)
