"""Bayesian personalised ranking: the training of the graph models, on (user, item taken, item not taken)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from msm4sr.errors import InputError
from msm4sr.models.graph_model import GraphModel
from msm4sr.models.layers import take
from msm4sr.objectives import bayesian_personalised_ranking, squared_length
from msm4sr.ragged import Ragged
from msm4sr.training.stage import Task
from msm4sr.training.trainer import StageSettings


@dataclass  # not frozen: Lightning Fabric refuses to pass frozen ones on in mixed precision
class PairBatch:
    """P interactions of the training, each with an item that its user did not take: int64 [P] each."""

    users: Tensor
    taken: Tensor
    not_taken: Tensor

    @property
    def mask(self) -> Tensor:
        """Every row is a pair of the loss."""
        return torch.ones_like(self.users, dtype=torch.bool)

    def to(self, device: torch.device) -> PairBatch:
        return PairBatch(self.users.to(device), self.taken.to(device), self.not_taken.to(device))


def pair_batches(histories: Ragged, n_items: int, batch_pairs: int, rng: np.random.Generator) -> Iterator[PairBatch]:
    """All interactions of `histories` once, in random order, in batches of `batch_pairs`.

    The item not taken is drawn alike from all that its user did not take. A user who took the whole catalogue has
    none, and is left out.
    """
    user = np.repeat(np.arange(len(histories), dtype=np.int64), np.diff(histories.offsets))
    item = histories.values.astype(np.int64)
    taken = np.unique(user * n_items + item)  # sorted
    distinct = np.bincount(taken // n_items, minlength=len(histories))
    order = rng.permutation(np.flatnonzero(distinct[user] < n_items))
    for start in range(0, len(order), batch_pairs):
        chosen = order[start : start + batch_pairs]
        not_taken = _draw(user[chosen], taken, n_items, rng)
        yield PairBatch(*(torch.from_numpy(part) for part in (user[chosen], item[chosen], not_taken)))


def _draw(users: np.ndarray, taken: np.ndarray, n_items: int, rng: np.random.Generator) -> np.ndarray:
    """For each of `users` an item that is not among `taken` (sorted numbers user * N + item)."""
    drawn = rng.integers(0, n_items, len(users))
    clash = np.arange(len(users))
    while len(clash):
        wanted = users[clash] * n_items + drawn[clash]
        place = np.minimum(np.searchsorted(taken, wanted), len(taken) - 1)
        clash = clash[taken[place] == wanted]
        drawn[clash] = rng.integers(0, n_items, len(clash))
    return drawn


def count_pair_batches(histories: Ragged, batch_pairs: int) -> int:
    """How many batches an epoch has."""
    return max(1, -(-len(histories.values) // batch_pairs))


def bpr_loss(model: GraphModel, batch: PairBatch) -> Tensor:
    """BPR of the batch, with the model's L2 penalty on the trained vectors that the batch names."""
    users, items = model.nodes()
    user, taken, not_taken = take(users, batch.users), take(items, batch.taken), take(items, batch.not_taken)
    loss = bayesian_personalised_ranking((user * taken).sum(dim=1), (user * not_taken).sum(dim=1))
    if model.config.l2:
        vectors = model.trained_vectors(batch.users, torch.cat([batch.taken, batch.not_taken]))
        loss = loss + model.config.l2 * squared_length(vectors) / len(batch.users)
    return loss


class BPRTask(Task):
    """`bpr_loss`, as a task: an epoch has every interaction of the training once."""

    model: GraphModel

    def __init__(self, model: GraphModel, settings: StageSettings) -> None:
        super().__init__(model)
        if getattr(settings, "logit_adjustment", 0):
            raise InputError("finetune.logit_adjustment is for a softmax, and this model learns by bpr: leave it off")

    def forward(self, batch: PairBatch, generator: torch.Generator) -> Tensor:
        return bpr_loss(self.model, batch)

    def batches(self, histories: Ragged, settings: StageSettings, rng: np.random.Generator) -> Iterator[PairBatch]:
        return pair_batches(histories, self.model.n_items, settings.batch_pairs, rng)

    def count_batches(self, histories: Ragged, settings: StageSettings) -> int:
        return count_pair_batches(histories, settings.batch_pairs)
