"""The model card: the README.md of a model folder, in the format of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from msm4sr.models.base import Model

TAGS = ("recommender-systems", "sequential-recommendation")
USE = """## Use

```python
from msm4sr import from_pretrained

model = from_pretrained(".")  # this folder, or the name of the model on the hub: "organisation/name"
```

Weights and settings are in `model.safetensors` and `config.json`. `items.json`, where it exists, has the ids, titles,
categories and training interactions of the items, in the order of the model's rows.
"""


@dataclass(frozen=True)
class TrainingSummary:
    """What a model card says about the training of a model."""

    data: str
    """The name of the data set."""
    preset: str
    seed: int
    users: int
    items: int
    interactions: int
    protocol: str
    """How the metrics are measured."""
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Metrics by name, by what they are measured on, such as "test, seen items excluded"; each has the same names."""


def model_card(model: Model, training: TrainingSummary | None = None, license: str | None = None) -> str:
    """The card: metadata as YAML, then what the model is, its data, its metrics, and how to load it.

    Args:
        model: the model that the folder stores.
        training: what it was trained on; None: the card does not say so.
        license: an identifier of the hub, such as "apache-2.0"; None: the card states none.
    """
    name = model.config.name
    title = model.label if training is None else f"{model.label} on {training.data}"
    tags = [*TAGS, *(["multimodal"] if model.uses_features else []), name]
    metadata: dict[str, Any] = {"library_name": "msm4sr", "tags": tags}
    if license is not None:
        metadata["license"] = license
    if training is not None and training.metrics:
        metadata["model-index"] = [{"name": title, "results": _results(training)}]
    parameters = sum(weight.numel() for weight in model.parameters())
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n\n# {title}\n",
        f"A recommender that ranks {model.n_items:,} items after a user's history: the model `{name}` of msm4sr, with "
        f"{parameters:,} parameters.\n",
        *([] if training is None else [_data(training), _table(training)]),
        USE,
    ]
    return "\n".join(parts)


def _data(training: TrainingSummary) -> str:
    return (
        f"## Data\n\n`{training.data}`: {training.users:,} users, {training.items:,} items and "
        f"{training.interactions:,} interactions. Preset `{training.preset}`, seed {training.seed}.\n"
    )


def _table(training: TrainingSummary) -> str:
    columns = training.metrics
    names = list(next(iter(columns.values()), {}))
    lines = [["metric", *columns], ["---"] * (len(columns) + 1)]
    lines += [[name, *(f"{column[name]:.4f}" for column in columns.values())] for name in names]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## Metrics\n\n{table}\n\nProtocol: {training.protocol}.\n"


def _results(training: TrainingSummary) -> list[dict[str, Any]]:
    """The metrics as the hub reads them."""
    return [
        {
            "task": {"type": "sequential-recommendation", "name": "Sequential recommendation"},
            "dataset": {"type": training.data, "name": f"{training.data} ({what})"},
            "metrics": [{"type": name, "value": round(value, 6)} for name, value in metrics.items()],
        }
        for what, metrics in training.metrics.items()
    ]
