"""Export a prepared folder to other programs: RecBole's atomic files, or CSV.

Rows keep their order, so that preparing the export again gives the same tables, except for fractions of a second. What
a format cannot represent is an error (an ID with a tab) or replaced and counted (a line break in a text becomes a
space).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from msm4sr.data.dataset import Dataset, DataSettings, load_dataset
from msm4sr.data.recbole_parts import LONGEST, PARTS, recbole_parts, write_recbole_parts
from msm4sr.data.schema import INTERACTIONS, ITEMS, read_items, scan_interactions
from msm4sr.errors import InputError
from msm4sr.files import atomic_folder

SEPARATORS = (" ", "|", ";", "\x1f")
"""Between the values of a list; the first that no value contains is used."""

RECBOLE_TYPES = {"user_id": "token", "item_id": "token", "timestamp": "float", "position": "float", "rating": "float",
                 "title": "token", "text": "token", "categories": "token_seq", "image": "token_seq"}  # fmt: skip
RECBOLE_ENDINGS = {INTERACTIONS: "inter", ITEMS: "item"}
BREAKS = r"[\t\r\n\v\f\x1c-\x1e\x85\u2028\u2029]"


@dataclass(frozen=True)
class Exported:
    """The files that were written, the separator of list values in them, and what was replaced."""

    files: list[Path]
    separator: str
    notes: list[str] = field(default_factory=list)


def export_recbole(folder: Path, out: Path, split: DataSettings = DataSettings()) -> Exported:
    """Write RecBole's atomic files: `NAME.inter`, `NAME.item`, and `NAME.yaml` with the columns and the protocol.

    With a temporal split the parts are written too (`msm4sr.data.recbole_parts`).

    `out` is a new or an empty folder; its name is NAME, as RecBole requires. Raises InputError where `folder` is not
    a prepared folder or cannot be split, an ID contains a tab or a line break, or `out` is not empty.
    """
    if split.split != "temporal" and split != DataSettings():
        raise InputError("--set: leave-one-out exports all interactions without other settings of the data")
    dataset = load_dataset(folder, split) if split.split == "temporal" else None
    name, tables, notes = out.resolve().name, _tables(folder), []
    for file, table in tables.items():
        if any(table.select(pl.col("^(user|item)_id$").str.contains(BREAKS).any()).collect(engine="streaming").row(0)):
            raise InputError(
                f"{folder / file}: an ID contains a tab or a line break, which RecBole's files cannot represent"
            )
    if ITEMS in tables:
        items = tables[ITEMS].collect()
        clean = items.with_columns(
            pl.col(pl.String).str.replace_all(BREAKS, " "),
            pl.col(pl.List(pl.String)).list.eval(pl.element().str.replace_all(BREAKS, " ")),
        )
        if changed := sum(before != after for before, after in zip(items.rows(), clean.rows(), strict=True)):
            notes.append(f"{changed:,} items have a line break or a tab in their texts; replaced by a space")
        tables[ITEMS] = clean.lazy()
    separator = _separator(folder, tables, SEPARATORS)
    parts = {} if dataset is None else recbole_parts(dataset, separator)
    columns = {RECBOLE_ENDINGS[file]: table.collect_schema().names() for file, table in tables.items()}
    with atomic_folder(out) as target:
        for (kind, names), table in zip(columns.items(), tables.values(), strict=True):
            typed = _joined(table, separator).rename({column: f"{column}:{RECBOLE_TYPES[column]}" for column in names})
            typed.sink_csv(target / f"{name}.{kind}", separator="\t", quote_style="never", engine="streaming")
        for file, text in _recbole_settings(name, separator, columns, dataset).items():
            (target / file).write_text(text, encoding="utf-8")
        write_recbole_parts(parts, target, name)
    return Exported(sorted(out.iterdir()), separator, notes)


def export_csv(folder: Path, out: Path) -> Exported:
    """Write `interactions.csv` and, if there are items, `items.csv`.

    Raises InputError where `folder` is not a prepared folder, or `out` is not empty.
    """
    tables = _tables(folder)
    separator = _separator(folder, tables, SEPARATORS[1:])
    with atomic_folder(out) as target:
        for file, table in tables.items():
            _joined(table, separator).sink_csv((target / file).with_suffix(".csv"), engine="streaming")
    return Exported(sorted(out.iterdir()), separator)


def _tables(folder: Path) -> dict[str, pl.LazyFrame]:
    """File to table: interactions, and the catalogue, if any, without its empty columns."""
    tables = {INTERACTIONS: scan_interactions(folder)}
    if (folder / ITEMS).exists():
        items = read_items(folder)
        tables[ITEMS] = items.select(name for name in items.columns if items[name].count()).lazy()
    return tables


def _separator(folder: Path, tables: Mapping[str, pl.LazyFrame], choices: Sequence[str]) -> str:
    items = tables[ITEMS].select(pl.col(pl.List(pl.String))).collect() if ITEMS in tables else pl.DataFrame()
    for choice in choices:
        if not any(column.explode().str.contains(choice, literal=True).any() for column in items):
            return choice
    raise InputError(
        f"{folder / ITEMS}: list values contain every separator (space, |, ; and \\x1f); replace one of them"
    )


def _joined(table: pl.LazyFrame, separator: str) -> pl.LazyFrame:
    return table.with_columns(pl.col(pl.List(pl.String)).list.join(separator))


def _recbole_settings(
    name: str, separator: str, columns: Mapping[str, Sequence[str]], dataset: Dataset | None
) -> dict[str, str]:
    """Settings file to its text: one, or with a temporal split of `dataset` one for each kind of model."""
    order = next(column for column in ("timestamp", "position") if column in columns["inter"])
    if dataset is None:
        about = "The protocol is msm4sr's: leave-one-out by\n# time, full ranking, no user or item filtered."
        by_time = f"TIME_FIELD: {order}\n" + _load(columns) + LEAVE_ONE_OUT
        return {f"{name}.yaml": _settings_text(name, separator, about, by_time)}
    about = f"For general recommenders. The protocol is msm4sr's:\n# {dataset.split}; full ranking."
    general = _load({**columns, "inter": ["user_id", "item_id"]}) + _benchmark("")
    sequential = _load({**columns, "inter": ["user_id", "item_id_list", "item_id"]}) + _benchmark("-sequential")
    sequential += f"alias_of_item_id: [item_id_list]\nMAX_ITEM_LIST_LENGTH: {LONGEST}\n"
    return {
        f"{name}.yaml": _settings_text(name, separator, about, general),
        f"{name}-sequential.yaml": _settings_text(name, separator, about.replace("general", "sequential"), sequential),
    }


LEAVE_ONE_OUT = """\
eval_args:
  split: {LS: valid_and_test}
  order: TO
  group_by: user
  mode: full
"""


def _benchmark(kind: str) -> str:
    return f"benchmark_filename: [{', '.join(part + kind for part in PARTS)}]\neval_args: {{order: TO, mode: full}}\n"


def _load(columns: Mapping[str, Sequence[str]]) -> str:
    return "load_col:\n" + "".join(f"  {part}: [{', '.join(names)}]\n" for part, names in columns.items())


def _settings_text(name: str, separator: str, about: str, protocol: str) -> str:
    return f"""\
# For RecBole: --config_files with data_path one folder up. {about}
dataset: {name}
field_separator: "\\t"
seq_separator: "{separator if separator.isprintable() else chr(92) + f"x{ord(separator):02x}"}"
USER_ID_FIELD: user_id
ITEM_ID_FIELD: item_id
user_inter_num_interval: "[0,inf)"
item_inter_num_interval: "[0,inf)"
{protocol}metrics: [Recall, NDCG, MRR, MAP, Precision]
topk: [5, 10, 20, 50]
valid_metric: NDCG@10
"""
