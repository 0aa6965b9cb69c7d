"""Lists in the cells of a table: values between separators, or a list as JSON, Python or numpy writes it."""

from __future__ import annotations

import ast
import json
import re
from contextlib import suppress

# numpy prints a list without commas, which Python would read as one text.
_SPACED = re.compile(r"""\[\s*(?:'[^']*'|"[^"]*")(?:\s+(?:'[^']*'|"[^"]*"))+\s*\]""")
_ARRAY = re.compile(r"array\((\[.*\])(?:,\s*dtype=[^()]*)?\)", re.S)
_BRACKETS = {"[": "]", "{": "}", "(": ")"}
LISTED = re.compile(r"\s*(?:array\()?\[\s*(?:['\"]|\]\s*$)")
MAX_WRITTEN = 1 << 16  # characters: reading Python's notation takes some hundred times its size


def split_list(cell: str, separator: str) -> list[str] | None:
    """The values of a cell, without white space around them; None where there is none.

    `['a', 'b']` (Python, numpy) and `["a", "b"]` (JSON) are lists too. Raises ValueError, with the reason, for a
    malformed list, a list of other values than texts, or an object.
    """
    cell = cell.strip()
    if array := _ARRAY.fullmatch(cell):
        cell = array[1]
    values = cell.split(separator)
    opening, closing = cell[:1], _BRACKETS.get(cell[:1])
    # One pair of brackets around all, not `[a] | [b]`; or a list that is cut short.
    around = closing == cell[-1:] and any(len(values) == 1 or v.count(opening) != v.count(closing) for v in values)
    if around or cell.startswith(("['", '["', "[[", "[{", "{'", '{"')):
        written = _written(cell)
        values = values if written is None else written
    return [value.strip() for value in values if value.strip()] or None


def written_list(cell: str) -> list[str]:
    """The texts of a list, as Python, numpy or JSON writes it; the cell itself if it is none."""
    if not LISTED.match(cell):
        return [cell]
    try:
        return split_list(cell, "\n") or []
    except ValueError:
        return [cell]


def _written(cell: str) -> list[str] | None:
    """The values of a list in brackets; None for a remark in parentheses, such as (none)."""
    if _SPACED.fullmatch(cell):
        return [first or second for first, second in re.findall(r"""'([^']*)'|"([^"]*)\"""", cell)]
    value: object = None
    if len(cell) <= MAX_WRITTEN:
        with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            try:
                value = json.loads(cell)
            except json.JSONDecodeError:
                value = ast.literal_eval(cell)
    if isinstance(value, list | tuple):
        if all(isinstance(part, str | int | None) and not isinstance(part, bool) for part in value):
            return [str(part) for part in value if part is not None]
        raise ValueError("is a list with values other than texts")
    if cell[0] == "(":
        return None
    raise ValueError("seems to be a list or an object")
