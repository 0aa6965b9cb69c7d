"""Tuning: trials of which the first has the defaults, judged by validation alone, counted once each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from builders import cycle_dataset

from msm4sr.data.dataset import Dataset
from msm4sr.errors import InputError
from msm4sr.experiments import tune as module
from msm4sr.experiments.run import build_model
from msm4sr.experiments.search import Choices, FloatRange, IntRange, Search
from msm4sr.experiments.settings import resolve_settings
from msm4sr.experiments.tune import Trial, Tuning, best_of, best_text, check_folder, tune
from msm4sr.training.stage import train_stage

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


def tuning(folder: Path, parameters: dict[str, Any], trials: int = 4, dataset: Dataset | None = None) -> Tuning:
    model, changes = ("itemknn", ()) if parameters is KNN else ("sasrec", (*TINY, "finetune.validate_every=1"))
    return Tuning(
        folder / "study",
        Search("test", trials, {}, parameters),
        resolve_settings("best", model, changes),
        trials,
        dataset or cycle_dataset(30, 12),
        {},
    )


def told(trials: Sequence[Trial]) -> list[tuple[Any, ...]]:
    """What does not differ from one time to the next."""
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


def test_a_seed_gives_the_same_trials_and_another_seed_others(tmp_path: Path) -> None:
    first, second = (tuning(tmp_path / name, KNN) for name in ("a", "b"))
    assert told(tune(first)) == told(tune(second))
    other = replace(first, folder=tmp_path / "c", settings=first.settings.model_copy(update={"seed": 1}))
    assert told(tune(other)) != told(tune(second))


def test_an_interrupted_trial_is_made_again_and_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = told(tune(tuning(tmp_path / "a", SASREC, 4)))
    interrupted = tuning(tmp_path / "b", SASREC, 4)
    began: list[int] = []

    def interrupts(*arguments: Any, **options: Any) -> Any:
        began.append(len(began))
        if len(began) in (1, 4):  # the defaults, and one in the middle
            raise KeyboardInterrupt
        return train_stage(*arguments, **options)

    monkeypatch.setattr(module, "train_stage", interrupts)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            tune(interrupted)
    assert told(tune(interrupted)) == undisturbed
    assert len(began) == 4 + 2
    assert told(tune(interrupted)) == undisturbed  # once more: there is nothing left to do
    assert len(began) == 4 + 2


def test_more_trials_of_the_same_study_begin_where_it_ended(tmp_path: Path) -> None:
    few = tuning(tmp_path / "a", KNN, 2)
    assert len(tune(few)) == 2
    seen: list[Trial] = []
    assert told(tune(replace(few, trials=4), seen.append)) == told(tune(tuning(tmp_path / "b", KNN, 4)))
    assert [trial.number for trial in seen] == [2, 3]


def test_a_study_of_something_else_is_refused(tmp_path: Path) -> None:
    first = tuning(tmp_path, KNN, 1)
    tune(first)
    others = [
        tuning(tmp_path, SASREC, 1),
        tuning(tmp_path, KNN, 1, cycle_dataset(31, 12)),
        replace(first, search=Search("test", 1, {}, {"model.neighbours": KNN["model.neighbours"]})),
    ]
    for other in others[:2]:
        with pytest.raises(InputError, match=r"study: the study is of something else: .* there, .* now"):
            tune(other)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InputError, match=r"holds no study, but 'thesis\.tex'"):
        check_folder(tmp_path)


# -- test is not looked at ------------------------------------------------------------------------------------------------


def with_other_test_items(dataset: Dataset) -> Dataset:
    values = dataset.values.copy()
    last = dataset.offsets[1:] - 1
    values[last] = (values[last] + 5) % dataset.n_items
    return replace(dataset, values=values)


@pytest.mark.parametrize("parameters", [KNN, SASREC], ids=["itemknn", "sasrec"])
def test_trials_are_the_same_whatever_the_test_items_are(tmp_path: Path, parameters: dict[str, Any]) -> None:
    dataset = cycle_dataset(30, 12)
    other = with_other_test_items(dataset)
    assert not np.array_equal(dataset.values, other.values)
    found, expected = (tune(tuning(tmp_path / name, parameters, 3, d)) for name, d in (("a", other), ("b", dataset)))
    assert told(found) == told(expected)


def test_the_test_targets_are_never_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(dataset: Dataset) -> None:
        raise AssertionError("a trial has looked at test")

    monkeypatch.setattr("msm4sr.evaluation.evaluate.test_targets", raises)
    task = tuning(tmp_path, SASREC, 2)
    with pytest.raises(AssertionError, match="looked at test"):  # else this would pass for nothing
        from msm4sr.evaluation.evaluate import evaluate

        evaluate(build_model(task.settings, task.dataset, {}), task.dataset, "test")
    assert [trial.state for trial in tune(task)] == ["finished", "finished"]


# -- trials that fail or are pruned -----------------------------------------------------------------------------------------


def test_a_trial_that_fails_is_recorded_with_its_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    parameters = {
        "model.heads": Choices(kind="categorical", choices=(2, 3)),  # 3 heads do not divide the width
        "finetune.learning_rate": Choices(kind="categorical", choices=(3e-3, 1e30)),  # the loss is soon no number
    }
    trials = tune(tuning(tmp_path, parameters, 8))
    assert len(trials) == 8
    reasons = {trial.reason for trial in trials if trial.state == "failed"}
    assert any("dim must be a multiple of heads" in reason for reason in reasons)
    assert any("try a lower" in reason for reason in reasons)
    assert {
        trial.state for trial in trials if dict(trial.values) == {"model.heads": 2, "finetune.learning_rate": 3e-3}
    } <= {"finished", "pruned"}
    assert trials[0].state == "finished"
    assert all(trial.reason and trial.value is None for trial in trials if trial.state == "failed")


def test_without_a_finished_trial_the_reason_is_told(tmp_path: Path) -> None:
    failed = Trial(0, "failed", None, 1.0, {}, "the loss became nan", True)
    with pytest.raises(InputError, match=r"study: no trial has finished; trial 0: the loss became nan"):
        best_of([failed], tmp_path / "study")


def test_a_trial_that_falls_behind_is_pruned_in_its_second_half_and_counts(tmp_path: Path) -> None:
    slow = {"finetune.learning_rate": Choices(kind="categorical", choices=(3e-3, 1e-9))}
    task = tuning(tmp_path, slow, 12)
    task = replace(
        task,
        settings=task.settings.model_copy(
            update={
                "finetune": task.settings.finetune.model_copy(
                    update={"learning_rate": 3e-2, "batch_pairs": 16, "patience": 9}
                )
            }
        ),
        search=Search("test", 12, {}, {"finetune.learning_rate": Choices(kind="categorical", choices=(3e-2, 1e-9))}),
    )
    trials = tune(task)
    assert len(trials) == 12
    pruned = [trial for trial in trials if trial.state == "pruned"]
    assert pruned
    assert all(trial.values["finetune.learning_rate"] == 1e-9 for trial in pruned)
    assert trials[0].state == "finished"
    assert trials[0].values["finetune.learning_rate"] == 3e-2


# -- what is left -----------------------------------------------------------------------------------------------------------


def test_a_trial_leaves_a_line_in_the_database_and_no_weights(tmp_path: Path) -> None:
    task = tuning(tmp_path, SASREC, 3)
    tune(task)
    assert {file.name for file in task.folder.rglob("*")} <= {"study.db", ".study.lock"}


def test_the_best_settings_are_a_file_that_gives_the_trial_again(tmp_path: Path) -> None:
    task = tuning(tmp_path, SASREC, 3)
    task = replace(task, search=replace(task.search, budget={"finetune.epochs": 4}))
    trials = tune(task)
    text = best_text(task, trials, "best", "msm4sr tune ...")
    file = tmp_path / "best.yaml"
    file.write_text(text)
    head = [line for line in text.splitlines() if line.startswith("# ")]
    assert "sasrec on nowhere" in head[0]
    assert f"{trials[0].value:.4f} (trial {trials[0].number}); with the defaults: " in head[1]
    assert "Search test, seed 0; trials: " in head[2]
    assert "3 finished, 0 pruned, 0 failed" in head[2]
    assert "msm4sr tune ..." in head[3]
    assert "epochs" not in yaml.safe_load(text)["finetune"]  # of the budget, not of the result
    settings = resolve_settings("best", "sasrec", ["finetune.epochs=4"], file=file)
    expected = module.trial_settings(task, trials[0].values)
    assert settings == expected
