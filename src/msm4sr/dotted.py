"""Nested settings as dotted names: flatten, nest, and say what differs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted names: {"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nest(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        put(nested, key, value)
    return nested


def put(settings: dict[str, Any], key: str, value: Any) -> None:
    """Set one dotted name in nested settings; sections that are missing are made."""
    *sections, name = key.split(".")
    for section in sections:
        settings = settings.setdefault(section, {})
    settings[name] = value


def differences(then: Mapping[str, Any], now: Mapping[str, Any], keys: Iterable[str] | None = None) -> list[str]:
    """What differs between two flat mappings, one line a key: "finetune.epochs is 12 there and 20 now".

    A setting that `then` does not know was added later; while it is off (None, False, 0, empty), nothing differs.
    `then` is as stored; values of `now` are compared as JSON stores them (a tuple equals a list). Without `keys` those
    of both are compared.
    """
    now = json.loads(json.dumps(now))
    return [
        f"{key} is {_shown(then.get(key))} there and {_shown(now.get(key))} now"
        for key in (dict.fromkeys([*now, *then]) if keys is None else keys)
        if (then[key] != now.get(key) if key in then else bool(now.get(key)))
    ]


def _shown(value: Any) -> Any:
    return "not set" if value is None else value


def shorten(found: list[str]) -> str:
    """The first three lines of `differences`, joined, and how many more there are."""
    return "; ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
