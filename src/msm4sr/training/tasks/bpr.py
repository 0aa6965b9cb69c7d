"""Bayesian personalised ranking, the training of graph models, on (user, seen item, unseen item)."""

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
from msm4sr.training.settings import StageSettings
from msm4sr.training.task import TASKS, Task


@dataclass  # not frozen: Lightning Fabric cannot convert frozen dataclasses in mixed precision
class PairBatch:
    """P training interactions, each with an item that its user has not seen: int64 [P] each."""

    users: Tensor
    seen: Tensor
    unseen: Tensor

    @property
    def mask(self) -> Tensor:
        """Every row is a pair of the loss."""
        return torch.ones_like(self.users, dtype=torch.bool)


def pair_batches(histories: Ragged, n_items: int, batch_pairs: int, rng: np.random.Generator) -> Iterator[PairBatch]:
    """All interactions of `histories` once, in random order, in batches of `batch_pairs`.

    The unseen item is uniform over all items that its user has not seen. A user who has seen the full catalogue is
    skipped.
    """
    user = np.repeat(np.arange(len(histories), dtype=np.int64), np.diff(histories.offsets))
    item = histories.values.astype(np.int64)
    seen = np.unique(user * n_items + item)  # sorted
    distinct = np.bincount(seen // n_items, minlength=len(histories))
    order = rng.permutation(np.flatnonzero(distinct[user] < n_items))
    for start in range(0, len(order), batch_pairs):
        chosen = order[start : start + batch_pairs]
        unseen = _draw_unseen(user[chosen], seen, n_items, rng)
        yield PairBatch(*(torch.from_numpy(part) for part in (user[chosen], item[chosen], unseen)))


def _draw_unseen(users: np.ndarray, seen: np.ndarray, n_items: int, rng: np.random.Generator) -> np.ndarray:
    """For each of `users`, an item that is not among `seen` (sorted numbers user * N + item)."""
    drawn = rng.integers(0, n_items, len(users))
    clash = np.arange(len(users))
    while len(clash):
        wanted = users[clash] * n_items + drawn[clash]
        place = np.minimum(np.searchsorted(seen, wanted), len(seen) - 1)
        clash = clash[seen[place] == wanted]
        drawn[clash] = rng.integers(0, n_items, len(clash))
    return drawn


def bpr_loss(model: GraphModel, batch: PairBatch) -> Tensor:
    """BPR of the batch, with the model's L2 penalty on the trained vectors of its users and items."""
    users, items = model.nodes()
    user, seen, unseen = take(users, batch.users), take(items, batch.seen), take(items, batch.unseen)
    loss = bayesian_personalised_ranking((user * seen).sum(dim=1), (user * unseen).sum(dim=1))
    if model.config.l2:
        vectors = model.trained_vectors(batch.users, torch.cat([batch.seen, batch.unseen]))
        loss = loss + model.config.l2 * squared_length(vectors) / len(batch.users)
    return loss


@TASKS.register("bpr")
class BPRTask(Task):
    """Minimises `bpr_loss`; an epoch has every training interaction once.

    Raises:
        InputError: the setting `pairs` is "last".
    """

    model: GraphModel
    no_pairs = (
        "every user with training interactions has seen every item: there is no unseen item to draw as a negative"
    )

    def __init__(self, model: GraphModel, settings: StageSettings) -> None:
        super().__init__(model)
        if settings.pairs != "all":
            raise InputError(
                f"{settings.stage}.pairs={settings.pairs}: {model.label} is trained on users and items, not on "
                "prefixes; leave it out"
            )

    def forward(self, step: PairBatch) -> Tensor:
        return bpr_loss(self.model, step)

    def batches(self, histories: Ragged, settings: StageSettings, rng: np.random.Generator) -> Iterator[PairBatch]:
        return pair_batches(histories, self.model.n_items, settings.batch_pairs, rng)

    def count_batches(self, histories: Ragged, settings: StageSettings) -> int:
        return max(1, -(-len(histories.values) // settings.batch_pairs))
