"""The training loop: epochs, validation, early stopping, the best weights kept. Both stages go through it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, Self

import torch
from lightning_fabric import Fabric
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from msm4sr.errors import InputError
from msm4sr.training.checkpoint import set_weights, weights_of

REPORT_EVERY = 10  # steps between two looks at the loss: on a GPU each look waits for the device


class TrainingBatch(Protocol):
    """A batch: a dataclass of tensors with a row a history (or a pair)."""

    @property
    def mask(self) -> Tensor:
        """Bool, True where there is a pair of the loss; the loss is a mean over them."""

    def to(self, device: torch.device) -> Self: ...


class StageSettings(BaseModel):
    """What both stages of training share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(200, ge=0, description="at most; 0 leaves the stage out")
    max_steps: int = Field(0, ge=0, description="at most so many steps, in whole epochs (at least one); 0: no bound")
    learning_rate: float = Field(1e-3, gt=0, description="of Adam")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty of Adam")
    schedule: Literal["constant", "cosine"] = Field(
        "constant",
        description="cosine: warm up over the first 5 % of all steps, then fall to 0 at the last epoch",
    )
    batch_pairs: int = Field(1024, ge=1, description="pairs (prefix, next item) in a batch")
    pairs: Literal["all", "last"] = Field(
        "all", description="all prefixes of a window in one pass, or one prefix a row"
    )
    max_gradient_norm: float = Field(5.0, gt=0, description="longer gradients are scaled down to this norm")
    patience: int = Field(20, ge=1, description="stop after so many validations without a better one")
    validate_every: int = Field(1, ge=1, description="epochs between two validations; the last epoch always has one")
    select: str = Field(
        "recall@20",
        pattern=r"^((recall|ndcg)@(5|10|20|50)|mrr)$",
        description="the validation metric that chooses",
    )


@dataclass(frozen=True)
class EpochRecord:
    """One line of `metrics.jsonl`."""

    stage: str
    epoch: int
    loss: float
    seconds: float
    pairs_per_second: float
    validation: dict[str, float] = field(default_factory=dict)

    def as_row(self) -> dict[str, Any]:
        row = asdict(self)
        validation: dict[str, float] = row.pop("validation")
        return row | validation


class Monitor(Protocol):
    """Who is told of the progress; the default tells nobody."""

    def start(self, stage: str, epochs: int, steps: int, done: int) -> None:
        """So many epochs of about so many steps begin; `done` steps in all were taken before an interruption."""

    def step(self, stage: str, epoch: int, loss: float, steps: int, pairs_per_second: float) -> None:
        """So many more steps were taken; the loss and the speed of the last ones."""

    def epoch(self, record: EpochRecord, best: bool) -> None:
        """An epoch has ended, and validated better than all before it or not."""

    def finish(self, stage: str) -> None:
        """The stage has ended, for whatever reason."""


class Silent:
    """A monitor that says nothing."""

    def start(self, stage: str, epochs: int, steps: int, done: int) -> None: ...
    def step(self, stage: str, epoch: int, loss: float, steps: int, pairs_per_second: float) -> None: ...
    def epoch(self, record: EpochRecord, best: bool) -> None: ...
    def finish(self, stage: str) -> None: ...


class Device(BaseModel):
    """Where and how precisely to compute; handed to Lightning Fabric."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="auto takes a GPU where there is one"
    )
    precision: Literal["32-true", "bf16-mixed"] = Field("32-true", description="of the products; weights stay float32")

    def torch_device(self) -> torch.device:
        """The device that the accelerator names."""
        return Fabric(accelerator=self.accelerator, devices=1).device


def fit(
    task: nn.Module,
    model: nn.Module,
    *,
    stage: str,
    settings: StageSettings,
    batches: Callable[[int], Iterator[TrainingBatch]],
    steps_per_epoch: int,
    validate: Callable[[], dict[str, float]],
    seed: int,
    device: Device = Device(),
    monitor: Monitor = Silent(),
    on_best: Callable[[dict[str, Tensor], EpochRecord], object] = lambda weights, record: None,
) -> list[EpochRecord]:
    """Train `model` until it no longer improves on validation, and leave the best weights in it.

    Args:
        task: holds `model`; `task(batch, generator)` is the loss of a batch, a mean over its pairs.
        model: what is trained.
        stage: its name, for records and messages.
        settings: of the stage.
        batches: the batches of an epoch (numbered from 1).
        steps_per_epoch: about how many those are, for the schedule and the progress bar.
        validate: the validation metrics of the model as it is.
        seed: with the epoch's number it seeds dropout and the generator that the task is given, so that an epoch
            draws the same whatever came before it. The caller's random state is left as it was.
        device: for Lightning Fabric.
        monitor: is told of steps and epochs.
        on_best: is given the weights whenever validation has improved; an interruption loses nothing that it kept.

    Returns:
        A record an epoch.

    Raises:
        FloatingPointError: the loss is no longer a number.
        KeyboardInterrupt: passed on, with the best weights so far in the model.
    """
    epochs = settings.epochs
    if settings.max_steps:
        epochs = min(epochs, max(1, settings.max_steps // steps_per_epoch))
    fabric = Fabric(accelerator=device.accelerator, devices=1, precision=device.precision)
    task.to(fabric.device)
    trained = [p for p in task.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _schedule(settings.schedule, epochs * steps_per_epoch))
    forward, optimizer = fabric.setup(task, optimizer)
    records: list[EpochRecord] = []
    best_value, best_weights, waited = -math.inf, weights_of(model), 0
    monitor.start(stage, epochs, steps_per_epoch, 0)
    try:
        for epoch in range(1, epochs + 1):
            began = time.perf_counter()
            with torch.random.fork_rng(devices=[] if fabric.device.type == "cpu" else None):
                torch.manual_seed(_epoch_seed(seed, epoch))
                generator = torch.Generator(fabric.device).manual_seed(_epoch_seed(seed, epoch) + 1)
                task.train()
                total, n_pairs = torch.zeros((), device=fabric.device), 0
                for step, batch in enumerate(batches(epoch), start=1):
                    pairs = int(batch.mask.sum())  # before it moves: a GPU would have to be waited for
                    loss = forward(batch.to(fabric.device), generator)
                    optimizer.zero_grad()
                    fabric.backward(loss)
                    fabric.clip_gradients(
                        forward,
                        optimizer,
                        max_norm=settings.max_gradient_norm,
                        error_if_nonfinite=False,  # it would wait for the device; the look at the loss tells better
                    )
                    optimizer.step()
                    schedule.step()
                    n_pairs += pairs
                    total += loss.detach() * pairs
                    if step % REPORT_EVERY == 0:
                        speed = n_pairs / (time.perf_counter() - began)
                        monitor.step(stage, epoch, _finite(loss, stage, epoch, step), REPORT_EVERY, speed)
            seconds = time.perf_counter() - began
            if n_pairs == 0:
                raise InputError(f"{stage}: no user has two training items: there is no pair to train on")
            due = epoch % settings.validate_every == 0 or epoch == epochs
            task.eval()
            record = EpochRecord(
                stage,
                epoch,
                _finite(total / n_pairs, stage, epoch, step),
                round(seconds, 3),
                round(n_pairs / seconds, 1),
                validate() if due else {},
            )
            records.append(record)
            improved = due and record.validation[settings.select] > best_value
            if improved:
                best_value, best_weights, waited = record.validation[settings.select], weights_of(model), 0
                on_best(best_weights, record)
            elif due:
                waited += 1
            monitor.epoch(record, improved)
            if waited >= settings.patience:
                break
    finally:
        set_weights(model, best_weights)
        model.eval()
        monitor.finish(stage)
    return records


def _epoch_seed(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch) * 2 % 2**62


def _finite(loss: Tensor, stage: str, epoch: int, step: int) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise FloatingPointError(
            f"{stage}: the loss became {value} in epoch {epoch}, step {step}; try a lower {stage}.learning_rate"
        )
    return value


def _schedule(name: Literal["constant", "cosine"], total: int) -> Callable[[int], float]:
    """The factor of the learning rate at a step."""
    warmup = max(1, total // 20)

    def cosine(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))

    return cosine if name == "cosine" else lambda step: 1.0
