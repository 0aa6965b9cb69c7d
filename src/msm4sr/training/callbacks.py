"""Callbacks: observers of a training, such as a progress bar, a logger or the record of a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from msm4sr.progress import Progress, Update

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingPlan:
    """What a training is about to do."""

    stage: str
    epochs: int  # at most
    steps_per_epoch: int  # approximately
    steps_done: int = 0  # before an interruption


@dataclass(frozen=True)
class StepRecord:
    """A report inside an epoch, every few steps."""

    stage: str
    epoch: int  # from 1
    steps: int  # of all epochs so far
    loss: float  # of the latest step
    pairs_per_second: float  # mean of the epoch so far


@dataclass(frozen=True)
class EpochRecord:
    """One line of `metrics.jsonl`."""

    stage: str
    epoch: int  # from 1
    loss: float  # mean over the pairs of the epoch
    seconds: float  # of training, without validation
    pairs_per_second: float  # training pairs divided by `seconds`
    validation: dict[str, float] = field(default_factory=dict)  # by name; empty for an epoch without validation

    def as_row(self) -> dict[str, Any]:
        """As flat JSON."""
        row = asdict(self)
        validation: dict[str, float] = row.pop("validation")
        return row | validation

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The inverse of `as_row`."""
        own = ("stage", "epoch", "loss", "seconds", "pairs_per_second")
        validation = {key: value for key, value in row.items() if key not in own}
        return cls(**{key: row[key] for key in own}, validation=validation)


class Callback:
    """An observer of a training, called in the first process. Hooks do nothing unless overridden.

    An exception from a hook ends the training; the model keeps the best weights so far.
    """

    def on_start(self, plan: TrainingPlan) -> None:
        """The training starts or resumes."""

    def on_step(self, record: StepRecord) -> None:
        """More steps are done."""

    def on_best(self, record: EpochRecord) -> None:
        """Validation has improved, and the current weights are kept as those of the best epoch."""

    def on_epoch_end(self, record: EpochRecord, improved: bool) -> None:
        """An epoch is complete; `improved`: its validation is the best so far."""

    def on_end(self, error: BaseException | None) -> None:
        """The training has ended; `error` is the exception that ended it, None after a success."""


class TrainingProgress(Callback):
    """A bar over all steps with the current loss and speed, and (with `lines`) a line of the log per epoch.

    `title` is shown before the stage and the epoch.
    """

    def __init__(self, progress: Progress, title: str = "", lines: bool = True) -> None:
        self._progress, self._title, self._lines = progress, title, lines
        self._bar = ExitStack()
        self._update: Update
        self._plan = TrainingPlan("", 0, 0)
        self._steps = 0

    def on_start(self, plan: TrainingPlan) -> None:
        self._plan, self._steps = plan, plan.steps_done
        total = plan.epochs * plan.steps_per_epoch
        title = f"{self._title} {plan.stage}".strip()
        self._update = self._bar.enter_context(self._progress.task(title, total, done=plan.steps_done))

    def on_step(self, record: StepRecord) -> None:
        self._show(record, record.steps)

    def on_epoch_end(self, record: EpochRecord, improved: bool) -> None:
        self._show(record, record.epoch * self._plan.steps_per_epoch)
        if not self._lines:
            return
        metrics = " ".join(
            f"{name} {record.validation[name]:.4f}" for name in ("recall@10", "ndcg@10") if record.validation
        )
        logger.info(
            "%s %3d/%d  loss %.4f  %.0f pairs/s  %s%s",
            record.stage,
            record.epoch,
            self._plan.epochs,
            record.loss,
            record.pairs_per_second,
            metrics,
            "  best so far" if improved else "",
        )

    def on_end(self, error: BaseException | None) -> None:
        self._bar.close()

    def _show(self, record: StepRecord | EpochRecord, steps: int) -> None:
        title = f"{self._title} {record.stage} {record.epoch}/{self._plan.epochs}".strip()
        status = f"loss {record.loss:.3f}  {record.pairs_per_second:.0f} pairs/s"
        self._update(steps - self._steps, status, title)
        self._steps = steps
