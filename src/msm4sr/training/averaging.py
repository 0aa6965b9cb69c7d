"""The average of the weights over the last part of a training, which generalises better than the last weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

ETA = 8  # an average over about the last ninth of the updates
UPDATES = 10  # in an epoch: an update reads all weights, an optimiser's step may read a few rows of a large table


class WeightAverage:
    """The polynomial-decay average of a module's trained weights (Shamir and Zhang 2013, arXiv 1212.1824).

    w_avg = (1 - (eta + 1) / (t + eta)) w_avg + (eta + 1) / (t + eta) w at update t from 1, so that the first weights
    are forgotten. One process averages the rows of a table that it has.
    """

    def __init__(self, module: nn.Module, steps_per_epoch: int) -> None:
        self._weights = [weight for weight in module.parameters() if weight.requires_grad]
        self._averages = [weight.detach().clone() for weight in self._weights]
        self._every = max(1, steps_per_epoch // UPDATES)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Include the weights after a step of the training, from 1, if it is time."""
        if (step - 1) % self._every == 0:
            t = (step - 1) // self._every + 1
            for average, weight in zip(self._averages, self._weights, strict=True):
                average.lerp_(weight, (ETA + 1) / (t + ETA))

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """During the block the module has the averages as its weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for number, weight in enumerate(self._weights):
            weight.data, self._averages[number] = self._averages[number], weight.data
