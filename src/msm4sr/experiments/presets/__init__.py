"""Settings that ship with the package: `seed` (the paper to the letter), `released` (what its code does, its bugs
aside) and `best` (what validates best; the default)."""

from __future__ import annotations

import difflib
from importlib.resources import files
from typing import Any

import yaml

from msm4sr.errors import InputError


def preset_names() -> list[str]:
    """All presets, in alphabetical order."""
    return sorted(
        entry.name.removesuffix(".yaml") for entry in files(__name__).iterdir() if entry.name.endswith(".yaml")
    )


def load_preset(name: str) -> dict[str, Any]:
    """The settings of a preset, as a mapping of sections. InputError for a name that is none."""
    names = preset_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"--preset: there is no preset {name!r}, only {', '.join(names)}{hint}")
    settings: dict[str, Any] = yaml.safe_load((files(__name__) / f"{name}.yaml").read_text(encoding="utf-8"))
    return settings
