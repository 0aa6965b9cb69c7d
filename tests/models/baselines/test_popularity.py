"""Popularity."""

from __future__ import annotations

import torch
from builders import make_popularity


def test_popularity_ranks_by_training_interactions_whatever_the_history() -> None:
    counts = torch.tensor([3, 0, 5, 1, 1, 0, 9, 2, 4, 4, 7, 8])
    model = make_popularity(counts.tolist())
    catalogue = model.encode_items()
    keys = model.scoring_vectors(catalogue)
    answer = model.score(torch.tensor([[1, 5, 0], [3, 4, 11]]), torch.tensor([3, 2]), catalogue, keys)
    assert torch.equal(answer, counts.float().expand(2, -1))
