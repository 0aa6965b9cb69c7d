"""Tuning: trials of which the first has the defaults, judged by validation alone, counted once each."""

from __future__ import annotations

import re
import resource
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from builders import cycle_dataset, wrong_modes

from msm4sr.data.dataset import Dataset
from msm4sr.errors import InputError
from msm4sr.evaluation.evaluate import evaluate
from msm4sr.executors import LocalExecutor
from msm4sr.experiments import tune as module
from msm4sr.experiments.search import Choices, FloatRange, IntRange, Search
from msm4sr.experiments.settings import resolve_settings, with_values
from msm4sr.experiments.stages import build_model
from msm4sr.experiments.study_storage import SQLITE, open_storage
from msm4sr.experiments.tune import Trial, Tuning, best_of, best_text, check_folder, tune
from msm4sr.features.store import Features
from msm4sr.progress import NoProgress, Progress
from msm4sr.ragged import Ragged
from msm4sr.training.callbacks import EpochRecord
from msm4sr.training.stages import pretrain
from msm4sr.training.trainer import Trainer, TrainerOptions

TINY = ("model.dim=8", "model.inner_dim=8", "model.layers=1", "finetune.epochs=4", "finetune.max_steps=0")
SASREC = {
    "finetune.learning_rate": FloatRange(kind="float", low=1e-4, high=1e-1, log=True),
    "model.dropout": FloatRange(kind="float", low=0.0, high=0.5),
    "model.layers": IntRange(kind="int", low=1, high=2),
}
KNN = {
    "model.neighbours": IntRange(kind="int", low=1, high=200),
    "model.shrinkage": FloatRange(kind="float", low=0.0, high=9.0),
}


def tuning(folder: Path, parameters: dict[str, Any], trials: int | None = 4, dataset: Dataset | None = None) -> Tuning:
    model, changes = ("itemknn", ()) if parameters is KNN else ("sasrec", (*TINY, "finetune.validate_every=1"))
    return Tuning(
        folder / "study",
        Search("test", parameters),
        resolve_settings("best", model, changes),
        dataset or cycle_dataset(30, 12),
        {},
        inf,
        trials,
    )


def outcomes(trials: Sequence[Trial]) -> list[tuple[Any, ...]]:
    """What does not differ between two studies with the same seed."""
    return [(trial.state, trial.value, dict(trial.values), trial.is_default) for trial in trials]


def test_the_first_trial_has_the_defaults_and_the_best_is_not_below_it(tmp_path: Path) -> None:
    seen: list[Trial] = []
    trials = tune(tuning(tmp_path, KNN), seen.append)
    assert [trial.number for trial in seen] == [0, 1, 2, 3]
    assert seen[0].values == {"model.neighbours": 100, "model.shrinkage": 0.0}
    assert [trial.is_default for trial in seen] == [True, False, False, False]
    assert len({str(trial.values) for trial in seen}) == 4
    assert sorted(trials, key=lambda trial: trial.number) == seen
    values = [trial.value or 0.0 for trial in trials]
    assert values == sorted(values, reverse=True)
    assert best_of(trials, tmp_path).value == max(values) >= (seen[0].value or 0.0) > 0


def test_without_fine_tuning_a_trial_is_measured_by_the_pre_trained_scorer(tmp_path: Path) -> None:
    dataset, rows = cycle_dataset(30, 12), np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    features = {"text": Features(rows, np.arange(13), dataset.item_ids)}
    changes = ("pretrain.epochs=2", "pretrain.learning_rate=0.01", "finetune.epochs=0", "model.whiten=0")
    settings = resolve_settings("best", "msm4sr", ["model.dim=8", "model.inner_dim=8", *changes])
    search = Search("test", {"pretrain.learning_rate": SASREC["finetune.learning_rate"]})
    (trial,) = tune(Tuning(tmp_path, search, settings, dataset, features, inf, 1))
    model = build_model(settings, dataset, features)
    pretrain(model, dataset, settings.pretrain, TrainerOptions(settings.seed, settings.device, settings.evaluation))
    values = [evaluate(one, dataset, "validation")["ndcg@10"] for one in (model.pretrained_scorer(), model)]
    assert trial.value == values[0] != values[1]


def test_the_study_follows_the_umask_and_its_commits_survive_a_power_cut(tmp_path: Path, umask: None) -> None:
    tune(tuning(tmp_path, KNN, 1))
    assert not wrong_modes(tmp_path)
    storage = open_storage(SQLITE, tmp_path / "study")
    assert isinstance(storage, optuna.storages.RDBStorage)
    with storage.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 3  # EXTRA


def test_a_seed_gives_the_same_trials_and_another_seed_others(tmp_path: Path) -> None:
    first, second = (tuning(tmp_path / name, KNN) for name in ("a", "b"))
    assert outcomes(tune(first)) == outcomes(tune(second))
    other = replace(first, folder=tmp_path / "c", settings=first.settings.model_copy(update={"seed": 1}))
    assert outcomes(tune(other)) != outcomes(tune(second))


def test_an_interrupted_trial_is_repeated_and_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = outcomes(tune(tuning(tmp_path / "a", SASREC, 4)))
    interrupted = tuning(tmp_path / "b", SASREC, 4)
    began: list[int] = []

    class Interrupting(Trainer):
        def fit(self, dataset: Dataset) -> list[EpochRecord]:
            began.append(len(began))
            if len(began) in (1, 4):  # the defaults, and one in the middle
                raise KeyboardInterrupt
            return super().fit(dataset)

    monkeypatch.setattr(module, "Trainer", Interrupting)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            tune(interrupted)
    assert outcomes(tune(interrupted)) == undisturbed
    assert len(began) == 4 + 2
    assert outcomes(tune(interrupted)) == undisturbed  # again: nothing is left to do
    assert len(began) == 4 + 2


def test_more_trials_of_the_same_study_begin_where_it_ended(tmp_path: Path) -> None:
    few = tuning(tmp_path / "a", KNN, 2)
    assert len(tune(few)) == 2
    seen: list[Trial] = []
    assert outcomes(tune(replace(few, trials=4), seen.append)) == outcomes(tune(tuning(tmp_path / "b", KNN, 4)))
    assert [trial.number for trial in seen] == [2, 3]


# -- the budget -------------------------------------------------------------------------------------------------------


def test_a_budget_of_no_time_is_enough_for_the_defaults(tmp_path: Path) -> None:
    (trial,) = tune(replace(tuning(tmp_path, KNN, None), seconds=0))
    assert trial.is_default
    assert trial.value
    assert trial.seconds > 0


def test_no_trial_starts_once_the_seconds_of_the_budget_are_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_seconds", lambda trial: 10.0)
    endless = tuning(tmp_path, KNN, None)
    for seconds, trials in ((20, 2), (21, 3), (15, 3), (40, 4)):
        assert len(tune(replace(endless, seconds=seconds))) == trials
    assert len(tune(replace(endless, seconds=100, trials=5))) == 5
    assert len(tune(replace(endless, seconds=100, trials=1))) == 5


@dataclass
class Holding:
    """Begins as many trials as it gets, `most` at once, before the first one ends."""

    most: int
    begun: list[int] = field(default_factory=list)

    def run(self, function: Callable[..., Any], tasks: Iterable[Any], progress: Progress) -> Iterator[tuple[Any, Any]]:
        held = list(islice(tasks, self.most))
        self.begun.append(len(held))
        for task in held:
            yield task, function(task, progress)

    def stream(self, *arguments: Any) -> Iterator[tuple[Any, Any]]:
        raise NotImplementedError


def test_the_time_of_running_trials_counts(tmp_path: Path) -> None:
    executor = Holding(3)
    unlimited = tuning(tmp_path, KNN, None)
    assert len(tune(replace(unlimited, seconds=1e-9), executor=executor)) == 1
    assert len(tune(unlimited, executor=executor)) == 4
    assert executor.begun == [1, 3]


class Interrupting(LocalExecutor):
    """Is interrupted in its first trial."""

    def run(self, function: Callable[..., Any], tasks: Iterable[Any], progress: Progress = NoProgress()) -> Any:
        next(iter(tasks))
        raise KeyboardInterrupt


def test_an_interrupted_trial_is_completed_whatever_the_budget_and_its_time_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_seconds", lambda trial: 1000.0 if trial.number == 1 else 10.0)
    task = tuning(tmp_path, KNN, None)

    def numbers(seconds: float) -> list[int]:
        return sorted(trial.number for trial in tune(replace(task, seconds=seconds)))

    assert numbers(10) == [0]
    with pytest.raises(KeyboardInterrupt):
        tune(replace(task, seconds=20), executor=Interrupting())
    assert numbers(0) == [0, 2]
    assert numbers(30) == [0, 2, 3]


# -- what is refused --------------------------------------------------------------------------------------------------


def test_a_study_of_something_else_is_refused(tmp_path: Path) -> None:
    first = tuning(tmp_path, KNN, 1)
    tune(first)
    fewer = replace(first, search=Search("test", {"model.neighbours": KNN["model.neighbours"]}))
    titled = cycle_dataset(30, 12)
    titled = replace(titled, items=titled.items.with_columns(title=titled.items["item_id"].reverse()))
    datasets = [tuning(tmp_path, KNN, 1, dataset) for dataset in (cycle_dataset(31, 12), titled)]
    for other in (tuning(tmp_path, SASREC, 1), *datasets, fewer):
        with pytest.raises(InputError, match=r"study: the study has other settings or data: .* there and .* now"):
            tune(other)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InputError, match=r"is not a study: it contains 'thesis\.tex'"):
        check_folder(tmp_path)


def test_a_study_whose_trials_are_lost_does_not_start_again(tmp_path: Path) -> None:
    (tmp_path / "study.db").touch()
    check_folder(tmp_path)  # as a process that was killed at its start leaves it
    (tmp_path / "best.yaml").touch()
    with pytest.raises(InputError, match=r"contains 'best\.yaml', and study\.db is missing or empty"):
        check_folder(tmp_path)


@pytest.mark.parametrize("damage", [lambda content: content[:5000], lambda content: b"x" * len(content)])
def test_a_damaged_database_is_an_error_that_names_it(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    tune(tuning(tmp_path, KNN, 1))
    database = tmp_path / "study" / "study.db"
    database.write_bytes(damaged := damage(database.read_bytes()))
    with pytest.raises(InputError, match=r"study\.db: cannot be used \(.*choose another --out"):
        tune(tuning(tmp_path, KNN, 2))
    assert database.read_bytes() == damaged


def test_a_disk_that_is_full_from_the_start_leaves_no_database(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limit[1]))
    try:
        with pytest.raises(InputError, match=r"study\.db: cannot be used \(.*with space on its disk"):
            tune(tuning(tmp_path, KNN, 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [file.name for file in (tmp_path / "study").iterdir()] == [".study.lock"]
    tune(tuning(tmp_path, KNN, 1))


# -- test is not used ------------------------------------------------------------------------------------------------


def with_other_test_items(dataset: Dataset) -> Dataset:
    values, offsets = dataset.histories.values.copy(), dataset.histories.offsets
    last = offsets[1:] - 1
    values[last] = (values[last] + 5) % dataset.n_items
    return replace(dataset, histories=Ragged(values, offsets))


@pytest.mark.parametrize("parameters", [KNN, SASREC], ids=["itemknn", "sasrec"])
def test_trials_are_the_same_whatever_the_test_items_are(tmp_path: Path, parameters: dict[str, Any]) -> None:
    dataset = cycle_dataset(30, 12)
    other = with_other_test_items(dataset)
    assert not np.array_equal(dataset.histories.values, other.histories.values)
    found, expected = (tune(tuning(tmp_path / name, parameters, 3, d)) for name, d in (("a", other), ("b", dataset)))
    assert outcomes(found) == outcomes(expected)


def test_the_test_targets_are_never_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(dataset: Dataset) -> None:
        raise AssertionError("a trial has used test items")

    monkeypatch.setattr("msm4sr.evaluation.users.test_targets", raises)
    task = tuning(tmp_path, SASREC, 2)
    model = build_model(task.settings, task.dataset, {})
    with pytest.raises(AssertionError, match="used test items"):  # else this would pass for nothing
        evaluate(model, task.dataset, "test")
    assert [trial.state for trial in tune(task)] == ["finished", "finished"]


# -- trials that fail or are pruned -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "good", "bad", "reason"),
    [
        ("model.heads", 2, 3, "dim must be a multiple of heads"),
        ("finetune.learning_rate", 3e-3, 1e30, "try a lower"),  # the loss, or a score, is soon not finite
        ("model.inner_dim", 8, 10**14, "RuntimeError: "),  # more memory than there is
    ],
)
def test_a_trial_that_fails_is_recorded_with_its_reason_and_the_others_run(
    tmp_path: Path, key: str, good: float, bad: float, reason: str
) -> None:
    trials = tune(tuning(tmp_path, {key: Choices(kind="categorical", choices=(good, bad))}, 5))
    assert len(trials) == 5
    failed = [trial for trial in trials if trial.state == "failed"]
    assert failed
    assert all(reason in trial.reason and trial.value is None for trial in failed)
    assert [trial.values[key] == bad for trial in trials] == [trial in failed for trial in trials]


def test_without_a_finished_trial_the_reason_is_reported(tmp_path: Path) -> None:
    failed = Trial(0, "failed", None, 1.0, {}, "the loss became nan", True)
    with pytest.raises(InputError, match=r"study: no trial has finished; trial 0: the loss became nan"):
        best_of([failed], tmp_path / "study")


def test_a_trial_that_falls_behind_is_pruned_in_its_second_half_and_counts(tmp_path: Path) -> None:
    rates = {"finetune.learning_rate": Choices(kind="categorical", choices=(3e-2, 1e-9))}
    task = tuning(tmp_path, rates, 8)
    quick = {"finetune.learning_rate": 3e-2, "finetune.batch_pairs": 16}
    task = replace(task, settings=with_values(task.settings, quick, "here"))
    trials = tune(task)
    assert len(trials) == 8
    assert (trials[0].state, trials[0].values["finetune.learning_rate"]) == ("finished", 3e-2)
    assert {t.values["finetune.learning_rate"] for t in trials if t.state == "pruned"} == {1e-9}
    study = optuna.load_study(study_name="study", storage=f"sqlite:///{task.folder}/study.db")
    ends = [max(trial.intermediate_values) for trial in study.trials if trial.state.name == "PRUNED"]
    assert all(2 < end <= 4 for end in ends)  # of 4 epochs


# -- what is left -----------------------------------------------------------------------------------------------------


def test_a_trial_leaves_a_row_in_the_database_and_no_weights(tmp_path: Path) -> None:
    task = tuning(tmp_path, SASREC, 3)
    tune(task)
    assert {file.name for file in task.folder.rglob("*")} <= {"study.db", ".study.lock"}


def test_the_best_settings_are_a_file_that_gives_the_trial_again(tmp_path: Path) -> None:
    task = tuning(tmp_path, SASREC, 3)
    task = replace(task, settings=with_values(task.settings, {"evaluation.exclude_seen": True}, "here"))
    trials = tune(task)
    text = best_text(task, trials, "best", "msm4sr tune ...")
    file = tmp_path / "best.yaml"
    file.write_text(text)
    head = [line for line in text.splitlines() if line.startswith("# ")]
    assert "sasrec on nowhere" in head[0]
    assert f"{trials[0].value:.4f} (trial {trials[0].number}); with the defaults: " in head[1]
    assert "Search test, seed 0; trials: " in head[2]
    assert head[2].endswith(f", in {sum(trial.seconds for trial in trials):.0f} seconds.")
    counts = [int(count) for count in re.findall(r"(\d+) (?:finished|pruned|failed)", head[2])]
    assert counts == [sum(trial.state == state for trial in trials) for state in ("finished", "pruned", "failed")]
    assert "msm4sr tune ..." in head[3]
    assert yaml.safe_load(text)["finetune"]["epochs"] == 4  # a change of all trials
    assert resolve_settings("best", "sasrec", file=file) == module.trial_settings(task, trials[0].values)
