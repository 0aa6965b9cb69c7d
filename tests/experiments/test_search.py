"""Search files: the shipped ones fit their models and share their budgets, and what is wrong in one is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from msm4sr.errors import InputError
from msm4sr.experiments.search import SHIPPED, Choices, SearchFile, check_defaults, find_search, read_search
from msm4sr.experiments.settings import RunSettings, resolve_settings, with_values
from msm4sr.models.graph_model import GraphModel
from msm4sr.models.registry import MODELS
from msm4sr.training.tasks import TASKS

NAMES = [name for name in MODELS if name != "popularity"]  # which has nothing to set


def test_every_model_has_a_search_file_and_there_are_no_others() -> None:
    assert {file.stem for file in SHIPPED.glob("*.yaml")} == {*NAMES, "budget", "graph_budget"}


def test_all_models_have_the_same_budget_apart_from_the_steps_of_graph_models() -> None:
    graph_models = {name for name in NAMES if issubclass(MODELS[name], GraphModel)}
    assert graph_models == {"lightgcn", "grcn", "dualgnn"}
    for name in NAMES:
        said = SearchFile.model_validate(yaml.safe_load(find_search(name).read_text()))
        assert said.budget == ("graph_budget.yaml" if name in graph_models else "budget.yaml")
    ours, theirs = read_search(find_search("sasrec"), "sasrec"), read_search(find_search("lightgcn"), "lightgcn")
    assert ours.trials == theirs.trials
    assert set(ours.budget) == set(theirs.budget)
    differing = {key for key, value in ours.budget.items() if theirs.budget[key] != value}
    assert differing == {"finetune.epochs", "finetune.max_steps", "finetune.validate_every"}
    assert ours.budget["finetune.select"] == "ndcg@10"


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_search_has_settings_of_its_model_around_their_defaults(name: str) -> None:
    search = read_search(find_search(name), name)
    settings = with_values(resolve_settings("best", name), search.budget, "budget")
    defaults = check_defaults(search, settings)
    assert set(defaults) == set(search.parameters)
    for key, parameter in search.parameters.items():
        ends = parameter.choices if isinstance(parameter, Choices) else (parameter.low, parameter.high)
        for value in ends:
            assert isinstance(with_values(settings, {key: value}, "here"), RunSettings)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_search_has_the_learning_rate_and_only_stages_that_the_model_has(name: str) -> None:
    parameters = read_search(find_search(name), name).parameters
    pretrained = any(issubclass(MODELS[name], kind) for kind in TASKS["pretrain"])
    assert pretrained or not any(key.startswith("pretrain.") for key in parameters)
    if name == "itemknn":  # is not trained
        assert not any(key.startswith("finetune.") for key in parameters)
    else:
        assert parameters["finetune.learning_rate"].holds(1e-3)


def write(folder: Path, parameters: str, budget: str = "trials: 3", model: str = "sasrec") -> Path:
    (folder / "budget.yaml").write_text(budget)
    (folder / "search.yaml").write_text(f"model: {model}\nbudget: budget.yaml\nparameters: {parameters}\n")
    return folder / "search.yaml"


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (
            "{model.droput: {kind: float, low: 0, high: 1}}",
            "no setting 'model.droput' of sasrec; did you mean 'model.dr",
        ),
        (
            "{model.prototypes: {kind: int, low: 1, high: 2}}",
            r"no setting 'model.prototypes' of sasrec \(sine has it\)",
        ),
        ("{features.visual.kind: {kind: categorical, choices: [pooled]}}", "features.visual.kind cannot be searched"),
        ("{seed: {kind: int, low: 0, high: 9}}", "seed cannot be searched"),
        ("{model.dropout: {kind: float, low: 0.5, high: 0.1}}", "parameters.model.dropout: low must be under high"),
        ("{model.dropout: {kind: float, low: 0, high: 1, log: true}}", "model.dropout: low must be over 0"),
        ("{model.layers: {kind: int, low: 1.5, high: 3}}", "parameters.model.layers.low: .*integer"),
        ("{model.layers: {kind: number}}", "parameters.model.layers: .*'float', 'int'"),
        ("{model.layers: {kind: categorical, choices: []}}", "parameters.model.layers.choices: "),
        ("{model.layers: {kind: int, low: 1, hihg: 3}}", "parameters.model.layers.h"),
        ("{}", "parameters: "),
        ("3\nparameter: {}", r"parameters?: "),
    ],
)
def test_what_is_wrong_in_a_search_file_is_told_with_its_name_and_key(
    tmp_path: Path, parameters: str, said: str
) -> None:
    file = write(tmp_path, parameters)
    with pytest.raises(InputError, match=rf"^{re.escape(str(file))}: .*{said}"):
        read_search(file, "sasrec")


def test_what_the_budget_sets_cannot_be_searched(tmp_path: Path) -> None:
    epochs = "{finetune.epochs: {kind: int, low: 1, high: 9}}"
    with pytest.raises(InputError, match=r"finetune\.epochs is part of the budget"):
        read_search(write(tmp_path, epochs, "{trials: 3, settings: {finetune: {epochs: 5}}}"), "sasrec")


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ("trials: 0", r"budget\.yaml: trials: "),
        ("{trials: 3, settings: {finetune: {epoch: 5}}}", r"budget\.yaml: there is no setting 'finetune.epoch'"),
        ("{trials: 3, time: 5}", r"budget\.yaml: time: .*there are trials, settings"),
    ],
)
def test_what_is_wrong_in_a_budget_is_told(tmp_path: Path, budget: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_search(write(tmp_path, "{model.layers: {kind: int, low: 1, high: 3}}", budget), "sasrec")


def test_a_search_for_another_model_is_refused() -> None:
    with pytest.raises(InputError, match=r"difsr\.yaml: a search for difsr, and --model is sasrec"):
        read_search(find_search("difsr"), "sasrec")


def test_a_search_is_found_by_name_or_file_and_else_the_names_are_told(tmp_path: Path) -> None:
    file = write(tmp_path, "{}")
    assert find_search(str(file)) == file
    assert find_search("sine").name == "sine.yaml"
    with pytest.raises(InputError, match=r"--search sinus: there is no such file; .*sasrecm, sine"):
        find_search("sinus")


def test_a_default_that_the_search_would_never_come_upon_is_told(tmp_path: Path) -> None:
    search = read_search(write(tmp_path, "{model.dropout: {kind: float, low: 0.4, high: 0.9}}"), "sasrec")
    with pytest.raises(InputError, match=r"model\.dropout: its default, 0\.2, is outside"):
        check_defaults(search, resolve_settings("best", "sasrec"))


KEPT = sorted(SHIPPED.parent.glob("models/*/*.yaml"))


@pytest.mark.parametrize("file", KEPT, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_kept_settings_fit_their_model(file: Path) -> None:
    tuned, search = resolve_settings("best", file.stem, file=file), read_search(find_search(file.stem), file.stem)
    assert tuned.model.name == file.stem
    for key, parameter in search.parameters.items():
        section, name = key.split(".")
        assert parameter.holds(getattr(getattr(tuned, section), name))


def test_there_are_kept_settings_of_every_model_that_can_be_searched() -> None:
    assert {file.stem for file in KEPT if file.parent.name == "ml-100k"} == set(NAMES)
