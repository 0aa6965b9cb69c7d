"""The search space of a tuning study.

Each model class declares its own (`Model.search`). A search file replaces it:

    model: sasrec
    parameters:
      finetune.learning_rate: {kind: float, low: 3.0e-4, high: 1.0e-2, log: true}
      model.layers: {kind: int, low: 1, high: 3}
      finetune.weight_decay: {kind: categorical, choices: [0.0, 1.0e-5, 1.0e-4]}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from msm4sr.dotted import flatten
from msm4sr.errors import InputError
from msm4sr.experiments.settings import RunSettings, check_key, read_yaml, validated
from msm4sr.models.registry import MODELS
from msm4sr.registry import closest
from msm4sr.strict import Strict

SEARCHED = ("model.", "pretrain.", "finetune.")  # data and features are read once; a seed is not tuned

Value = bool | int | float | str


class Span(Strict):
    """A range of numbers, both ends included."""

    low: float
    high: float
    log: bool = Field(False, description="uniform on a logarithmic scale")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low must be less than high: it is {self.low}, and high is {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be positive if log is true: it is {self.low}")
        return self

    def holds(self, value: Any) -> bool:
        """Whether the search may draw the value."""
        return type(value) in (int, float) and self.low <= value <= self.high


class FloatRange(Span):
    """A range of real numbers."""

    kind: Literal["float"]


class IntRange(Span):
    """A range of integers."""

    kind: Literal["int"]
    low: int
    high: int

    def holds(self, value: Any) -> bool:
        """See `Span.holds`."""
        return type(value) is int and super().holds(value)


class Choices(Strict):
    """One of several values without an order."""

    kind: Literal["categorical"]
    choices: tuple[Value, ...] = Field(min_length=1)

    def holds(self, value: Any) -> bool:
        """Whether the search may draw the value."""
        return any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in self.choices)


Parameter = Annotated[FloatRange | IntRange | Choices, Field(discriminator="kind")]


class SearchFile(Strict):
    """The content of a search file."""

    model: str
    parameters: dict[str, Parameter] = Field(min_length=1)


@dataclass(frozen=True)
class Search:
    """A search that has been checked against its model."""

    name: str  # of the model, or of the file without its suffix
    parameters: Mapping[str, Parameter]  # the searched settings, by dotted name


def load_search(search: str | None, model: str) -> Search:
    """The search of a file or of a model by name (None: of `model`), to tune `model`.

    Raises:
        InputError: neither a file nor a model, a search for another model, a model without settings or without a
            search space, a setting that the model lacks or that cannot be searched, or an invalid range.
    """
    tuned, name = MODELS.find(model, "--model"), search or model
    if not tuned.tasks and set(tuned.Config.model_fields) == {"name"}:
        raise InputError(f"--model {model}: {tuned.label} has no settings and is not trained: there is nothing to tune")
    if search is not None and Path(search).is_file():
        where, name, content = search, Path(search).stem, read_yaml(Path(search))
    elif name not in MODELS:
        known = f"there are {', '.join(MODELS)}{closest(name, MODELS)}"
        raise InputError(f"--search {name}: neither a file nor a model; {known}")
    else:
        found, where = MODELS[name], f"search of {name}"
        if not found.search:
            option = "--model" if search is None else "--search"
            raise InputError(f"{option} {name}: {found.label} has no search space; give one with --search FILE")
        content = {"model": name, "parameters": found.search}
    file = validated(SearchFile, content, where)
    if file.model != model:
        raise InputError(f"{where}: a search for {file.model}, but --model is {model}; change one of them")
    for key in file.parameters:
        check_key(key, model, f"{where}: parameters")
        if not key.startswith(SEARCHED):
            allowed = "only settings of model, pretrain and finetune"
            raise InputError(f"{where}: parameters: {key} cannot be searched, {allowed}")
    return Search(name, file.parameters)


def check_defaults(search: Search, settings: RunSettings) -> dict[str, Value]:
    """The default of each searched setting. Raises InputError for a default that the search cannot draw."""
    known = flatten(settings.model_dump(mode="json"))
    for key, parameter in search.parameters.items():
        if not parameter.holds(known[key]):
            raise InputError(
                f"search {search.name}: {key}: its default, {known[key]!r}, is outside the search range; widen it, "
                f"or change the default with --set {key}=VALUE"
            )
    return {key: known[key] for key in search.parameters}
