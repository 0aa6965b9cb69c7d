"""Some steps of a stage, exactly as `msm4sr pretrain` and `finetune` take them, and what each of them took.

The stage's own function runs; only the loop that it calls is given fewer batches and nothing to validate. A step is
everything from the end of one optimiser step to the end of the next: making the batch (with the cutting and shuffling
of a new epoch, where one begins), forward, backward, clipping, the optimiser and the looks at the loss. Validation and
checkpoints are not in it.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from msm4sr.data.batches import Batch
from msm4sr.data.dataset import Dataset
from msm4sr.experiments.settings import RunSettings
from msm4sr.models.item_encoder import ItemEncoder
from msm4sr.models.layers import ItemFeatures
from msm4sr.models.transformer import CausalTransformer
from msm4sr.training.trainer import fit

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


def run_steps(
    stage: Stage,
    model: nn.Module,
    dataset: Dataset,
    settings: RunSettings,
    *,
    steps: int,
    at_least: int = 2,
    seconds: float = float("inf"),
    clock: Callable[[], float] = time.perf_counter,
    listen: Callable[[nn.Module], None] = lambda task: None,
) -> list[Step]:
    """Train `model` for some steps. The first ones are slower, and the first has the set-up in it: leave them out.

    Args:
        stage: `pretrain` or `finetune`.
        model: trained in place. At the end it has its first weights again, as `fit` leaves the best validated ones.
        dataset: whose training histories are used, epoch after epoch.
        settings: of a run.
        steps: how many, at most.
        at_least: how many, whatever the time.
        seconds: after so long (by the time of day) no further one begins.
        clock: what is read at the end of each step.
        listen: is given the module whose call is the forward pass, before it is used.
    """
    train = getattr(import_module(f"msm4sr.training.{stage}"), stage)
    section = getattr(settings, stage).model_copy(update={"epochs": 1, "max_steps": 0})
    batches: list[Batch] = []
    marks = [clock()]
    began = time.perf_counter()

    def fit_briefly(task: nn.Module, *arguments: Any, **given: Any) -> Any:
        listen(task)
        make = given["batches"]

        def few(epoch: int, *others: Any, **options: Any) -> Iterator[Batch]:
            for each in itertools.count(epoch):
                for batch in make(each, *others, **options):
                    late = len(batches) >= at_least and time.perf_counter() - began > seconds
                    if late or len(batches) == steps:
                        return
                    batches.append(batch)
                    yield batch

        given |= {"batches": few, "validate": lambda: {section.select: 0.0}}
        return fit(task, *arguments, **given)

    with ExitStack() as stack:
        mark = register_optimizer_step_post_hook(lambda *_: marks.append(clock()))
        stack.callback(mark.remove)
        for name, module in list(sys.modules.items()):
            if name.startswith("msm4sr.training.") and getattr(module, "fit", None) is fit:
                stack.enter_context(patch.object(module, "fit", fit_briefly))
        train(model, dataset, section, seed=settings.seed, device=settings.device)
    if len(marks) != len(batches) + 1:
        raise RuntimeError(f"{len(batches)} batches, {len(marks) - 1} steps: a step is no longer the work on one batch")
    return [
        Step(after - before, batch) for (before, after), batch in zip(itertools.pairwise(marks), batches, strict=True)
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
