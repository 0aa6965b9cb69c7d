"""Recall, NDCG and MRR of one relevant item per user, from its rank among all items."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

CUTOFFS = (5, 10, 20, 50)


def metrics_per_user(ranks: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    """Each metric for each user.

    Args:
        ranks: float64 [users], the target's rank, 1 is the best; halves where it ties with others.

    Returns:
        `recall@k` = 1 when rank <= k, `ndcg@k` = 1 / log2(rank + 1) when rank <= k (there is one relevant item, so
        that the ideal gain is 1), for k in 5, 10, 20, 50; `mrr` = 1 / rank. Each float64 [users].
    """
    gain = 1 / np.log2(ranks + 1)
    recall = {f"recall@{k}": (ranks <= k).astype(np.float64) for k in CUTOFFS}
    ndcg = {f"ndcg@{k}": np.where(ranks <= k, gain, 0.0) for k in CUTOFFS}
    return recall | ndcg | {"mrr": 1 / ranks}


def mean_metrics(ranks: npt.NDArray[np.float64]) -> dict[str, float]:
    """The means over users of `metrics_per_user`."""
    return {name: float(values.mean()) for name, values in metrics_per_user(ranks).items()}


def chance(n_items: int) -> dict[str, float]:
    """The expected metrics of a random ranking of so many items: every rank is equally likely."""
    return mean_metrics(np.arange(1, n_items + 1, dtype=np.float64))
