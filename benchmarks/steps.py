"""Run some steps of a stage, exactly as `msm4sr pretrain` and `finetune` run them, and measure each.

The stage has its own task and the trainer of the package; only the number of batches is limited, and validation is
skipped. A step is everything from the end of one optimiser step to the end of the next: building the batch (with the
cutting and shuffling of a new epoch), forward, backward, clipping, the optimiser and reading the loss. It does not
include validation and checkpoints.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from msm4sr.data.batches import Batch
from msm4sr.data.dataset import Dataset
from msm4sr.errors import InputError
from msm4sr.experiments.settings import RunSettings
from msm4sr.models.base import Model
from msm4sr.models.item_encoder import ItemEncoder
from msm4sr.models.layers import ItemFeatures
from msm4sr.models.transformer import CausalTransformer
from msm4sr.training.stages import task_for
from msm4sr.training.trainer import Trainer, TrainerOptions

Stage = Literal["pretrain", "finetune"]

PARTS = ("batches", "item encoder", "Transformer", "rest of forward, losses", "backward, clipping", "optimiser")
ENCODER, TRANSFORMER = PARTS[1:3]


@dataclass(frozen=True)
class Step:
    """One step of training."""

    cost: float
    """By the given clock: seconds, or floating-point operations."""
    batch: Batch

    @property
    def pairs(self) -> int:
        return int(self.batch.mask.sum())

    @property
    def slots(self) -> int:
        """Positions of the batch, padding included."""
        return self.batch.items.numel()

    @property
    def tokens(self) -> int:
        """Positions of the batch up to the end of each history."""
        last = self.batch.mask * torch.arange(1, self.batch.mask.shape[1] + 1)
        return int(last.amax(dim=1).sum())


@dataclass(frozen=True)
class Limit:
    """When to stop: after `steps`, or after `seconds` if at least `at_least` steps have run."""

    steps: int
    at_least: int = 2
    seconds: float = float("inf")


class BriefTrainer(Trainer):
    """A trainer whose single epoch runs through the batches of as many epochs as the limit allows."""

    limit: Limit
    used: list[Batch]

    def batches(self, epoch: int) -> Iterator[Batch]:
        began = time.perf_counter()
        for each in itertools.count(epoch):
            for batch in super().batches(each):
                late = len(self.used) >= self.limit.at_least and time.perf_counter() - began > self.limit.seconds
                if late or len(self.used) == self.limit.steps:
                    return
                self.used.append(batch)
                yield batch

    def validate(self) -> dict[str, float]:
        return {self.settings.select: 0.0}


def run_steps(
    stage: Stage,
    model: Model,
    dataset: Dataset,
    settings: RunSettings,
    limit: Limit,
    clock: Callable[[], float] = time.perf_counter,
    listen: Callable[[nn.Module], None] = lambda task: None,
    checkpoints: Path | None = None,
) -> list[Step]:
    """Train `model` for some steps. Ignore the first ones: they warm up, and the first includes the set-up.

    Args:
        stage: `pretrain` or `finetune`.
        model: trained in place.
        dataset: its training histories are used, epoch after epoch.
        settings: of a run.
        limit: when to stop.
        clock: read at the end of each step.
        listen: receives the task, whose call is the forward pass, before training.
        checkpoints: a folder for the checkpoint that ends the training; None: none is written.
    """
    brief = {"epochs": 1, "max_steps": 0}
    settings = settings.model_copy(update={stage: getattr(settings, stage).model_copy(update=brief)})
    task = task_for(model, stage, settings)
    if task is None:
        raise InputError(f"{type(model).__name__} has no stage {stage}")
    listen(task)
    marks = [clock()]
    hooks = on_steps(lambda: None, lambda: marks.append(clock()))
    options = TrainerOptions(settings.seed, settings.device, checkpoints=checkpoints)
    trainer = BriefTrainer(task, getattr(settings, stage), options)
    trainer.limit, trainer.used = limit, []
    try:
        trainer.fit(dataset)
    finally:
        for hook in hooks:
            hook.remove()
    if len(marks) != len(trainer.used) + 1:
        raise RuntimeError(f"{len(trainer.used)} batches, {len(marks) - 1} steps: a step must be the work on one batch")
    costs = (after - before for before, after in itertools.pairwise(marks))
    return [Step(cost, batch) for cost, batch in zip(costs, trainer.used, strict=True)]


def on_steps(begin: Callable[[], None], end: Callable[[], None]) -> list[Any]:
    """Hooks before and after each step of any optimiser; remove them.

    PyTorch calls its hooks for the step of a subclass and, inside, for that of `torch.optim.Adam` too, if the process
    has used that class by itself.
    """
    depth = 0

    def before(*_: object) -> None:
        nonlocal depth
        depth += 1
        if depth == 1:
            begin()

    def after(*_: object) -> None:
        nonlocal depth
        depth -= 1
        if depth == 0:
            end()

    return [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]


class Parts:
    """Seconds of the steps by part of the method. Pass `listen` to `run_steps`.

    Backward is one part: its seconds inside encoder and Transformer cannot be separated. The softmax over the catalogue
    computes its gradient in the forward pass and counts there.
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
            *on_steps(lambda: self._end("backward, clipping"), self._stepped),
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

    def _stepped(self) -> None:
        self._end("optimiser")
        self.steps += 1
        if self.steps == 1:  # set-up and warm-up
            self.seconds.clear()

    def close(self) -> dict[str, float]:
        """Remove the hooks; milliseconds per step of each part."""
        for hook in self._hooks:
            hook.remove()
        return {part: 1000 * self.seconds[part] / max(1, self.steps - 1) for part in PARTS}
