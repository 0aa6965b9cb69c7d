"""The presets: `seed` (the paper's settings), `released` (those of its code, without the bugs) and `best` (those that
validate best; the default)."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import yaml

from msm4sr.errors import InputError
from msm4sr.registry import closest


def preset_names() -> list[str]:
    """All presets, in alphabetical order."""
    names = (entry.name for entry in files(__name__).iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def load_preset(name: str) -> dict[str, Any]:
    """The settings of a preset, as nested mappings. Raises InputError for an unknown name."""
    names = preset_names()
    if name not in names:
        raise InputError(f"--preset: there is no preset {name!r}, only {', '.join(names)}{closest(name, names)}")
    settings: dict[str, Any] = yaml.safe_load((files(__name__) / f"{name}.yaml").read_text(encoding="utf-8"))
    return settings
