"""The model folder of a run: weights, settings, items and a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from msm4sr.data.dataset import Dataset, item_categories, training_counts
from msm4sr.data.items import Items
from msm4sr.digests import json_digest
from msm4sr.errors import InputError, command, first_line
from msm4sr.experiments.run import Run
from msm4sr.files import write_text
from msm4sr.models.base import Model, RowKind
from msm4sr.models.model_card import TrainingSummary
from msm4sr.tensor_files import read_checksum


class StoredItems(NamedTuple):
    """The items of the stored model, in row order."""

    item_ids: list[str]
    titles: list[str]  # the id of an item without one
    categories: list[list[str]]
    interactions: list[int]  # in training


def save_model(run: Run, dataset: Dataset, model: Model, result: Mapping[str, Any]) -> None:
    """Write the model folder: weights, settings, the items in row order, and a model card with the metrics."""
    folder = run.folder / "model"
    about = result["run"]
    known = {name: about[name] for name in ("data", "preset", "seed", "users", "items", "interactions", "protocol")}
    model.save_pretrained(folder, TrainingSummary(**known, metrics=metric_columns(result)))
    items = Items.from_frame(dataset.items)
    names, categories = [*map(items.name, range(len(items)))], [*map(list, items.categories)]
    write_items(folder, StoredItems(items.item_ids, names, categories, training_counts(dataset).tolist()))
    write_row_ids(folder, row_ids(dataset, model))


def write_items(folder: Path, items: StoredItems) -> None:
    """Write items.json, beside the model.safetensors that the items belong to."""
    content = items._asdict() | {"checksum": _checksum(folder, items)}
    write_text(folder / "items.json", json.dumps(content, ensure_ascii=False))


def row_ids(dataset: Dataset, model: Model) -> dict[RowKind, list[str]]:
    """The ids of what the model has rows of weights for, in row order (see `Model.row_weights`)."""
    kinds = {model.row_kind(name) for name, _ in model.named_parameters()}
    every: dict[RowKind, list[str]] = {
        "items": dataset.item_ids,
        "users": dataset.user_ids,
        "categories": item_categories(dataset)[1],
    }
    return {kind: ids for kind, ids in every.items() if kind in kinds}


def write_row_ids(folder: Path, ids: Mapping[RowKind, list[str]]) -> None:
    """Write rows.json: `row_ids` without the items, which items.json has."""
    content = {kind: names for kind, names in ids.items() if kind != "items"}
    (folder / "rows.json").unlink(missing_ok=True)  # of an earlier model
    if content:
        weights = read_checksum(folder / "model.safetensors")
        write_text(folder / "rows.json", json.dumps({**content, "checksum": json_digest(content, weights)}))


def read_row_ids(run: Run) -> dict[RowKind, list[str]]:
    """What `write_row_ids` was given. Raises InputError for a damaged file, or one of another model."""
    file = run.folder / "model" / "rows.json"
    ids: dict[RowKind, list[str]] = {"items": read_stored_items(run).item_ids}
    if not file.exists():
        return ids
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.pop("checksum") != json_digest(content, read_checksum(file.with_name("model.safetensors"))):
            raise ValueError("it does not belong to model.safetensors")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: damaged ({error}); {command('evaluate', run.folder)} writes it again") from None
    return {**ids, **content}


def metric_columns(result: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """Label to metrics, of validation and test: with seen items included if the run ranks them, and excluded.

    With a temporal split also those of users and of items without training interactions, on test.
    """
    protocols = {"excluded": result["seen_excluded"]}
    if "seen items included" in result["run"]["protocol"]:
        protocols = {"included": result} | protocols
    columns = {
        f"{part}, seen items {word}": of[part] for word, of in protocols.items() for part in ("validation", "test")
    }
    for what, cold in result.get("cold", {}).get("test", {}).items():
        if cold["metrics"]:
            columns[f"test, {what} without training interactions ({cold[what]:,})"] = cold["metrics"]
    return columns


def beyond_accuracy_columns(result: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """Label to metrics beyond accuracy, of test: with seen items included if the run ranks them, and excluded."""
    found = {"excluded": result["beyond_accuracy"]["seen_excluded"]}
    if "seen items included" in result["run"]["protocol"]:
        found = {"included": result["beyond_accuracy"]["seen_included"]} | found
    return {f"seen items {word}": metrics for word, metrics in found.items()}


def read_stored_items(run: Run) -> StoredItems:
    """The items of the stored model. Raises InputError if they are missing."""
    file, remedy = run.folder / "model" / "items.json", f"{command('evaluate', run.folder)} writes it again"
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        items = StoredItems(*(stored[name] for name in StoredItems._fields))
        if not all(isinstance(text, str) for text in chain(items.item_ids, items.titles, *items.categories)):
            raise ValueError("an id, a title or a category is no text")
        complete = len({len(column) for column in items}) == 1
        if not complete or stored["checksum"] != _checksum(file.parent, items):
            raise InputError(f"{file}: does not belong to model.safetensors; {remedy}")
        return items
    except FileNotFoundError:
        raise InputError(
            f"{run.folder}: training is incomplete: continue with `msm4sr run ... --resume`, or with `msm4sr evaluate "
            f"{run.folder}` if every stage is trained"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: damaged ({type(error).__name__}: {first_line(error)}); {remedy}") from None


def _checksum(folder: Path, items: StoredItems) -> str:
    """Binds the items to the weights of the model; titles and categories may be edited."""
    weights = read_checksum(folder / "model.safetensors", "`msm4sr evaluate RUN` writes it again")
    return json_digest(items.item_ids, items.interactions, weights)
