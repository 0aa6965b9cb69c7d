"""Tuning: the trials of a search, each trained and evaluated on validation only, kept in STUDY/study.db.

The first trial has the defaults, so that the result is never worse; TPE (Bergstra et al. 2011) proposes the others
from the values of the finished ones. A trial trains in full, as `msm4sr run` does, unless it is behind the median of
the others in the second half of its epochs: then it is pruned. The value of a trial is `ndcg@10` on validation,
whatever the other settings; test is not ranked. No weights are kept, only a row in the database.

The budget is in seconds, so that models are compared after the same time of tuning: no further trial starts once all
have run for so long in total. A trial that has begun is completed.

One process, which holds the lock of the study, decides the trials and runs them by an executor. A trial that is marked
as running when it starts was interrupted: it is repeated with the same values, and neither it nor its time is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from msm4sr.data.dataset import Dataset
from msm4sr.digests import array_digest
from msm4sr.dotted import differences, flatten, nest, shorten
from msm4sr.errors import InputError, reason_of
from msm4sr.evaluation.evaluate import evaluate
from msm4sr.executors import Executor, LocalExecutor, Lost
from msm4sr.experiments.search import Choices, FloatRange, IntRange, Search, check_defaults
from msm4sr.experiments.settings import RunSettings, resolve_settings, with_values
from msm4sr.experiments.stages import build_model
from msm4sr.experiments.study_storage import (
    DATABASE,
    JOURNAL_FILE,
    SQLITE,
    STUDY_LOCK,
    locked_study,
    open_storage,
    study_file,
    study_name,
    usable,
)
from msm4sr.features.store import Features
from msm4sr.files import full_disk, make_folder
from msm4sr.progress import NoProgress, Progress
from msm4sr.threads import count_of
from msm4sr.training.callbacks import Callback, EpochRecord, TrainingPlan, TrainingProgress
from msm4sr.training.identity import CODE_VERSION
from msm4sr.training.stages import STAGES, task_for
from msm4sr.training.trainer import Trainer, TrainerOptions

OBJECTIVE = "ndcg@10"
BEFORE_A_STUDY = {"features", STUDY_LOCK, DATABASE, f"{DATABASE}-journal", JOURNAL_FILE}


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
    dataset: Dataset
    features: Mapping[str, Features]  # of the items, the same for all trials
    seconds: float  # of all trials together, after which no further one starts
    trials: int | None = None  # the most to run; None: no limit
    storage: str = SQLITE


def check_folder(folder: Path, storage: str = SQLITE) -> None:
    """InputError for a folder that is not empty and has no study."""
    file = study_file(storage, folder)
    if file is not None and folder.is_dir() and not (file.exists() and file.stat().st_size):
        foreign = sorted({entry.name for entry in folder.iterdir()} - BEFORE_A_STUDY)
        if foreign:
            raise InputError(
                f"{folder}: the folder is not a study: it contains {foreign[0]!r}, and {file.name} is missing or "
                f"empty; restore {file.name}, or choose another --out"
            )


def tune(
    tuning: Tuning,
    report: Callable[[Trial], object] = lambda trial: None,
    executor: Executor = LocalExecutor(),
    progress: Progress = NoProgress(),
) -> list[Trial]:
    """Run the remaining trials, and return all, best first. `report` is called with each trial that has ended.

    With an executor that runs several trials at once, the search knows fewer values when it chooses the next ones.

    Raises:
        InputError: another process runs the study; it has another search, other settings or other data; its storage is
            damaged, or cannot be written.
        ChildProcessError: processes of trials died again and again; these trials are run again the next time.
    """
    make_folder(tuning.folder)
    advice = "wait until it ends. To run trials side by side, use --jobs or --ray"
    refusal = f"{tuning.folder}: another process runs this study; {advice}"
    storage = tuning.storage, tuning.folder
    with locked_study(*storage, refusal), usable(*storage):
        study = _open(tuning)
        _retry_interrupted(study)
        lost: list[Lost] = []
        for task, result in executor.run(TrialRunner(tuning), _next_trials(study, tuning), progress):
            if isinstance(result, Lost):
                lost.append(result)
            else:
                _end(study, task, result)
                report(next(ended for ended in _ended(study, tuning) if ended.number == task.number))
        if lost:
            number = count_of(len(lost), "trial")
            raise ChildProcessError(f"{number} lost ({lost[0].reason}); rerun the command to run them again")
        return _ended(study, tuning)


@dataclass(frozen=True)
class TrialTask:
    """A trial that is to be run."""

    number: int
    id: int  # in the storage
    values: Mapping[str, Any]
    is_default: bool

    def __str__(self) -> str:
        return f"trial {self.number}"


@dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    state: TrialState
    value: float | None = None
    reason: str = ""


def _next_trials(study: optuna.Study, tuning: Tuning) -> Iterator[TrialTask]:
    """The trials that are still to be run, each proposed when it can start.

    Queued ones, which are the defaults and interrupted trials, are run whatever the budget.
    """
    distributions = {key: _distribution(parameter) for key, parameter in tuning.search.parameters.items()}
    while True:
        counted = _counted(study)
        begun = sum(trial.state != TrialState.WAITING for trial in counted)
        is_spent = sum(map(_seconds, counted)) >= tuning.seconds
        is_limit = tuning.trials is not None and begun >= tuning.trials
        if begun == len(counted) and (is_spent or is_limit):
            return
        # A seed per trial: after an interruption the next trials are the same as without it.
        seed = tuning.settings.seed * 1_000_003 + begun
        study.sampler = optuna.samplers.TPESampler(n_startup_trials=3, seed=seed % 2**32)
        trial = study.ask(distributions)
        yield TrialTask(trial.number, trial._trial_id, trial.params, "default" in trial.user_attrs)


def _end(study: optuna.Study, task: TrialTask, result: Outcome) -> None:
    """Write the result of a trial into the study."""
    if result.reason:
        study._storage.set_trial_user_attr(task.id, "reason", result.reason)
    study.tell(task.number, result.value, result.state)  # vocabulary: allow (optuna's name)


@dataclass(frozen=True)
class TrialRunner:
    """The task of a worker: train with the values of a trial, and evaluate on validation."""

    tuning: Tuning

    def __call__(self, task: TrialTask, progress: Progress) -> Outcome:
        trial = optuna.Trial(load_study(self.tuning), task.id)
        try:
            return Outcome(TrialState.COMPLETE, _value(trial, task, self.tuning, progress))
        except optuna.TrialPruned:
            return Outcome(TrialState.PRUNED)
        except FloatingPointError as error:
            return Outcome(TrialState.FAIL, reason=str(error))
        except Exception as error:  # such as too little memory: a trial left running would end every rerun too
            if (full := full_disk(error)) is not None:
                raise full from error
            return Outcome(TrialState.FAIL, reason=reason_of(error))


def trial_settings(tuning: Tuning, values: Mapping[str, Any]) -> RunSettings:
    """The settings of a trial with these values."""
    return with_values(tuning.settings, values, "trial")


def best_of(trials: Sequence[Trial], folder: Path) -> Trial:
    """The first of sorted trials. InputError, with the first reason, when none has finished."""
    if not trials or trials[0].value is None:
        reason = next((f"; trial {trial.number}: {trial.reason}" for trial in trials if trial.reason), "")
        raise InputError(f"{folder}: no trial has finished{reason}")
    return trials[0]


def counts(trials: Sequence[Trial]) -> str:
    """How many trials ended in each way, such as "3 finished, 1 pruned, 0 failed"."""
    states = ("finished", "pruned", "failed")
    return ", ".join(f"{sum(trial.state == state for trial in trials)} {state}" for state in states)


def best_text(tuning: Tuning, trials: Sequence[Trial], preset: str, command: str) -> str:
    """A settings file with the values of the best trial; its comments say how they were found.

    The other changes of the trials to the preset are included, such as the split; seed and device are not.
    """
    best, model = best_of(trials, tuning.folder), tuning.settings.model.name
    plain = flatten(resolve_settings(preset, model, data=tuning.dataset.folder).model_dump(mode="json"))
    changed = {
        key: value
        for key, value in flatten(tuning.settings.model_dump(mode="json")).items()
        if key != "seed" and not key.startswith("device.") and value != plain[key]
    }
    default = next((trial for trial in trials if trial.is_default), None)
    untuned = f"{default.value:.4f}" if default is not None and default.value is not None else "none, it failed"
    spent = f"{sum(trial.seconds for trial in trials):.0f} seconds"
    data = tuning.dataset.folder.resolve().name
    head = (
        f"{model} on {data}, tuned over preset {preset}.",
        f"Validation {OBJECTIVE}: {best.value:.4f} (trial {best.number}); with the defaults: {untuned}.",
        f"Search {tuning.search.name}, seed {tuning.settings.seed}; trials: {counts(trials)}, in {spent}.",
        f"Made by: {command}",
        f"Use it by: msm4sr run DATA/{data} --model {model} --preset {preset} --settings FILE --out RUN",
    )
    body = yaml.safe_dump(nest({"model.name": model, **changed, **best.values}), sort_keys=False)
    return "".join(f"# {line}\n" for line in head) + body


def _value(trial: optuna.Trial, task: TrialTask, tuning: Tuning, progress: Progress) -> float:
    """Train with the values of the trial, and validate the weights of the best epoch."""
    settings = trial_settings(tuning, {} if task.is_default else _rounded(task.values, tuning.search))
    model = build_model(settings, tuning.dataset, tuning.features)
    for stage in STAGES:
        training = task_for(model, stage, settings)
        if training is not None:
            options = TrainerOptions(settings.seed, settings.device, settings.evaluation)
            callbacks = [
                Pruning(trial, may_prune=not task.is_default),
                TrainingProgress(progress, str(task), lines=False),
            ]
            Trainer(training, getattr(settings, stage), options, callbacks).fit(tuning.dataset)
    model.to(settings.device.torch_device())
    return evaluate(settings.scorer_of(model), tuning.dataset, "validation", settings.evaluation)[OBJECTIVE]


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


def _rounded(values: Mapping[str, Any], search: Search) -> dict[str, Any]:
    """Values of ranges with three digits, so that a readable settings file has exactly the values of the trial."""
    drawn = {key for key, parameter in search.parameters.items() if isinstance(parameter, FloatRange)}
    return {key: float(f"{value:.3g}") if key in drawn else value for key, value in values.items()}


def load_study(tuning: Tuning) -> optuna.Study:
    """The study of the folder, made if it is missing."""
    return optuna.create_study(
        storage=open_storage(tuning.storage, tuning.folder),
        study_name=study_name(tuning.storage, tuning.folder),
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=2),
        load_if_exists=True,
    )


def _open(tuning: Tuning) -> optuna.Study:
    """The study, with the defaults as its first trial. InputError for one of other settings or data."""
    defaults = check_defaults(tuning.search, tuning.settings)
    features = {name: array_digest(rows.values, rows.offsets) for name, rows in tuning.features.items()}
    identity = {
        "code": CODE_VERSION,
        **flatten(
            {"data": {**tuning.dataset.identity, "content": tuning.dataset.content_digest}, "features": features}
        ),
        **flatten({"settings": tuning.settings.model_dump(mode="json", exclude={"warm_start"})}),
        "search": {key: part.model_dump(mode="json") for key, part in tuning.search.parameters.items()},
    }
    study = load_study(tuning)
    if "identity" not in study.user_attrs:
        study.set_user_attr("identity", identity)
    if found := differences(study.user_attrs["identity"], identity, identity):
        raise InputError(
            f"{tuning.folder}: the study has other settings or data: {shorten(found)}; use the options it was started "
            "with, or choose another --out"
        )
    if not study.get_trials(deepcopy=False):
        study.enqueue_trial(defaults, user_attrs={"default": True})
    return study


def _retry_interrupted(study: optuna.Study) -> None:
    """Queue each trial again that an earlier process left running."""
    trials = study.get_trials(deepcopy=False)
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            if trial.number not in _retried(trials):  # otherwise it was interrupted between these two lines
                study.enqueue_trial(trial.params, user_attrs={**trial.user_attrs, "retries": trial.number})
            study.tell(trial.number, state=TrialState.FAIL)  # vocabulary: allow (optuna's name)


def _retried(trials: Sequence[FrozenTrial]) -> set[int]:
    return {trial.user_attrs["retries"] for trial in trials if "retries" in trial.user_attrs}


def _counted(study: optuna.Study) -> list[FrozenTrial]:
    """All trials except the interrupted ones, which were repeated."""
    trials = study.get_trials(deepcopy=False)
    retried = _retried(trials)
    return [trial for trial in trials if trial.number not in retried]


def _seconds(trial: FrozenTrial) -> float:
    """From the start of a trial to its end, or until now."""
    if trial.datetime_start is None:
        return 0.0
    return ((trial.datetime_complete or datetime.now()) - trial.datetime_start).total_seconds()


def _ended(study: optuna.Study, tuning: Tuning) -> list[Trial]:
    """The finished trials, best first (of equal ones the defaults), then the pruned and the failed ones."""
    names = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    defaults = check_defaults(tuning.search, tuning.settings)
    trials = [
        Trial(
            number=trial.number,
            state=names[trial.state],
            value=trial.value if trial.state == TrialState.COMPLETE else None,
            seconds=_seconds(trial),
            values=defaults if "default" in trial.user_attrs else _rounded(trial.params, tuning.search),
            reason=trial.user_attrs.get("reason", ""),
            is_default="default" in trial.user_attrs,
        )
        for trial in _counted(study)
        if trial.state in names
    ]
    order = list(names.values())
    return sorted(trials, key=lambda t: (order.index(t.state), -(t.value or 0.0), not t.is_default, t.number))
