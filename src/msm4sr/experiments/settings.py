"""All settings of a run: typed, validated once, from a preset and the changes a user makes to it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from msm4sr.data.dataset import DataSettings
from msm4sr.dotted import flatten, nest, put
from msm4sr.errors import InputError
from msm4sr.evaluation.evaluate import EvaluationSettings
from msm4sr.experiments.presets import load_preset
from msm4sr.features.extract import FeatureSettings
from msm4sr.models.msm4sr import MSM4SR, MSM4SRConfig, Rows
from msm4sr.models.registry import CONFIGS, ModelConfig
from msm4sr.training.device import Device
from msm4sr.training.finetune import FinetuneSettings
from msm4sr.training.pretrain import PretrainSettings


class RunSettings(BaseModel):
    """Everything that decides what a run computes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(0, ge=0, description="of every random draw")
    dataset: DataSettings = DataSettings()
    features: FeatureSettings = FeatureSettings()
    model: ModelConfig = MSM4SRConfig()
    pretrain: PretrainSettings = PretrainSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    device: Device = Device()


def resolve_settings(
    preset: str = "best",
    model: str = "msm4sr",
    changes: Sequence[str] = (),
    seed: int | None = None,
    file: Path | None = None,
) -> RunSettings:
    """The settings of a preset for a model, then those of a file, then `seed`, then `key=value` changes.

    Another model than MSM4SR takes over what it shares with the preset (widths, layers, dropout, the second stage),
    so that rows of a comparison stand on the same footing; `models` of the preset says what one model has otherwise.

    Args:
        changes: such as `finetune.learning_rate=1e-4`.
        file: YAML of the shape of a preset, with only what differs from it.

    Raises:
        InputError: an unknown preset, model or key (with the nearest valid name), a value that does not fit, a file
            that is not readable or is for another model.
    """
    if model not in CONFIGS:
        raise InputError(f"--model: there is no model {model!r}; there are {', '.join(CONFIGS)}{_hint(model, CONFIGS)}")
    settings = nest(_for_model(load_preset(preset), model, f"--preset {preset}"))
    shared = settings.get("model", {})
    settings["model"] = {k: v for k, v in shared.items() if k in CONFIGS[model].model_fields} | {"name": model}
    if file is not None:
        for key, value in _settings_of(file, model).items():
            put(settings, key, value)
        validate_settings(settings, str(file))  # so that what is wrong in the file is told by its name
    if seed is not None:
        settings["seed"] = seed
    _apply(changes, settings)
    return validate_settings(settings, "--set")


def from_preset(name: str, features: Mapping[str, Rows], seed: int = 0, **changes: Any) -> MSM4SR:
    """A new MSM4SR model over the items that `features` describe, with the settings of a preset.

        model = from_preset("best", features, dim=128)

    Raises:
        InputError: an unknown preset or setting, or a value that does not fit.
    """
    settings = resolve_settings(name, "msm4sr", [f"model.{key}={json.dumps(value)}" for key, value in changes.items()])
    assert isinstance(settings.model, MSM4SRConfig)
    return MSM4SR.from_features(settings.model, features, seed)


def change_settings(settings: RunSettings, changes: Sequence[str]) -> RunSettings:
    """These settings with `key=value` changes. Raises InputError as `resolve_settings` does."""
    if not changes:
        return settings
    changed = settings.model_dump(mode="json")
    _apply(changes, changed)
    return validate_settings(changed, "--set")


def with_values(settings: RunSettings, values: Mapping[str, Any], where: str) -> RunSettings:
    """The settings with these values, by dotted name. The InputError of a wrong one names `where` it stands."""
    changed = settings.model_dump(mode="json")
    for key, value in values.items():
        put(changed, key, value)
    return validate_settings(changed, where)


def read_yaml(file: Path) -> dict[str, Any]:
    """What a YAML file says, a mapping. InputError for a file that is not readable or says something else."""
    try:
        said = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: not readable ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(said, dict):
        raise InputError(f"{file}: not a mapping of names to values")
    return said


def _settings_of(file: Path, model: str) -> dict[str, Any]:
    """Dotted names and values of a settings file, all of them names that the model has."""
    said = _for_model(read_yaml(file), model, str(file))
    meant = said.pop("model.name", model)
    if meant != model:
        raise InputError(f"{file}: settings of {meant}, and --model is {model}; one of the two must change")
    for key in said:
        check_key(key, model, str(file))
    return said


def _for_model(said: dict[str, Any], model: str, where: str) -> dict[str, Any]:
    """Dotted names and values, those that the section `models` has for this one model over the others."""
    models = said.pop("models", {})
    if not isinstance(models, dict) or not all(isinstance(one, dict) for one in models.values()):
        raise InputError(f"{where}: models: for each model the settings that it has otherwise")
    if unknown := sorted(set(models) - set(CONFIGS)):
        raise InputError(f"{where}: models: there is no model {unknown[0]!r}{_hint(str(unknown[0]), CONFIGS)}")
    return flatten(said) | flatten(models.get(model, {}))


def check_key(key: str, model: str, where: str) -> None:
    """InputError with the nearest valid name when a model has no such setting; `where` it stands is named."""
    valid = dict(_keys(RunSettings, model))
    if key not in valid:
        others = [name for name in CONFIGS if key in dict(_keys(RunSettings, name))]
        whose = f" ({', '.join(others)} has it)" if others else ""
        raise InputError(f"{where}: there is no setting {key!r} of {model}{whose}{_hint(key, valid)}")


def _apply(changes: Sequence[str], settings: dict[str, Any]) -> None:
    model = settings["model"]["name"]
    for change in changes:
        key, value = parse_change(change)
        check_key(key, model, f"--set {change}")
        put(settings, key, value)


def validate_settings(settings: dict[str, Any], where: str) -> RunSettings:
    """Check a mapping of settings; `where` it stands is named in the InputError."""
    try:
        return RunSettings.model_validate(settings)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"] if part not in CONFIGS)
        given = f" (given: {problem['input']!r})" if not isinstance(problem["input"], dict) else ""
        message = problem["msg"].removeprefix("Value error, ")
        raise InputError(f"{where}: {key}: {message}{given}") from None


def parse_change(change: str) -> tuple[str, Any]:
    """Key and value of a `key=value` change. Raises InputError for text that is none."""
    key, equals, text = change.partition("=")
    if not equals:
        raise InputError(f"--set {change}: write it as key=value, for example finetune.learning_rate=1e-4")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"--set {change}: {text!r} is no value; quote it if it is meant as text") from None
    if isinstance(value, str):  # YAML 1.1 reads 1e-4 as text, since it has no dot
        try:
            return key, float(value)
        except ValueError:
            return key, value
    return key, value


def _keys(section: type[BaseModel], model: str, prefix: str = "") -> Iterator[tuple[str, None]]:
    """The dotted names of all settings under a section."""
    for name, field in section.model_fields.items():
        annotation: Any = CONFIGS[model] if (section, name) == (RunSettings, "model") else field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _keys(annotation, model, f"{prefix}{name}.")
        elif (prefix, name) != ("model.", "name"):
            yield f"{prefix}{name}", None


def _hint(name: str, valid: Sequence[str] | dict[str, Any]) -> str:
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    if not near:  # learning_rate for finetune.learning_rate
        near = [key for key in valid if key.split(".")[-1] == name.split(".")[-1]][:1]
    return f"; did you mean {near[0]!r}?" if near else ""
