"""Tuning: the trials of a search, each trained and evaluated on validation only, kept in STUDY/study.db.

The first trial has the defaults, so that the result is never worse; TPE (Bergstra et al. 2011) proposes the others
from the values of the finished ones. A trial that is behind the median of the others in the second half of its epochs
is pruned. The value of a trial is `ndcg@10` on validation, whatever the other settings; test is not ranked. No weights
are kept, only a row in the database.

Each running trial is locked by a file, which the operating system unlocks when the process ends. A trial that is
marked as running but not locked was interrupted: it is repeated with the same values, and not counted.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import yaml
from filelock import FileLock
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from msm4sr.data.dataset import Dataset
from msm4sr.digests import array_digest
from msm4sr.dotted import differences, flatten, nest, shorten
from msm4sr.errors import InputError, first_line
from msm4sr.evaluation.evaluate import evaluate
from msm4sr.experiments.search import SEARCHED, Choices, FloatRange, IntRange, Search, check_defaults
from msm4sr.experiments.settings import RunSettings, resolve_settings, with_values
from msm4sr.experiments.stages import build_model
from msm4sr.features.store import Features
from msm4sr.files import make_folder
from msm4sr.locks import try_lock, unlock
from msm4sr.training.callbacks import Callback, EpochRecord, TrainingPlan
from msm4sr.training.stages import STAGES, task_for
from msm4sr.training.trainer import Trainer, TrainerOptions

OBJECTIVE = "ndcg@10"
DATABASE = "study.db"
STUDY_LOCK = ".study.lock"
BEFORE_A_STUDY = {"features", STUDY_LOCK, DATABASE, f"{DATABASE}-journal"}
WAIT = 1.0  # seconds between two checks whether the trials of other processes have ended


@dataclass(frozen=True)
class Trial:
    """A trial that is counted."""

    number: int  # from 0, in the order of their start; interrupted trials have numbers too, and are skipped here
    state: str  # finished, pruned or failed
    value: float | None  # `ndcg@10` on validation, of a finished trial
    seconds: float  # from start to end
    values: Mapping[str, Any]  # of the search, by dotted name
    reason: str = ""  # why it failed
    is_default: bool = False  # whether it has the defaults


@dataclass(frozen=True)
class Tuning:
    """A search for the settings of one model on one data set."""

    folder: Path  # of the study
    search: Search
    settings: RunSettings  # of the first trial; `trial_settings` changes them for the others
    trials: int  # how many to run
    dataset: Dataset
    features: Mapping[str, Features]  # of the items, the same for all trials


def check_folder(folder: Path) -> None:
    """InputError for a folder that is not empty and has no study."""
    database = folder / DATABASE
    if folder.is_dir() and not (database.exists() and database.stat().st_size):
        foreign = sorted({entry.name for entry in folder.iterdir()} - BEFORE_A_STUDY)
        if foreign:
            raise InputError(
                f"{folder}: the folder is not a study: it contains {foreign[0]!r}, and {DATABASE} is missing or empty; "
                f"restore {DATABASE}, or choose another --out"
            )


def tune(tuning: Tuning, report: Callable[[Trial], object] = lambda trial: None) -> list[Trial]:
    """Run the remaining trials, and return all, best first.

    Several processes of one machine can tune at once. Each returns when all trials have ended; `report` is called with
    each trial of this process when it has ended.

    Raises:
        InputError: the study has another search, other settings or other data; its database is damaged, or cannot be
            written.
    """
    study = _open(tuning)
    with _usable(tuning.folder / DATABASE):
        return _run_trials(study, tuning, report)


def _run_trials(study: optuna.Study, tuning: Tuning, report: Callable[[Trial], object]) -> list[Trial]:
    distributions = {key: _distribution(parameter) for key, parameter in tuning.search.parameters.items()}
    while True:
        with _claimed(study, tuning, distributions) as trial:
            if trial is None:
                break
            finish = study.tell  # vocabulary: allow (optuna's name)
            try:
                finish(trial, _value(trial, tuning))
            except optuna.TrialPruned:
                finish(trial, state=TrialState.PRUNED)
            except (InputError, FloatingPointError) as error:
                trial.set_user_attr("reason", str(error))
                finish(trial, state=TrialState.FAIL)
        report(next(ended for ended in _ended(study, tuning) if ended.number == trial.number))
    return _ended(study, tuning)


def trial_settings(tuning: Tuning, values: Mapping[str, Any]) -> RunSettings:
    """The settings of a trial with these values."""
    return with_values(tuning.settings, values, "trial")


def best_of(trials: Sequence[Trial], folder: Path) -> Trial:
    """The first of sorted trials. InputError, with the first reason, when none has finished."""
    if not trials or trials[0].value is None:
        reason = next((f"; trial {trial.number}: {trial.reason}" for trial in trials if trial.reason), "")
        raise InputError(f"{folder}: no trial has finished{reason}")
    return trials[0]


def best_text(tuning: Tuning, trials: Sequence[Trial], preset: str, command: str) -> str:
    """A settings file with the values of the best trial; its comments say how they were found.

    The other changes of the trials to the preset are included, except the budget.
    """
    best, model = best_of(trials, tuning.folder), tuning.settings.model.name
    plain = flatten(resolve_settings(preset, model).model_dump(mode="json"))
    changed = {
        key: value
        for key, value in flatten(tuning.settings.model_dump(mode="json")).items()
        if key.startswith(SEARCHED) and value != plain[key] and key not in tuning.search.budget
    }
    default = next((trial for trial in trials if trial.is_default), None)
    untuned = f"{default.value:.4f}" if default is not None and default.value is not None else "none, it failed"
    counts = ", ".join(
        f"{sum(trial.state == state for trial in trials)} {state}" for state in ("finished", "pruned", "failed")
    )
    data = tuning.dataset.folder.resolve().name
    head = (
        f"{model} on {data}, tuned over preset {preset}.",
        f"Validation {OBJECTIVE}: {best.value:.4f} (trial {best.number}); with the defaults: {untuned}.",
        f"Search {tuning.search.name}, seed {tuning.settings.seed}; trials: {counts}.",
        f"Made by: {command}",
        f"Use it by: msm4sr run DATA/{data} --model {model} --preset {preset} --settings FILE --out RUN",
    )
    body = yaml.safe_dump(nest({"model.name": model, **changed, **best.values}), sort_keys=False)
    return "".join(f"# {line}\n" for line in head) + body


def _value(trial: optuna.Trial, tuning: Tuning) -> float:
    """Train with the values of the trial, and validate the weights of the best epoch."""
    is_default = "default" in trial.user_attrs
    settings = trial_settings(tuning, {} if is_default else _rounded(trial.params))
    model = build_model(settings, tuning.dataset, tuning.features)
    for stage in STAGES:
        task = task_for(model, stage, settings)
        if task is not None:
            options = TrainerOptions(settings.seed, settings.device, settings.evaluation)
            pruning = Pruning(trial, may_prune=not is_default)
            Trainer(task, getattr(settings, stage), options, [pruning]).fit(tuning.dataset)
    model.to(settings.device.torch_device())
    return evaluate(model, tuning.dataset, "validation", settings.evaluation)[OBJECTIVE]


class Pruning(Callback):
    """Reports the validation of each epoch of fine-tuning to the study, and ends a trial that has fallen behind."""

    def __init__(self, trial: optuna.Trial, may_prune: bool) -> None:
        self._trial, self._may_prune = trial, may_prune
        self._epochs = 0

    def on_start(self, plan: TrainingPlan) -> None:
        self._epochs = plan.epochs

    def on_epoch_end(self, record: EpochRecord, improved: bool) -> None:
        if record.stage != STAGES[-1] or not record.validation:
            return  # pre-training validates another scorer
        self._trial.report(record.validation[OBJECTIVE], record.epoch)
        if self._may_prune and record.epoch > self._epochs / 2 and self._trial.should_prune():
            raise optuna.TrialPruned


def _distribution(parameter: FloatRange | IntRange | Choices) -> BaseDistribution:
    match parameter:
        case FloatRange():
            return FloatDistribution(parameter.low, parameter.high, log=parameter.log)
        case IntRange():
            return IntDistribution(parameter.low, parameter.high, log=parameter.log)
        case Choices():
            return CategoricalDistribution(parameter.choices)


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Three digits, so that a readable settings file has exactly the values of the trial."""
    return {key: float(f"{value:.3g}") if isinstance(value, float) else value for key, value in values.items()}


@contextmanager
def _usable(database: Path) -> Iterator[None]:
    """Raise errors of the database as InputError; one that did not exist, or was empty, is removed then."""
    is_new = not database.exists() or not database.stat().st_size
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        if is_new:
            database.unlink(missing_ok=True)
        cause = error.__cause__ or error
        why = first_line(getattr(cause, "orig", None) or cause)
        raise InputError(
            f"{database}: cannot be used ({why}); make it writable, with space on its disk, and rerun the command; if "
            "it is damaged, restore it or choose another --out"
        ) from None


class _Durable(sqlite3.Connection):
    """A connection whose commits survive a power cut; by default SQLite does not sync the folder of its journal."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.execute("PRAGMA synchronous = EXTRA")


def _open(tuning: Tuning) -> optuna.Study:
    """The study of the folder, made if it is missing, with the defaults as its first trial."""
    defaults = check_defaults(tuning.search, tuning.settings)
    make_folder(tuning.folder)
    features = {name: array_digest(rows.values, rows.offsets) for name, rows in tuning.features.items()}
    identity = {
        **flatten(
            {"data": {**tuning.dataset.identity, "content": tuning.dataset.content_digest}, "features": features}
        ),
        **flatten({"settings": tuning.settings.model_dump(mode="json")}),
        "search": {key: part.model_dump(mode="json") for key, part in tuning.search.parameters.items()},
    }
    database = tuning.folder.absolute() / DATABASE
    with FileLock(tuning.folder / STUDY_LOCK), _usable(database):
        database.touch()  # SQLite would make it 0644, whatever the umask is
        study = optuna.create_study(
            storage=optuna.storages.RDBStorage(
                f"sqlite:///{database}", engine_kwargs={"connect_args": {"timeout": 60, "factory": _Durable}}
            ),
            study_name="study",
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=2),
            load_if_exists=True,
        )
        if "identity" not in study.user_attrs:
            study.set_user_attr("identity", identity)
        if found := differences(study.user_attrs["identity"], identity, identity):
            raise InputError(
                f"{tuning.folder}: the study has other settings or data: {shorten(found)}; use the options it was "
                "started with, or choose another --out"
            )
        if not study.get_trials(deepcopy=False):
            study.enqueue_trial(defaults, user_attrs={"default": True})
    return study


@contextmanager
def _claimed(
    study: optuna.Study, tuning: Tuning, distributions: dict[str, BaseDistribution]
) -> Iterator[optuna.Trial | None]:
    """The next trial, locked while the block runs; None when all have ended (waits for other processes)."""
    while True:
        with FileLock(tuning.folder / STUDY_LOCK):
            _retry_interrupted(study, tuning.folder)
            counted = [trial for trial in _counted(study) if trial.state != TrialState.WAITING]
            if len(counted) < tuning.trials:
                # A seed per trial: after an interruption the next trials are the same as without it.
                seed = tuning.settings.seed * 1_000_003 + len(counted)
                study.sampler = optuna.samplers.TPESampler(n_startup_trials=3, seed=seed % 2**32)
                trial = study.ask(distributions)
                lock = try_lock(_lock_file(tuning.folder, trial.number))
                assert lock is not None  # the study is locked, and the trial is new
                break
            if not any(trial.state == TrialState.RUNNING for trial in counted):
                yield None
                return
        time.sleep(WAIT)
    try:
        yield trial
    finally:
        unlock(lock)


def _lock_file(folder: Path, trial: int) -> Path:
    """Locked while a process runs the trial."""
    return folder / f".trial-{trial}.lock"


def _retry_interrupted(study: optuna.Study, folder: Path) -> None:
    """Queue each trial again whose process has ended. The study must be locked."""
    trials = study.get_trials(deepcopy=False)
    for trial in trials:
        if trial.state != TrialState.RUNNING:
            continue
        lock = try_lock(_lock_file(folder, trial.number))
        if lock is None:
            continue
        if trial.number not in _retried(trials):  # otherwise it was interrupted between these two lines
            study.enqueue_trial(trial.params, user_attrs={**trial.user_attrs, "retries": trial.number})
        study.tell(trial.number, state=TrialState.FAIL)  # vocabulary: allow (optuna's name)
        unlock(lock)


def _retried(trials: Sequence[FrozenTrial]) -> set[int]:
    return {trial.user_attrs["retries"] for trial in trials if "retries" in trial.user_attrs}


def _counted(study: optuna.Study) -> list[FrozenTrial]:
    """All trials except the interrupted ones, which were repeated."""
    trials = study.get_trials(deepcopy=False)
    retried = _retried(trials)
    return [trial for trial in trials if trial.number not in retried]


def _ended(study: optuna.Study, tuning: Tuning) -> list[Trial]:
    """The finished trials, best first, then the pruned and the failed ones."""
    names = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    defaults = check_defaults(tuning.search, tuning.settings)
    trials = [
        Trial(
            number=trial.number,
            state=names[trial.state],
            value=trial.value if trial.state == TrialState.COMPLETE else None,
            seconds=trial.duration.total_seconds() if trial.duration else 0.0,
            values=defaults if "default" in trial.user_attrs else _rounded(trial.params),
            reason=trial.user_attrs.get("reason", ""),
            is_default="default" in trial.user_attrs,
        )
        for trial in _counted(study)
        if trial.state in names
    ]
    order = list(names.values())
    return sorted(trials, key=lambda trial: (order.index(trial.state), -(trial.value or 0.0), trial.number))
