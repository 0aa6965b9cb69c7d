"""Train a model in both libraries and print what each reaches, by our evaluation."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Protocol

import numpy as np
import torch
import typer

from msm4sr.data.dataset import Dataset, Targets, load_dataset, test_targets, validation_targets
from msm4sr.evaluation.metrics import mean_metrics
from msm4sr.evaluation.ranking import ranks_of
from msm4sr.experiments.settings import RunSettings

Data = Annotated[Path, typer.Option("--data", help="A prepared folder.", show_default=False)]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="Number of seeds.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads of PyTorch.")]

PARTS = ("validation", "test")
TOLERANCE = 1e-5  # of scores with the same weights

Reached = tuple[float, float]
"""NDCG@10 on validation and on test."""


class Comparison(Protocol):
    """A model that both libraries have."""

    def settings(self, seed: int) -> RunSettings:
        """The settings of both."""

    def train_ours(self, dataset: Dataset, settings: RunSettings) -> Reached:
        """Train our model; the epoch that validates best."""

    def train_theirs(self, dataset: Dataset, settings: RunSettings, folder: Path) -> tuple[Reached, float]:
        """The same in RecBole, and the largest difference between its scores and ours with its weights."""


def compare(comparison: Comparison, title: str, data: Path, seeds: int) -> None:
    """Train both with each seed and print mean and deviation.

    Raises:
        RuntimeError: with RecBole's weights our scores differ from its own by more than rounding.
    """
    rows: dict[str, list[Reached]] = {"msm4sr": [], "RecBole": []}
    for seed in range(seeds):
        settings = comparison.settings(seed)
        dataset = load_dataset(data, settings.dataset)
        rows["msm4sr"].append(comparison.train_ours(dataset, settings))
        with tempfile.TemporaryDirectory() as folder:
            theirs, difference = comparison.train_theirs(dataset, settings, Path(folder))
        rows["RecBole"].append(theirs)
        print(f"seed {seed}: with RecBole's weights our scores differ from its own by {difference:.1e} at most")
        if difference > TOLERANCE:
            raise RuntimeError("the two models are not the same")
    report(f"{title}, {seeds} seeds", rows)


def ndcg_of(scores: np.ndarray, targets: np.ndarray) -> float:
    """NDCG@10 of item `targets` [users] by scores [users, items]."""
    ranks = ranks_of(torch.from_numpy(scores), torch.from_numpy(targets))
    return mean_metrics(ranks.numpy())["ndcg@10"]


def best_epoch(
    folder: Path, epochs: Iterable[int], dataset: Dataset, ndcg: Callable[[np.ndarray, Targets], float]
) -> Reached:
    """NDCG@10 of RecBole's stored scores at the epoch that validates best."""
    targets = (validation_targets(dataset), test_targets(dataset))
    found = [
        tuple(ndcg(np.load(folder / f"scores-{part}-{epoch}.npy"), of) for part, of in zip(PARTS, targets, strict=True))
        for epoch in epochs
    ]
    validation, test = max(found, key=lambda values: values[0])
    return validation, test


def report(title: str, rows: Mapping[str, Sequence[Reached]]) -> None:
    """Print mean and deviation over the seeds of each library."""
    print(f"\n{title}: NDCG@10\n\n| library | validation | test |\n|---|--:|--:|")
    for name, found in rows.items():
        spread = zip(np.mean(found, axis=0), np.std(found, axis=0, ddof=min(1, len(found) - 1)), strict=True)
        cells = [f"{mean:.4f} ± {deviation:.4f}" for mean, deviation in spread]
        print(f"| {name} | {' | '.join(cells)} |")
