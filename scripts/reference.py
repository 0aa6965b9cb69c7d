"""The generated pages of the documentation: settings, command line, design records, and those of `api_reference`.

`scripts/site_hook.py` adds them to the site; tests/docs/test_reference.py checks that they are complete.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from api_reference import api_pages, summary
from pydantic import BaseModel

from msm4sr.cli import app
from msm4sr.dotted import flatten
from msm4sr.experiments.settings import RunSettings, resolve_settings
from msm4sr.models.registry import MODELS

BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
LARGEST = 2**62  # a larger bound is that of the integers, not of the setting


@dataclass(frozen=True)
class Setting:
    """A setting: its dotted name, its type and bounds, and its description."""

    name: str
    type: str
    description: str


def settings_of(kind: type[BaseModel], prefix: str = "", model: str = "msm4sr") -> Iterator[Setting]:
    """Yield all settings under a section; `model` is the system whose config is the section `model`."""
    schema = kind.model_json_schema()
    for name, field in kind.model_fields.items():
        annotation: Any = MODELS[model].Config if (kind, name) == (RunSettings, "model") else field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from settings_of(annotation, f"{prefix}{name}.", model)
        elif (prefix, name) != ("model.", "name"):
            yield Setting(f"{prefix}{name}", _type(schema["properties"][name]), field.description or "")


def _type(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words: "number > 0", "`all` or `last`"."""
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = {"null": "`null`", "array": "list", "object": "mapping"}.get(
        schema.get("type", ""), schema.get("type", "any")
    )
    if kind == "list" and "items" in schema:
        kind = f"list of {_type(schema['items'])}"
    bounds = [f"{sign} {schema[key]}" for key, sign in BOUNDS.items() if key in schema and schema[key] < LARGEST]
    return " ".join([kind, ", ".join(bounds)]).strip()


def settings_page() -> str:
    """`reference/settings.md`: every setting, with its type and its values in the presets `seed` and `best`."""
    presets = {preset: {model: _values(preset, model) for model in MODELS} for preset in ("seed", "best")}
    lines = [
        "# Settings",
        "",
        "Change a setting with `--set NAME=VALUE`, for example `--set finetune.learning_rate=1e-4`, or with a YAML "
        "file: `--settings FILE`. A single value is that of the presets `seed` (the paper) and `best` (the default); "
        "of two, the first is that of `seed`, the second that of `best`. The preset `best` changes some values by the "
        "size of the data: see [presets](../explanation/method.md#presets); `run` prints them.",
    ]
    sections: dict[str, list[Setting]] = {}
    for setting in settings_of(RunSettings):
        section = setting.name.rpartition(".")[0]
        if section != "model":
            sections.setdefault(section, []).append(setting)
    for section, settings in sections.items():
        lines += ["", f"## {section or 'General'}", "", *_table(settings, "msm4sr", presets)]
    for model in MODELS:
        settings = [found for found in settings_of(RunSettings, model=model) if found.name.startswith("model.")]
        lines += ["", f"## model: {model}", "", summary(MODELS[model])]
        changed = _differing(model, presets["best"])
        if model == "msm4sr":
            baselines = changed = _differing("sasrec", presets["best"])
            lines += ["", f"In the preset `best`, the other models have {', '.join(changed)}."]
        elif changed != baselines:
            lines += ["", f"In the preset `best` it has {', '.join(changed)}."]
        lines += ["", *_table(settings, model, presets)] if settings else []
    return "\n".join(lines) + "\n"


def _values(preset: str, model: str) -> dict[str, Any]:
    return flatten(resolve_settings(preset, model).model_dump(mode="json"))


def _differing(model: str, values: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The settings outside of `model` that differ from those of msm4sr."""
    return [
        f"`{name}={_shown(value)}`"
        for name, value in values[model].items()
        if not name.startswith("model.") and value != values["msm4sr"][name]
    ]


def _table(settings: Iterable[Setting], model: str, presets: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A row a setting; the name has an anchor (`#finetune.epochs`), in the section of another model with its name."""
    yield "| setting | type | value | description |"
    yield "|---|---|---|---|"
    for setting in settings:
        name = setting.name
        anchor = name if not name.startswith("model.") or model == "msm4sr" else f"{model}.{name}"
        values = dict.fromkeys(
            f"`{_shown(presets[preset][model][name])}`" for preset in presets
        )  # one if they are equal
        description = _sentence(setting.description).replace("|", r"\|")
        yield f"| `{name}`{{ #{anchor} }} | {setting.type} | {', '.join(values)} | {description} |"


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace("|", r"\|") if not isinstance(value, str) else value


def _sentence(text: str) -> str:
    """A description as a sentence; a first word that is a value ("all: ...") stays as it is."""
    text = text if re.match(r"[\w']+:", text) else text[:1].upper() + text[1:]
    return text if text.endswith(".") or not text else f"{text}."


def commands() -> Iterator[tuple[str, Any, Any]]:
    """Yield (name, command, context) of every command that does something, such as "msm4sr prepare csv"."""
    root = typer.main.get_command(app)
    yield from _commands("msm4sr", root, None)


def _commands(name: str, command: Any, parent: Any) -> Iterator[tuple[str, Any, Any]]:
    context = command.make_context(name, [], parent=parent, resilient_parsing=True)
    names = command.list_commands(context) if hasattr(command, "list_commands") else []
    if not names:
        yield name, command, context
    for inner in names:
        yield from _commands(f"{name} {inner}", command.get_command(context, inner), context)


def command_line_page() -> str:
    """`reference/command-line.md`: every command with its arguments and options."""
    lines = [
        "# Command line",
        "",
        "`msm4sr --help` and `msm4sr COMMAND --help` print the same. `python -m msm4sr` is the same program. A command "
        "exits with 0; with 2 if the input is wrong, 1 after another error, and 130 after Ctrl-C.",
    ]
    for name, command, context in commands():
        pieces = " ".join(piece.strip("{}") for part in command.params for piece in part.get_usage_pieces(context))
        has_options = any(part.param_type_name == "option" for part in command.params)
        help_text = re.sub(r"\s*\n\s*(?=\S)", " ", inspect.cleandoc(command.help or "")) if command.help else ""
        lines += ["", f"## {name}", "", help_text, "", "```text"]
        lines += [f"{name} {pieces}{' [OPTIONS]' if has_options else ''}".replace("  ", " ").strip(), "```"]
        rows = [_parameter(part, context) for part in command.params if part.name != "help"]
        if rows:
            lines += ["", "| argument or option | value | default | description |", "|---|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _parameter(part: Any, context: Any) -> str:
    if part.param_type_name == "argument":
        name, required = part.display_name_raw.strip("{}[]."), "required" if part.required else ""
        return f"| `{name}` | | {required} | {_cell(part.help)} |"
    names = ", ".join(f"`{name}`" for name in [*part.opts, *part.secondary_opts])
    value = "" if part.is_flag else _cell(part.metavar or _value(part, context))
    return f"| {names} | {value} | {_default(part)} | {_cell(part.help)} |"


def _value(part: Any, context: Any) -> str:
    """What an option takes: "int ≥ 1", "text", "keep or last"."""
    shown = re.sub(r"^<(?:list\[)?|(?: range)?\]?>$", "", part.display_type(context))
    bounds = [f"{sign} {bound}" for sign, bound in (("≥", part.min), ("≤", part.max)) if bound is not None]
    return " ".join([shown.replace("|", " or ").replace("str", "text"), ", ".join(bounds)]).strip()


def _default(part: Any) -> str:
    if part.required:
        return "required"
    if isinstance(part.show_default, str):
        return _cell(part.show_default)
    default = part.default() if callable(part.default) else part.default
    if part.is_flag or default in (None, (), []) or part.show_default is False:
        return ""
    values = default if isinstance(default, list | tuple) else [default]
    return ", ".join(f"`{_cell(str(getattr(value, 'value', value)))}`" for value in values if value != "")


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", r"\|").replace("<", "&lt;").replace("*", r"\*")


def records_page(folder: Path) -> str:
    """`adr/index.md`: the design records by title."""
    lines = ["# Design decisions", "", "One short record for each choice that a newcomer would question.", ""]
    for file in sorted(folder.glob("[0-9]*.md")):
        number, _, title = file.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ").partition(": ")
        lines.append(f"- {number}: [{title}]({file.name})")
    return "\n".join(lines) + "\n"


def generated_pages(docs: Path) -> dict[str, str]:
    """All generated pages, by path under docs/."""
    pages = {
        "reference/settings.md": settings_page(),
        "reference/command-line.md": command_line_page(),
        "adr/index.md": records_page(docs / "adr"),
        "changelog.md": (docs.parent / "CHANGELOG.md").read_text(encoding="utf-8"),
    }
    return pages | {f"reference/api/{name}": text for name, text in api_pages().items()}
