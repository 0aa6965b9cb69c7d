"""The settings of a run: typed, validated once, from a preset, a settings file and single changes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, SerializeAsAny, ValidationError

from msm4sr.data.dataset import DataSettings
from msm4sr.data.size import DataSize, measure_size
from msm4sr.dotted import flatten, nest, put
from msm4sr.errors import InputError
from msm4sr.evaluation.evaluate import EvaluationSettings
from msm4sr.features.settings import FeatureSettings
from msm4sr.models.base import Model, ModelConfig, Scorer
from msm4sr.models.msm4sr import MSM4SRConfig
from msm4sr.models.registry import MODELS
from msm4sr.registry import closest
from msm4sr.strict import Strict
from msm4sr.training.device import Device
from msm4sr.training.settings import FinetuneSettings, PretrainSettings, StageSettings

PRESETS = {file.stem: file for file in sorted(Path(__file__).with_name("presets").glob("*.yaml"))}


class _Loader(yaml.SafeLoader):
    """Reads dates as strings and 1e-4 as a number, as JSON does."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _model_config(settings: Any) -> Any:
    """A mapping as the config of the model that it names; anything else as it is."""
    if not isinstance(settings, Mapping):
        return settings
    name = str(settings.get("name"))
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r}, only {', '.join(MODELS)}{closest(name, MODELS)}")
    return MODELS[name].Config.model_validate(settings)


class WarmStart(Strict):
    """Training that continues from the model of a finished run, with a part of the budget."""

    run: Annotated[str, AfterValidator(os.path.abspath)] | None = Field(
        None, description="a finished run of the same model; null: training from scratch"
    )
    weights: str | None = Field(None, description="checksum of its weights, recorded when training begins")
    finetune_budget: float = Field(
        0.2, gt=0, le=1, description="of fine-tuning: share of epochs, steps and patience, at least one of each"
    )
    pretrain_budget: float = Field(0.0, ge=0, le=1, description="the same of pre-training; 0 skips it")
    learning_rate: float = Field(0.3, gt=0, le=1, description="factor of the learning rates")


class RunSettings(Strict):
    """All settings that determine the result of a run. `model` is the config of any registered model."""

    seed: int = Field(0, ge=0, lt=2**63, description="seed of every random draw")
    dataset: DataSettings = DataSettings()
    features: FeatureSettings = FeatureSettings()
    model: Annotated[SerializeAsAny[ModelConfig], BeforeValidator(_model_config)] = MSM4SRConfig()
    pretrain: PretrainSettings = PretrainSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    warm_start: WarmStart = WarmStart()
    evaluation: EvaluationSettings = EvaluationSettings()
    device: Device = Device()

    def scorer_of(self, model: Model) -> Scorer:
        """What evaluation ranks with: the model or, without fine-tuning, its pre-trained scorer."""
        return model if self.finetune.epochs else model.pretrained_scorer()

    def is_fine_tuned(self, model: Model) -> bool:
        """Whether the model itself ranks, so that it can recommend."""
        return self.scorer_of(model) is model

    def within_budget(self) -> RunSettings:
        """The settings that training uses: after a warm start those of the stages are reduced."""
        start = self.warm_start
        if start.run is None:
            return self
        shares = {"pretrain": start.pretrain_budget, "finetune": start.finetune_budget}
        stages: dict[str, StageSettings] = {name: getattr(self, name) for name in shares}
        reduced = {name: stage.reduced(shares[name], start.learning_rate) for name, stage in stages.items()}
        return self.model_copy(update=reduced)


def resolve_settings(
    preset: str = "best",
    model: str = "msm4sr",
    changes: Sequence[str] = (),
    seed: int | None = None,
    file: Path | None = None,
    data: str | Path | None = None,
) -> RunSettings:
    """The settings of a preset for a model, updated by a file, then by `seed`, then by `key=value` changes.

    The presets are `seed` (the paper's settings) and, as changes to it, `released` (the authors' code without its
    bugs) and `best` (the best validation results). A baseline uses the settings that it shares with the preset, for a
    fair comparison. In a preset or file, the section `models` has settings for single models, `sizes` for small or
    dense data sets.

    Args:
        preset: name of a preset.
        model: name of a model.
        changes: such as `finetune.learning_rate=1e-4`.
        seed: None for the preset's.
        file: YAML in the shape of a preset, with changes to it only.
        data: the prepared folder that the settings are for; None: the section `sizes` is not used.

    Raises:
        InputError: an unknown preset, model or key (with the closest valid name), an invalid value, an unreadable file
            or a file for another model.
    """
    config = MODELS.find(model, "--model").Config
    if preset not in PRESETS:
        known = f"only {', '.join(PRESETS)}{closest(preset, PRESETS)}"
        raise InputError(f"--preset: there is no preset {preset!r}, {known}")
    prepared = None if data is None else Path(data)
    chosen = _for_model(read_yaml(PRESETS[preset]), model, "--preset", prepared)
    settings = nest(flatten(read_yaml(PRESETS["seed"])) | chosen)
    shared = settings.get("model", {})
    settings["model"] = {key: value for key, value in shared.items() if key in config.model_fields} | {"name": model}
    return _updated_by(settings, model, changes, seed, file, prepared)


def warm_start_settings(
    run: Path,
    source: RunSettings,
    model: str | None = None,
    changes: Sequence[str] = (),
    seed: int | None = None,
    file: Path | None = None,
) -> RunSettings:
    """The settings of a run that continues from `run`: its settings `source`, updated as by `resolve_settings`.

    Raises InputError as that function does, and if `model` is another one.
    """
    name = source.model.name
    if model not in (None, name):
        raise InputError(f"--warm-start {run}: a run of {name}, not of {model}; train {model} from scratch first")
    settings = source.model_dump(mode="json")
    settings["warm_start"] |= {"run": str(run), "weights": None}
    return _updated_by(settings, name, changes, seed, file)


def _updated_by(
    settings: dict[str, Any],
    model: str,
    changes: Sequence[str],
    seed: int | None,
    file: Path | None,
    data: Path | None = None,
) -> RunSettings:
    """Settings of a model, updated by a file, then by `seed`, then by `key=value` changes."""
    if file is not None:
        values = _for_model(read_yaml(file), model, str(file), data)
        name = values.pop("model.name", model)
        if name != model:
            raise InputError(f"{file}: settings of {name}, but --model is {model}; change one of them")
        for key in values:
            check_key(key, model, str(file))
        for key, value in values.items():
            put(settings, key, value)
        validated(RunSettings, settings, str(file))  # so that an error names the file and not a later change
    if seed is not None:
        validated(RunSettings, settings | {"seed": seed}, "--seed")
        settings["seed"] = seed
    return _updated(settings, _parsed(changes, model), "--set")


def change_settings(settings: RunSettings, changes: Sequence[str]) -> RunSettings:
    """These settings with `key=value` changes. Raises InputError as `resolve_settings` does."""
    return with_values(settings, _parsed(changes, settings.model.name), "--set") if changes else settings


def with_values(settings: RunSettings, values: Mapping[str, Any], where: str) -> RunSettings:
    """These settings with values by dotted name. Raises InputError, which names `where` an invalid value is from."""
    return _updated(settings.model_dump(mode="json"), values, where)


def _updated(settings: dict[str, Any], values: Mapping[str, Any], where: str) -> RunSettings:
    for key, value in values.items():
        put(settings, key, value)
    return validated(RunSettings, settings, where)


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises InputError if the file is not readable or not a mapping."""
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise InputError(f"{file}: not readable ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: not a mapping of names to values")
    return content


def check_key(key: str, model: str, where: str) -> None:
    """Raise InputError, which names `where` and the closest valid name, if a model has no such setting."""
    valid = list(_keys(RunSettings, model))
    if key not in valid:
        others = [name for name in MODELS if key in _keys(RunSettings, name)]
        owners = f" ({', '.join(others)} has it)" if others else ""
        # a key without its section (learning_rate) gets the first one with it (finetune.learning_rate)
        same_end = [name for name in valid if name.split(".")[-1] == key.split(".")[-1]]
        hint = closest(key, valid) or (f"; did you mean {same_end[0]!r}?" if same_end else "")
        raise InputError(f"{where}: there is no setting {key!r} of {model}{owners}{hint}")


Kind = TypeVar("Kind", bound=BaseModel)


def validated(kind: type[Kind], content: Any, where: str, if_unknown: str = "") -> Kind:
    """The content of a file as settings of a kind.

    Raises InputError, which names `where` it is from and the key; `if_unknown` ends the message about an unknown key.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"] if part not in ("float", "int", "categorical"))
        number = re.match("(int|float)_(type|parsing|from_float)$", problem["type"])
        if number and not isinstance(problem["input"], dict):
            noun = "an integer" if number[1] == "int" else "a number"
            raise InputError(f"{where}: {key}: {problem['input']!r} is not {noun}") from None
        unknown = problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1
        given = "" if isinstance(problem["input"], dict) else f" (given: {problem['input']!r})"
        ending = if_unknown if problem["type"] == "extra_forbidden" else ""
        hint = f" (there are {', '.join(kind.model_fields)})" if unknown else given
        said = problem["msg"].removeprefix("Value error, ")
        said = said.replace("a valid tuple", "a list").replace("a valid dictionary", "a mapping")
        raise InputError(f"{where}: {key}: {said}{hint}{ending}") from None


def _for_model(settings: dict[str, Any], model: str, where: str, data: Path | None = None) -> dict[str, Any]:
    """Dotted names and values; those in the section `models` for this model replace the others.

    Those of the section `sizes` replace both: of its entries, the first whose condition `data` meets.
    """
    models, sizes = settings.pop("models", {}), settings.pop("sizes", [])
    if not isinstance(models, dict) or not all(isinstance(section, dict) for section in models.values()):
        raise InputError(f"{where}: models: not a mapping from models to settings")
    for name in models:
        MODELS.find(str(name), f"{where}: models")
    values = flatten(settings) | flatten(models.get(model, {}))
    rules = _size_rules(sizes, where)
    size = measure_size(data) if rules and data is not None else None
    for condition, limit, changes in rules:
        if size is not None and SIZE_CONDITIONS[condition](size, limit):
            return values | _for_model(changes, model, where)
    return values


SIZE_CONDITIONS: dict[str, Callable[[DataSize, float], bool]] = {
    "users_below": lambda size, limit: size.users < limit,
    "interactions_per_item_from": lambda size, limit: size.interactions >= limit * size.items,
}


def _size_rules(sizes: Any, where: str) -> list[tuple[str, float, dict[str, Any]]]:
    """The entries of a section `sizes`: a condition, its limit, and the settings of data that meet it."""
    rules = []
    for entry in sizes if isinstance(sizes, list) else [None]:
        changes = dict(entry) if isinstance(entry, dict) else {}
        given = {name: changes.pop(name) for name in SIZE_CONDITIONS if name in changes}
        if len(given) != 1 or type(limit := next(iter(given.values()))) not in (int, float):
            conditions = " or ".join(f"`{name}`" for name in SIZE_CONDITIONS)
            raise InputError(f"{where}: sizes: not a list of settings, each with a number {conditions}")
        rules.append((next(iter(given)), limit, changes))
    return rules


def parse_change(change: str) -> tuple[str, Any]:
    """Key and value of a `key=value` change. Raises InputError if it is not one."""
    key, equals, text = change.partition("=")
    if not equals:
        raise InputError(f"--set {change}: write it as key=value, for example finetune.learning_rate=1e-4")
    try:
        return key, yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise InputError(f"--set {change}: {text!r} is not a valid value; quote it if it is text") from None


def _parsed(changes: Sequence[str], model: str) -> dict[str, Any]:
    """Dotted names and values of `key=value` changes, each a setting of the model."""
    values = {}
    for change in changes:
        key, value = parse_change(change)
        check_key(key, model, f"--set {change}")
        values[key] = value
    return values


def _keys(section: type[BaseModel], model: str, prefix: str = "") -> Iterator[str]:
    """The dotted names of all settings under a section."""
    for name, field in section.model_fields.items():
        annotation: Any = MODELS[model].Config if (section, name) == (RunSettings, "model") else field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _keys(annotation, model, f"{prefix}{name}.")
        elif (prefix, name) != ("model.", "name"):
            yield f"{prefix}{name}"
