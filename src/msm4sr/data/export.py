"""Export a prepared folder to other programs: RecBole's atomic files, or CSV.

Rows keep their order, so that preparing the export again gives the same tables. What a format cannot represent is an
error (an ID with a tab) or replaced and counted (a line break in a text becomes a space).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import polars as pl

from msm4sr.data.schema import INTERACTIONS, ITEMS, read_items, scan_interactions
from msm4sr.errors import InputError
from msm4sr.files import atomic_folder

SEPARATORS = (" ", "|", ";", "\x1f")
"""Between the values of a list; the first that no value contains is used."""

RECBOLE_TYPES = {"user_id": "token", "item_id": "token", "timestamp": "float", "position": "float", "rating": "float",
                 "title": "token", "text": "token", "categories": "token_seq", "image": "token_seq"}  # fmt: skip
BREAKS = r"[\t\r\n\v\f\x1c-\x1e\x85\u2028\u2029]"


@dataclass(frozen=True)
class Exported:
    """The files that were written, the separator of list values in them, and what was replaced."""

    files: list[Path]
    separator: str
    notes: list[str] = field(default_factory=list)


def export_recbole(folder: Path, out: Path) -> Exported:
    """Write RecBole's atomic files: `NAME.inter`, `NAME.item`, and `NAME.yaml` with the columns and the protocol.

    Args:
        folder: the prepared folder.
        out: a new or an empty folder; its name is NAME, as RecBole requires.

    Raises:
        InputError: `folder` is no prepared folder, an ID contains a tab or a line break, `out` is not empty.
    """
    name = out.resolve().name
    interactions, items = scan_interactions(folder), _items(folder)
    notes: list[str] = []
    for what, table in ((INTERACTIONS, interactions), (ITEMS, items)):
        ids = [
            pl.col(column).str.contains(BREAKS).any() for column in ("user_id", "item_id") if column in _names(table)
        ]
        if table is not None and any(table.select(ids).collect(engine="streaming").row(0)):
            raise InputError(
                f"{folder / what}: an ID contains a tab or a line break, which RecBole's files cannot represent"
            )
    separator = " "
    if items is not None:
        separator = _separator(folder, items)
        clean = items.with_columns(
            pl.col(pl.String).str.replace_all(BREAKS, " "),
            pl.col(pl.List(pl.String)).list.eval(pl.element().str.replace_all(BREAKS, " ")),
        )
        changed = sum(
            before != after for before, after in zip(items.collect().rows(), clean.collect().rows(), strict=True)
        )
        if changed:
            notes.append(f"{changed:,} items have a line break or a tab in their texts; replaced by a space")
        items = clean
    with atomic_folder(out) as target:
        _write(interactions, target / f"{name}.inter", "\t", typed=True)
        if items is not None:
            _write(_joined(items, separator), target / f"{name}.item", "\t", typed=True)
        order = next(column for column in ("timestamp", "position") if column in _names(interactions))
        columns = {"inter": _names(interactions), **({} if items is None else {"item": _names(items)})}
        (target / f"{name}.yaml").write_text(_recbole_settings(name, separator, order, columns), encoding="utf-8")
    return Exported(sorted(out.iterdir()), separator, notes)


def export_csv(folder: Path, out: Path) -> Exported:
    """Write `interactions.csv` and, where there are items, `items.csv`.

    Raises:
        InputError: `folder` is no prepared folder, or `out` is not empty.
    """
    interactions, items = scan_interactions(folder), _items(folder)
    separator = "|" if items is None else _separator(folder, items, SEPARATORS[1:])
    with atomic_folder(out) as target:
        _write(interactions, target / "interactions.csv", ",")
        if items is not None:
            _write(_joined(items, separator), target / "items.csv", ",")
    return Exported(sorted(out.iterdir()), separator)


def _items(folder: Path) -> pl.LazyFrame | None:
    """The catalogue without its empty columns; None for a data set of IDs only."""
    if not (folder / ITEMS).exists():
        return None
    items = read_items(folder)
    return items.select(name for name in items.columns if items[name].count()).lazy()


def _names(table: pl.LazyFrame | None) -> list[str]:
    return [] if table is None else table.collect_schema().names()


def _separator(folder: Path, items: pl.LazyFrame, choices: Iterable[str] = SEPARATORS) -> str:
    lists = [name for name, dtype in items.collect_schema().items() if isinstance(dtype, pl.List)]
    values = pl.concat([items.select(pl.col(name).explode().alias("value")) for name in lists]) if lists else None
    for choice in choices:
        held = (
            values is not None
            and values.select(pl.col("value").str.contains(choice, literal=True).any()).collect().item()
        )
        if not held:
            return choice
    raise InputError(
        f"{folder / ITEMS}: list values contain every separator (space, |, ; and \\x1f); replace one of them"
    )


def _joined(items: pl.LazyFrame, separator: str) -> pl.LazyFrame:
    return items.with_columns(pl.col(pl.List(pl.String)).list.join(separator))


def _write(table: pl.LazyFrame, path: Path, separator: str, typed: bool = False) -> None:
    if typed:
        table = table.rename({name: f"{name}:{RECBOLE_TYPES[name]}" for name in _names(table)})
    quoting: Literal["never", "necessary"] = "never" if typed else "necessary"
    table.sink_csv(path, separator=separator, quote_style=quoting, maintain_order=True, engine="streaming")


def _recbole_settings(name: str, separator: str, order: str, columns: dict[str, list[str]]) -> str:
    load = "\n".join(f"  {part}: [{', '.join(names)}]" for part, names in columns.items())
    return f"""\
# For RecBole: --config_files {name}.yaml with data_path one folder up. The protocol is msm4sr's: leave-one-out by
# time, full ranking, no user or item filtered.
dataset: {name}
field_separator: "\\t"
seq_separator: "{separator if separator.isprintable() else chr(92) + f"x{ord(separator):02x}"}"
USER_ID_FIELD: user_id
ITEM_ID_FIELD: item_id
TIME_FIELD: {order}
load_col:
{load}
user_inter_num_interval: "[0,inf)"
item_inter_num_interval: "[0,inf)"
eval_args:
  split: {{LS: valid_and_test}}
  order: TO
  group_by: user
  mode: full
metrics: [Recall, NDCG, MRR]
topk: [5, 10, 20, 50]
valid_metric: NDCG@10
"""
