"""A stage of training: a task, on the training parts of the histories, stopped by validation. All stages are this."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from msm4sr.data.batches import count_batches, epoch_batches
from msm4sr.data.dataset import Dataset, training_histories
from msm4sr.dotted import flatten
from msm4sr.evaluation.evaluate import EvaluationSettings, evaluate
from msm4sr.models.base import Scorer
from msm4sr.ragged import Ragged
from msm4sr.training.checkpoint import digest
from msm4sr.training.device import Device, Gather, alone
from msm4sr.training.trainer import EpochRecord, Monitor, Silent, StageSettings, TrainingBatch, fit


class Task(nn.Module):
    """What a stage trains a model for: the loss of a batch, the batches, and who is validated.

    A module, which is what Lightning Fabric wraps; weights that it has beside the model's are trained too.

    Attributes:
        gather: reaches the rows of the other processes; a loss in which the pairs of a batch meet one another needs
            it. `fit` sets it, for each batch.
    """

    gather: Gather

    def __init__(self, model: Scorer) -> None:
        super().__init__()
        self.model = model
        self.gather = alone

    def start(self, histories: Ragged) -> None:
        """Told the training parts of the histories, before the first batch. Nothing, unless overridden."""

    @abstractmethod
    def forward(self, batch: Any, generator: torch.Generator) -> Tensor:
        """The loss of a batch, a mean over its pairs; `generator` is for what the task itself draws."""

    def batches(self, histories: Ragged, settings: StageSettings, rng: np.random.Generator) -> Iterator[TrainingBatch]:
        """The batches of one epoch; unless overridden, all pairs (prefix, next item) of the histories once."""
        return epoch_batches(
            histories,
            max_history=self.model.max_history,
            batch_pairs=settings.batch_pairs,
            pairs=settings.pairs,
            rng=rng,
        )

    def count_batches(self, histories: Ragged, settings: StageSettings) -> int:
        """About how many those are."""
        return count_batches(histories, settings.batch_pairs)

    @property
    def scorer(self) -> Scorer:
        """Whom validation ranks by; unless overridden, the model itself."""
        return self.model


class StageOptions(TypedDict, total=False):
    """What `train_stage` takes beside the task, the data and the settings; see there."""

    seed: int
    evaluation: EvaluationSettings
    device: Device
    monitor: Monitor
    on_best: Callable[[dict[str, Tensor], EpochRecord], object]
    checkpoints: Path | None
    resume: bool
    identity: Mapping[str, Any] | None


def train_stage(
    stage: str,
    task: Task,
    dataset: Dataset,
    settings: StageSettings,
    *,
    seed: int = 0,
    evaluation: EvaluationSettings = EvaluationSettings(),
    device: Device = Device(),
    monitor: Monitor = Silent(),
    on_best: Callable[[dict[str, Tensor], EpochRecord], object] = lambda weights, record: None,
    checkpoints: Path | None = None,
    resume: bool = False,
    identity: Mapping[str, Any] | None = None,
) -> list[EpochRecord]:
    """Train `task.model` on the training parts of the histories; the weights of the best validated epoch remain.

    Args:
        stage: its name, for records and messages.
        evaluation: how validation ranks.
        identity: what the result depends on beside settings, seed and data, such as the model's settings.

    See `fit` for the other arguments and what is raised.
    """
    histories = training_histories(dataset)
    task.start(histories)
    return fit(
        task,
        task.model,
        stage=stage,
        settings=settings,
        batches=lambda epoch: task.batches(histories, settings, np.random.default_rng([seed, epoch])),
        steps_per_epoch=task.count_batches(histories, settings),
        validate=lambda: evaluate(task.scorer, dataset, "validation", evaluation),
        seed=seed,
        device=device,
        monitor=monitor,
        on_best=on_best,
        checkpoints=checkpoints,
        resume=resume,
        identity={
            **identity_of(stage, settings, dataset.item_ids, seed),
            "histories": digest(histories.values, histories.offsets),
            "features": digest(*(table.cpu().numpy() for table in _tables(task.model))),
            **flatten({"evaluation": evaluation.model_dump(), "device": {"precision": device.precision}}),
            **(identity or {}),
        },
    )


def identity_of(stage: str, settings: StageSettings, item_ids: Sequence[str], seed: int) -> dict[str, Any]:
    """What the weights of a stage depend on, whatever goes on afterwards."""
    decides = settings.model_dump(mode="json", exclude={"checkpoint_every"})
    return {
        "seed": seed,
        "items": f"{len(item_ids)} items, {digest(*(item.encode() for item in item_ids))}",
        **flatten({stage: decides}),
    }


def _tables(model: nn.Module) -> Iterator[Tensor]:
    """What a model keeps of its inputs; whitening follows from that, with other last bits on another machine."""
    return (table for name, table in model.named_buffers() if ".whitening." not in name)
