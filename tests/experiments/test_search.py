"""Searches: those of the models fit them; errors in search files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from msm4sr.errors import InputError
from msm4sr.experiments.search import Choices, FloatRange, IntRange, check_defaults, load_search
from msm4sr.experiments.settings import RunSettings, resolve_settings, with_values
from msm4sr.models.registry import MODELS

NAMES = [name for name in MODELS if MODELS[name].search]


def test_every_model_with_settings_has_a_search_space() -> None:
    assert set(MODELS) - set(NAMES) == {"popularity"}
    for search in (None, "sasrec"):
        with pytest.raises(InputError, match=r"--model popularity: .* no settings .*: there is nothing to tune$"):
            load_search(search, "popularity")
    with pytest.raises(InputError, match=r"--search popularity: Popularity has no search space"):
        load_search("popularity", "sasrec")


@pytest.mark.parametrize("name", NAMES)
def test_the_search_of_a_model_has_its_settings_around_their_defaults(name: str) -> None:
    search = load_search(None, name)
    settings = resolve_settings("best", name)
    defaults = check_defaults(search, settings)
    assert set(defaults) == set(search.parameters)
    for key, parameter in search.parameters.items():
        ends = parameter.choices if isinstance(parameter, Choices) else (parameter.low, parameter.high)
        for value in ends:
            assert isinstance(with_values(settings, {key: value}, "here"), RunSettings)


@pytest.mark.parametrize("name", NAMES)
def test_the_search_of_a_model_has_the_learning_rate_and_only_its_stages(name: str) -> None:
    parameters = load_search(None, name).parameters
    assert "pretrain" in MODELS[name].tasks or not any(key.startswith("pretrain.") for key in parameters)
    if name == "itemknn":  # has no training
        assert not any(key.startswith("finetune.") for key in parameters)
    else:
        assert parameters["finetune.learning_rate"].holds(1e-3)


def write(folder: Path, parameters: str, model: str = "sasrec") -> Path:
    (folder / "search.yaml").write_text(f"model: {model}\nparameters: {parameters}\n")
    return folder / "search.yaml"


@pytest.mark.parametrize(
    ("parameters", "message"),
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
        ("{model.dropout: {kind: float, low: 0.5, high: 0.1}}", "parameters.model.dropout: low must be less than high"),
        ("{model.dropout: {kind: float, low: 0, high: 1, log: true}}", "model.dropout: low must be positive"),
        ("{model.layers: {kind: int, low: 1.5, high: 3}}", "parameters.model.layers.low: .*integer"),
        ("{model.layers: {kind: number}}", "parameters.model.layers: .*'float', 'int'"),
        ("{model.layers: {kind: categorical, choices: []}}", "parameters.model.layers.choices: "),
        ("{model.layers: {kind: int, low: 1, hihg: 3}}", "parameters.model.layers.h"),
        ("{}", "parameters: "),
        ("3\nparameter: {}", r"parameters?: "),
        ("{model.layers: {kind: int, low: 1, high: 3}}\nbudget: default", r"budget: .*there are model, parameters"),
    ],
)
def test_an_error_in_a_search_file_names_the_file_and_the_key(tmp_path: Path, parameters: str, message: str) -> None:
    file = write(tmp_path, parameters)
    with pytest.raises(InputError, match=rf"^{re.escape(str(file))}: .*{message}"):
        load_search(str(file), "sasrec")


def test_a_search_for_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"search of difsr: a search for difsr, but --model is sasrec"):
        load_search("difsr", "sasrec")
    with pytest.raises(InputError, match=r"search\.yaml: a search for difsr, but --model is sasrec"):
        load_search(str(write(tmp_path, "{model.dropout: {kind: float, low: 0, high: 1}}", model="difsr")), "sasrec")


def test_a_search_is_found_by_model_or_file_and_an_unknown_name_gets_the_closest(tmp_path: Path) -> None:
    assert load_search("sine", "sine") == load_search(None, "sine")
    assert load_search(str(write(tmp_path, "{model.layers: {kind: int, low: 1, high: 3}}")), "sasrec").name == "search"
    with pytest.raises(InputError, match=r"--search sinus: neither a file nor a model.*did you mean 'sine'"):
        load_search("sinus", "sine")
    with pytest.raises(InputError, match=r"--model: there is no model 'sinus', only .*did you mean 'sine'"):
        load_search(None, "sinus")


def test_a_default_outside_of_the_search_is_an_input_error(tmp_path: Path) -> None:
    search = load_search(str(write(tmp_path, "{model.dropout: {kind: float, low: 0.4, high: 0.9}}")), "sasrec")
    with pytest.raises(InputError, match=r"model\.dropout: its default, 0\.2, is outside"):
        check_defaults(search, resolve_settings("best", "sasrec"))


TUNED = sorted((Path(__file__).parents[2] / "configs" / "models").glob("*/*.yaml"))


@pytest.mark.parametrize("file", TUNED, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_tuned_settings_fit_their_model(file: Path) -> None:
    tuned, search = resolve_settings("best", file.stem, file=file), load_search(None, file.stem)
    assert tuned.model.name == file.stem
    for key, parameter in search.parameters.items():
        section, name = key.split(".")
        assert parameter.holds(getattr(getattr(tuned, section), name))


def test_there_are_tuned_settings_of_every_model_with_a_search() -> None:
    assert {file.stem for file in TUNED if file.parent.name == "ml-100k"} == set(NAMES)


@pytest.mark.parametrize(
    ("kind", "value", "holds"),
    [
        ({"kind": "int", "low": 0, "high": 2}, 1, True),
        ({"kind": "int", "low": 0, "high": 2}, 0.5, False),
        ({"kind": "float", "low": 0, "high": 2}, 1, True),
        ({"kind": "float", "low": 0, "high": 2}, True, False),
        ({"kind": "categorical", "choices": [1, 2]}, 1.0, True),
        ({"kind": "categorical", "choices": [1, 2]}, True, False),
        ({"kind": "categorical", "choices": [True]}, True, True),
    ],
)
def test_a_search_holds_the_values_that_it_can_draw(kind: dict[str, Any], value: Any, holds: bool) -> None:
    classes: dict[str, Any] = {"int": IntRange, "float": FloatRange, "categorical": Choices}
    assert classes[kind["kind"]](**kind).holds(value) is holds
