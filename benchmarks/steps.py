"""Some steps of a stage, exactly as `msm4sr pretrain` and `finetune` train, and the cost of each.

The trainer gets fewer batches and no validation. A step is everything from the end of one optimiser step to the end of
the next: making the batch (including the cutting and shuffling at the start of an epoch), forward, backward, clipping,
the optimiser and the reports of the loss. Validation and checkpoints are not included.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from msm4sr.data.batches import Batch
from msm4sr.data.dataset import Dataset
from msm4sr.errors import InputError
from msm4sr.experiments.settings import RunSettings
from msm4sr.models.base import Model
from msm4sr.models.item_encoder import ItemEncoder
from msm4sr.models.layers import ItemFeatures
from msm4sr.models.transformer import CausalTransformer
from msm4sr.training.settings import StageSettings
from msm4sr.training.stages import task_for
from msm4sr.training.task import Task
from msm4sr.training.trainer import Trainer, TrainerOptions

Stage = Literal["pretrain", "finetune"]

PARTS = ("batches", "item encoder", "Transformer", "rest of forward, losses", "backward, clipping", "optimiser")
ENCODER, TRANSFORMER = PARTS[1:3]


@dataclass(frozen=True)
class Step:
    """One step of training."""

    cost: float
    """By the clock that was given: seconds, or floating-point operations."""
    batch: Batch

    @property
    def pairs(self) -> int:
        return int(self.batch.mask.sum())

    @property
    def slots(self) -> int:
        """Places of the batch's table, padding included."""
        return self.batch.items.numel()

    @property
    def tokens(self) -> int:
        """Places of the batch's table up to the end of each history."""
        last = self.batch.mask * torch.arange(1, self.batch.mask.shape[1] + 1)
        return int(last.amax(dim=1).sum())


@dataclass(frozen=True)
class Limit:
    """When to stop: after `steps`, or after `seconds` (wall clock) once there are `at_least` steps."""

    steps: int
    at_least: int = 2
    seconds: float = float("inf")


class FewSteps(Trainer):
    """Trains on the first batches only, epoch after epoch, without validation."""

    def __init__(self, task: Task, settings: StageSettings, options: TrainerOptions, limit: Limit) -> None:
        super().__init__(task, settings.model_copy(update={"epochs": 1, "max_steps": 0}), options)
        self.limit, self.used = limit, list[Batch]()
        self._start = time.perf_counter()

    def batches(self, epoch: int) -> Iterator[Any]:
        for each in itertools.count(epoch):
            for batch in super().batches(each):
                late = time.perf_counter() - self._start > self.limit.seconds
                if len(self.used) == self.limit.steps or (late and len(self.used) >= self.limit.at_least):
                    return
                self.used.append(batch)  # type: ignore[arg-type]
                yield batch

    def validate(self) -> dict[str, float]:
        return {self.settings.select: 0.0}


def run_steps(
    stage: Stage,
    model: Model,
    dataset: Dataset,
    settings: RunSettings,
    *,
    steps: int,
    at_least: int = 2,
    seconds: float = float("inf"),
    clock: Callable[[], float] = time.perf_counter,
    listen: Callable[[nn.Module], None] = lambda task: None,
) -> list[Step]:
    """Train `model` for some steps. The first ones are slower, and the first includes the set-up: skip them.

    Args:
        stage: `pretrain` or `finetune`.
        model: trained in place. At the end it has its first weights again, as a training keeps the best weights.
        dataset: whose training histories are used, epoch after epoch.
        settings: of a run.
        steps: how many, at most.
        at_least: how many, whatever the time.
        seconds: of wall-clock time after which no further step begins.
        clock: read at the end of each step.
        listen: called with the module whose call is the forward pass, before it is used.
    """
    task = task_for(model, stage, settings)
    if task is None:
        raise InputError(f"{stage}: the model has no such stage")
    listen(task)
    options = TrainerOptions(seed=settings.seed, device=settings.device)
    trainer = FewSteps(task, getattr(settings, stage), options, Limit(steps, at_least, seconds))
    marks = [clock()]
    hook = register_optimizer_step_post_hook(lambda *_: marks.append(clock()))
    try:
        trainer.fit(dataset)
    finally:
        hook.remove()
    if len(marks) != len(trainer.used) + 1:
        raise RuntimeError(f"{len(trainer.used)} batches, {len(marks) - 1} steps: a step is not the work on one batch")
    return [
        Step(after - before, batch)
        for (before, after), batch in zip(itertools.pairwise(marks), trainer.used, strict=True)
    ]


class Parts:
    """Where the seconds of the steps go, by the parts of the method. Pass `listen` and `clock` to `run_steps`.

    Backward is one part: its seconds inside encoder and Transformer cannot be told apart from outside. The softmax
    over the catalogue makes its gradient on the way forward, so that it counts there.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.steps = 0
        self._since = time.perf_counter()
        self._hooks: list[Any] = []

    def listen(self, task: nn.Module) -> None:
        for module in task.modules():
            if isinstance(module, ItemEncoder | ItemFeatures):
                self._time(module, ENCODER)
            elif isinstance(module, CausalTransformer):
                self._time(module, TRANSFORMER)
        self._hooks += [
            task.register_forward_pre_hook(lambda *_: self._end("batches")),
            task.register_forward_hook(lambda *_: self._end("rest of forward, losses")),
            register_optimizer_step_pre_hook(lambda *_: self._end("backward, clipping")),
            register_optimizer_step_post_hook(self._stepped),
        ]

    def _time(self, module: nn.Module, part: str) -> None:
        self._hooks += [
            module.register_forward_pre_hook(lambda *_: self._end("rest of forward, losses")),
            module.register_forward_hook(lambda *_: self._end(part)),
        ]

    def _end(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] += now - self._since
        self._since = now

    def _stepped(self, optimizer: Optimizer, arguments: Any, options: Any) -> None:
        self._end("optimiser")
        self.steps += 1
        if self.steps == 1:  # it set up and warmed up
            self.seconds.clear()

    def close(self) -> dict[str, float]:
        """Remove what listens; milliseconds a step of each part."""
        for hook in self._hooks:
            hook.remove()
        return {part: 1000 * self.seconds[part] / max(1, self.steps - 1) for part in PARTS}
