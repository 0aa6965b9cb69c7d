"""The model folder of a run: weights, settings, items and a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from msm4sr.data.dataset import Dataset
from msm4sr.errors import InputError
from msm4sr.experiments.run import Run
from msm4sr.files import write_text
from msm4sr.models.base import Model


def save_model(run: Run, dataset: Dataset, model: Model, result: Mapping[str, Any]) -> None:
    """Write the model folder: weights, settings, the items in row order, and a model card with the metrics."""
    folder = run.folder / "model"
    model.save_pretrained(folder)
    titles = [title or item for title, item in zip(dataset.items["title"], dataset.item_ids, strict=True)]
    items = {"item_ids": dataset.item_ids, "titles": titles}
    write_text(folder / "items.json", json.dumps(items, ensure_ascii=False))
    write_text(folder / "README.md", _model_card(result))


def metric_columns(result: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """Label to metrics, of validation and test: with seen items included if the run ranks them, and excluded."""
    protocols = {"excluded": result["seen_excluded"]}
    if "seen items included" in result["run"]["protocol"]:
        protocols = {"included": result} | protocols
    return {f"{part}, seen items {word}": of[part] for word, of in protocols.items() for part in ("validation", "test")}


def _model_card(result: Mapping[str, Any]) -> str:
    columns = metric_columns(result)
    lines = [["metric", *columns], ["---"] * (len(columns) + 1)]
    lines += [[name, *(f"{column[name]:.4f}" for column in columns.values())] for name in result["test"]]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    about = result["run"]
    return (
        f"# {about['model']} on {about['data']}\n\n"
        f"Trained by msm4sr, preset `{about['preset']}`, seed {about['seed']}, on "
        f"{about['users']:,} users, {about['items']:,} items and {about['interactions']:,} interactions. "
        f"{about['parameters']:,} parameters. Protocol: {about['protocol']}.\n\n"
        f"{table}\n\n"
        "`from msm4sr import from_pretrained; from_pretrained(folder)` loads it. "
        "`items.json` names the items in row order.\n"
    )


def read_item_names(run: Run) -> tuple[list[str], list[str]]:
    """Ids and titles of the items of the stored model, in row order. Raises InputError if they are missing."""
    file = run.folder / "model" / "items.json"
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
        return names["item_ids"], names["titles"]
    except FileNotFoundError:
        raise InputError(
            f"{run.folder}: training is incomplete: continue with `msm4sr run ... --resume`, or with `msm4sr evaluate "
            f"{run.folder}` if every stage is trained"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not readable ({type(error).__name__}); `msm4sr evaluate RUN` makes it") from None


def check_items(run: Run, dataset: Dataset) -> None:
    """Raise InputError if the items of the data set, or their order, differ from those of the stored model."""
    stored, _ = read_item_names(run)
    if stored != dataset.item_ids:
        raise InputError(
            f"{run.data}: the items are no longer those that {run.folder / 'model'} was trained on "
            f"({len(stored):,} then, {dataset.n_items:,} now, or in another order); train again with `msm4sr run`"
        )
