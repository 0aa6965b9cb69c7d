"""Items that are drawn for a loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import make_sasrec

from msm4sr.ragged import Ragged
from msm4sr.training.negatives import ItemSampler
from msm4sr.training.settings import FinetuneSettings
from msm4sr.training.tasks.next_item import NextItemTask


def test_items_are_sampled_as_often_as_their_weights_say() -> None:
    weights = torch.tensor([1.0, 0.0, 3.0, 4.0])
    sampler = ItemSampler(weights)
    counts = torch.bincount(sampler.draw(80_000, torch.Generator().manual_seed(0)), minlength=4)
    torch.testing.assert_close(sampler.probabilities, weights / 8)
    torch.testing.assert_close(counts / 80_000, weights / 8, atol=0.01, rtol=0)
    assert counts[1] == 0


def test_candidates_are_drawn_by_the_root_of_their_training_interactions() -> None:
    task = NextItemTask(make_sasrec(n_items=4), FinetuneSettings(candidates="sampled"))
    task.prepare_sampler(Ragged(np.array([0, 0, 0, 2]), np.array([0, 3, 4])))
    weights = np.sqrt([4, 1, 2, 1])  # an item without interactions is drawn too
    assert task.sampler.probabilities.tolist() == pytest.approx((weights / weights.sum()).tolist())
