"""Measure one size for `growth.py`, in a process of its own, with the package that PYTHONPATH names."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from common import memory_now, memory_peak, reset_memory_peak
from generate import Generator
from steps import Limit, run_steps

from msm4sr.data.dataset import Dataset
from msm4sr.experiments.settings import resolve_settings
from msm4sr.models.base import Inputs
from msm4sr.models.registry import build
from msm4sr.ragged import Ragged

DIMS = {"text": 384, "visual": 256}


def generate_dataset(items: int, users: int, length: int) -> Dataset:
    """Histories of two thirds to four thirds of `length` items."""
    ids = [str(item) for item in range(items)]
    return Dataset(
        folder=Path("generated"),
        user_ids=[str(user) for user in range(users)],
        item_ids=ids,
        histories=Generator(items).histories(users, length),
        items=pl.DataFrame({"item_id": ids}),
        dropped={},
    )


def map_features(items: int, cache: Path) -> dict[str, Ragged]:
    """Embeddings in a mapped file, as those of a feature store."""
    features = {}
    for number, (name, dim) in enumerate(DIMS.items()):
        file = cache / f"{name}-{items}.npy"
        if not file.exists():
            np.save(file, Generator(items).embeddings(dim, 0.5, number))
        rows = torch.from_numpy(np.load(file, mmap_mode="r+"))
        features[name] = Ragged(rows, torch.arange(items + 1))
    return features


def measure(cell: Mapping[str, Any]) -> dict[str, float]:
    """Steps, pairs per second, seconds of the first step, and peak memory in MiB, in all and above the model's."""
    if cell["threads"]:
        torch.set_num_threads(cell["threads"])
    changes = ["device.accelerator=cpu", *cell["changes"], f"model.max_history={cell['history']}"]
    settings = resolve_settings(cell["preset"], changes=changes)
    dataset = generate_dataset(cell["items"], cell["users"], cell["length"])
    features = map_features(cell["items"], Path(cell["cache"]))
    model = build(settings.model, Inputs(cell["items"], features=features)).train()
    loaded = memory_now()
    reset_memory_peak()
    done = run_steps(cell["stage"], model, dataset, settings, Limit(cell["steps"], seconds=cell["seconds"]))
    timed = done[max(1, len(done) // 5) :]  # without the warm-up
    return {
        "steps": len(timed),
        "pairs_per_second": sum(step.pairs for step in timed) / sum(step.cost for step in timed),
        "first_step": done[0].cost,
        "peak": memory_peak(),
        "above": memory_peak() - loaded,
    }


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
