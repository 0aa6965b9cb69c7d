"""What both libraries reached, by our evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from msm4sr.evaluation.metrics import mean_metrics
from msm4sr.evaluation.ranking import ranks_of

Reached = tuple[float, float]
"""NDCG@10 on validation and on test."""


def compare(title: str, seeds: int, train: Callable[[int], tuple[Reached, Reached, float]]) -> None:
    """Train both with each seed and print what they reached.

    `train` gives ours, theirs, and how far our scores with RecBole's weights are from its own: RuntimeError where that
    is more than rounding.
    """
    rows: dict[str, list[Reached]] = {"msm4sr": [], "RecBole": []}
    for seed in range(seeds):
        ours, theirs, difference = train(seed)
        rows["msm4sr"].append(ours)
        rows["RecBole"].append(theirs)
        print(f"seed {seed}: with RecBole's weights our scores differ from its own by {difference:.1e} at most")
        if difference > 1e-5:
            raise RuntimeError("the two models are not the same")
    report(f"{title}, {seeds} seeds", rows)


def ndcg_of(scores: np.ndarray, targets: np.ndarray) -> float:
    """NDCG@10 of item `targets` [users] by scores [users, items]."""
    ranks = ranks_of(torch.from_numpy(scores), torch.from_numpy(targets))
    return mean_metrics(ranks.numpy())["ndcg@10"]


def report(title: str, rows: Mapping[str, Sequence[Reached]]) -> None:
    """Print mean and deviation of (validation, test), a pair a seed, of each library."""
    print(f"\n{title}: NDCG@10\n\n| library | validation | test |\n|---|--:|--:|")
    for name, found in rows.items():
        spread = zip(np.mean(found, axis=0), np.std(found, axis=0, ddof=min(1, len(found) - 1)), strict=True)
        cells = [f"{mean:.4f} ± {deviation:.4f}" for mean, deviation in spread]
        print(f"| {name} | {' | '.join(cells)} |")
