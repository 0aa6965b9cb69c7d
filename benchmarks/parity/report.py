"""What both libraries reached, by our evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from msm4sr.evaluation.metrics import mean_metrics
from msm4sr.evaluation.ranking import ranks_of


def ndcg_of(scores: np.ndarray, targets: np.ndarray) -> float:
    """NDCG@10 of item `targets` [users] by scores [users, items]."""
    ranks = ranks_of(torch.from_numpy(scores), torch.from_numpy(targets))
    return mean_metrics(ranks.numpy())["ndcg@10"]


def report(title: str, rows: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Print mean and deviation of (validation, test), a pair a seed, of each library."""
    print(f"\n{title}: NDCG@10\n\n| library | validation | test |\n|---|--:|--:|")
    for name, found in rows.items():
        spread = zip(np.mean(found, axis=0), np.std(found, axis=0, ddof=min(1, len(found) - 1)), strict=True)
        cells = [f"{mean:.4f} ± {deviation:.4f}" for mean, deviation in spread]
        print(f"| {name} | {' | '.join(cells)} |")
