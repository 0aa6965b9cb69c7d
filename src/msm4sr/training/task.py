"""Training tasks, registered by name: the loss, the batches and the validation scorer of a stage."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from msm4sr.data.batches import count_batches, epoch_batches
from msm4sr.models.base import Scorer
from msm4sr.models.item_table import ItemTable
from msm4sr.models.located_items import Limits
from msm4sr.ragged import Ragged
from msm4sr.registry import Registry
from msm4sr.training.device import Gather, gather_own
from msm4sr.training.settings import StageSettings


class TrainingBatch(Protocol):
    """A batch: a dataclass of tensors, one row per history window (or per pair)."""

    @property
    def mask(self) -> Tensor:
        """Bool, True where there is a pair of the loss; the loss is a mean over them."""


class Task(nn.Module):
    """The loss of a batch, the batches of an epoch, and the scorer that validation ranks with.

    It is a module because Lightning Fabric wraps modules; its own weights, if it has any, are trained too.

    Attributes:
        model: the model to train.
        drop: of sequence random drop, see `epoch_batches`.
        no_pairs: the error message if an epoch has no pair.
        sparse_tables: ID embeddings of which a step reads few rows, in one call that has each row once, in ascending
            order, or none; the optimiser changes no others, and several processes divide the table among themselves.
        gather: collects the rows of all processes; the trainer sets it. A loss in which pairs of a
            batch are compared with each other needs it.
        can_pad: whether `prepare` can pad what it makes, so that `forward` can be compiled.
        limits: if not None, `prepare` pads a batch within these limits; the trainer sets them.
    """

    gather: Gather
    can_pad: bool = False
    limits: Limits | None = None
    drop: float = 0.0
    sparse_tables: Sequence[ItemTable] = ()
    no_pairs: ClassVar[str] = "no user has two training items, so there is no pair to train on"

    def __init__(self, model: Scorer) -> None:
        super().__init__()
        self.model = model
        self.gather = gather_own

    def prepare(self, parts: Sequence[Any], rank: int, generator: torch.Generator) -> Any:
        """What `forward` reads: dataclasses, mappings and tensors. By default: the rows of this process.

        It runs on the host, before the step. What needs the sizes of a batch or random numbers belongs here: on a GPU,
        `forward` should never wait for the device.

        Args:
            parts: the rows of each process; together they are the batch.
            rank: the number of this process's part.
            generator: for random draws. It is in the same state in every process: draw for all parts, and take one.
        """
        return parts[rank]

    def count_terms(self, batch: Any) -> int:
        """The number of terms that the loss of a batch is a mean over, by which processes are weighted: its pairs."""
        return int(batch.mask.sum())

    @abstractmethod
    def forward(self, step: Any) -> Tensor:
        """The loss, a mean over the pairs of this process; `step` is from `prepare`, on the device of the model."""

    def batches(self, histories: Ragged, settings: StageSettings, rng: np.random.Generator) -> Iterator[TrainingBatch]:
        """The batches of one epoch. By default: all pairs (prefix, next item) of the histories once."""
        return epoch_batches(
            histories,
            max_history=self.model.max_history,
            batch_pairs=settings.batch_pairs,
            pairs=settings.pairs,
            drop=self.drop,
            rng=rng,
        )

    def count_batches(self, histories: Ragged, settings: StageSettings) -> int:
        """The approximate number of batches in an epoch."""
        return count_batches(
            histories, max_history=self.model.max_history, batch_pairs=settings.batch_pairs, pairs=settings.pairs
        )

    @property
    def scorer(self) -> Scorer:
        """The scorer that validation ranks with. By default: the model itself."""
        return self.model


TASKS = Registry[Callable[[Any, Any], Task]]("training task", "msm4sr.tasks", ["msm4sr.training.tasks"])
"""Makes a task from a model and the settings of its stage."""
