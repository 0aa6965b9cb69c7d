"""What a search tries: the parameters of a model, with their ranges, and a budget that is the same for every model.

A search file names its model, its budget (a file beside it) and for each setting, by its dotted name, where to look:

    model: sasrec
    budget: budget.yaml
    parameters:
      finetune.learning_rate: {kind: float, low: 3.0e-4, high: 1.0e-2, log: true}
      model.layers: {kind: int, low: 1, high: 3}
      finetune.weight_decay: {kind: categorical, choices: [0.0, 1.0e-5, 1.0e-4]}

The budget has the number of trials, and settings that all trials of all models have in common, epochs above all:

    trials: 6
    settings:
      finetune: {epochs: 40, patience: 3}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from msm4sr.dotted import flatten
from msm4sr.errors import InputError
from msm4sr.experiments.settings import RunSettings, check_key, read_yaml

SHIPPED = Path(__file__).parents[3] / "configs" / "search"
SEARCHED = ("model.", "pretrain.", "finetune.")  # data and features are read once, and the seed is not luck to be tried

Value = bool | int | float | str


class Span(BaseModel):
    """A number between two others, both included."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: float
    high: float
    log: bool = Field(False, description="drawn evenly among orders of magnitude")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low must be under high: {self.low} is not under {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be over 0 where log is true: it is {self.low}")
        return self

    def holds(self, value: Any) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high


class FloatRange(Span):
    """Any number between the two."""

    kind: Literal["float"]


class IntRange(Span):
    """A whole number between the two."""

    kind: Literal["int"]
    low: int
    high: int


class Choices(BaseModel):
    """One of several values, none nearer to the one than to the other."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["categorical"]
    choices: tuple[Value, ...] = Field(min_length=1)

    def holds(self, value: Any) -> bool:
        return value in self.choices


Parameter = Annotated[FloatRange | IntRange | Choices, Field(discriminator="kind")]


class Budget(BaseModel):
    """What each model may spend."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trials: int = Field(ge=1, description="finished, pruned and failed ones; the first is of the defaults")
    settings: dict[str, Any] = Field(default={}, description="of every trial, in the shape of a preset")


class SearchFile(BaseModel):
    """A search file as it stands."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    budget: str = Field(description="a file, seen from the search file")
    parameters: dict[str, Parameter] = Field(min_length=1)


@dataclass(frozen=True)
class Search:
    """A search that fits its model.

    Attributes:
        name: of its file, without the ending.
        trials: how many there are.
        budget: the settings that every trial has, by dotted name.
        parameters: what is searched, by dotted name.
    """

    name: str
    trials: int
    budget: Mapping[str, Any]
    parameters: Mapping[str, FloatRange | IntRange | Choices]


def find_search(name: str) -> Path:
    """The file of that name, or the one that ships with the source as configs/search/NAME.yaml."""
    if Path(name).is_file():
        return Path(name)
    if (SHIPPED / f"{name}.yaml").is_file():
        return SHIPPED / f"{name}.yaml"
    there = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml") if file.stem != "budget"))
    raise InputError(f"--search {name}: there is no such file" + (f"; by name there are {there}" if there else ""))


def read_search(file: Path, model: str) -> Search:
    """The search that a file describes, with its budget.

    InputError names file and key: it is for another model, a setting that the model has not, or that cannot be
    searched, a range that is none.
    """
    said = _validated(SearchFile, file)
    if said.model != model:
        raise InputError(f"{file}: a search for {said.model}, and --model is {model}; one of the two must change")
    budget_file = file.parent / said.budget
    budget = _validated(Budget, budget_file)
    common = flatten(budget.settings)
    for key in common:
        check_key(key, model, str(budget_file))
    for key in said.parameters:
        where = f"{file}: parameters"
        check_key(key, model, where)
        if not key.startswith(SEARCHED):
            raise InputError(f"{where}: {key} cannot be searched, only settings of model, pretrain and finetune")
        if key in common:
            raise InputError(f"{where}: {key} is part of the budget ({budget_file.name}), the same for every model")
    return Search(file.stem, budget.trials, common, said.parameters)


def check_defaults(search: Search, settings: RunSettings) -> dict[str, Value]:
    """The default of everything that is searched. InputError for one that the search would never come upon."""
    known = flatten(settings.model_dump(mode="json"))
    for key, parameter in search.parameters.items():
        if not parameter.holds(known[key]):
            raise InputError(
                f"search {search.name}: {key}: its default, {known[key]!r}, is outside of what is searched; widen it, "
                f"or change the default by --set {key}=VALUE"
            )
    return {key: known[key] for key in search.parameters}


Read = TypeVar("Read", bound=BaseModel)


def _validated(kind: type[Read], file: Path) -> Read:
    try:
        return kind.model_validate(read_yaml(file))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"] if part not in ("float", "int", "categorical"))
        valid = ", ".join(kind.model_fields)
        hint = f" (there are {valid})" if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1 else ""
        raise InputError(f"{file}: {key}: {problem['msg'].removeprefix('Value error, ')}{hint}") from None
