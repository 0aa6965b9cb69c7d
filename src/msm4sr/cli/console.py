"""What the commands share: the console, common options, progress, and the handling of errors."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from msm4sr.errors import InputError
from msm4sr.models.registry import MODELS  # imports no torch
from msm4sr.progress import Advance
from msm4sr.training.callbacks import Callback, EpochRecord, StepRecord, TrainingPlan

INTERRUPTED = 130  # 128 + SIGINT, as in shells

console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
errors = Console(stderr=True, highlight=False, soft_wrap=True)

Data = Annotated[Path, typer.Argument(help="A prepared folder.", metavar="DATA", show_default=False)]
RunFolder = Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN", show_default=False)]
MovedData = Annotated[Path | None, typer.Option("--data", help="The prepared folder, if it has moved.")]
Out = Annotated[Path, typer.Option("--out", help="The run folder to create.", show_default=False)]
Preset = Annotated[str, typer.Option("--preset", help="seed, released or best.")]
_MODELS = MODELS.names()
ModelName = Annotated[str, typer.Option("--model", help=f"{', '.join(_MODELS[:-1])} or {_MODELS[-1]}.")]
SettingsFile = Annotated[
    Path | None,
    typer.Option(
        "--settings", metavar="FILE", help="YAML with changes to the preset, such as tuned values; --set overrides it."
    ),
]
Changes = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change any setting, e.g. finetune.learning_rate=1e-4.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of every random draw; 0 unless the preset sets it.")]
FeatureSources = Annotated[
    list[str],
    typer.Option(
        "--features",
        metavar="DIR | NAME=FILE",
        help="DIR: keep extracted features in DIR, to share them between runs. NAME=FILE: precomputed embeddings for "
        "the modality NAME (text, visual, or any other), Parquet with item_id and vector. Can be given several times.",
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at an image that cannot be used.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run; results are bit-identical.")]
Devices = Annotated[
    int | None,
    typer.Option("--devices", min=1, help="Processes to train with, each on its own device.", show_default="1"),
]
Strategy = Annotated[str | None, typer.Option("--strategy", help="auto or ddp: how several processes train together.")]
Log = Annotated[str | None, typer.Option("--log", help="Also log to tensorboard, mlflow or wandb, under RUN/logs.")]


@contextmanager
def handle_errors(interrupted: str = "interrupted") -> Iterator[None]:
    """Print an error as one line and exit: with 2 for wrong input, 130 for Ctrl-C, 1 for other expected errors.

    When several processes train together, only the first prints an error that they share.
    """
    try:
        with _first_process_only():
            yield
    except (InputError, FloatingPointError) as error:
        errors.print(f"[red]error:[/red] {escape(str(error))}")
        raise typer.Exit(2 if isinstance(error, InputError) else 1) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        errors.print(f"[red]error:[/red] {escape(where + (error.strerror or str(error)))}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        errors.print(f"\n[yellow]{escape(interrupted)}[/yellow]")
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def _first_process_only() -> Iterator[None]:
    """Print an error once: other processes neither repeat an error of the first nor report that it has ended."""
    try:
        yield
    except BaseException as error:
        device = sys.modules.get("msm4sr.training.device")
        if device is None or getattr(device.__spec__, "_initializing", False):  # an import was interrupted
            raise
        from msm4sr.training.device import first_is_gone, is_lost_connection, rank_here

        rank = rank_here()
        if rank == 0 and is_lost_connection(error):
            errors.print("[red]error:[/red] another process of this training has ended; its error is printed above")
            raise typer.Exit(1) from None
        if rank > 0 and (isinstance(error, KeyboardInterrupt) or first_is_gone()):
            raise typer.Exit(1) from None
        if rank > 0:
            errors.print(f"process {rank} (counted from 0):")
        raise


def say_next(*words: str | Path) -> None:
    """Print the next command, ready to be copied."""
    console.print("next: msm4sr", shlex.join(str(word) for word in words), markup=False)


class ProgressBars(Progress):
    """Progress bars, for the commands and for the libraries (`msm4sr.progress.Progress`)."""

    @contextmanager
    def task(self, title: str, total: float | None = None, unit: str = "") -> Iterator[Advance]:
        """See `msm4sr.progress.Progress.task`."""
        row = self.add_task(title, total=total, status="")
        start, done = time.monotonic(), 0.0

        def advance(more: float) -> None:
            nonlocal done
            done += more
            speed = done / max(time.monotonic() - start, 1e-9)
            self.update(row, advance=more, status=f"{speed:.0f} {unit}/s" if unit else "")

        try:
            yield advance
        finally:
            self.update(row, total=total or 1, completed=total or 1)


def progress_bar() -> ProgressBars:
    """Progress bars on the console, removed at the end."""
    return ProgressBars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}", markup=False),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # a file or a pipe gets the lines of the epochs only
    )


class ConsoleHandler(logging.Handler):
    """Prints the log of the libraries, above any progress bar; warnings in yellow."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else None
        console.print(Text(record.getMessage(), style=style or ""))


class TrainingProgress(Callback):
    """A bar over all steps with the current loss and speed, and (with `lines`) a line per epoch."""

    def __init__(self, progress: Progress, lines: bool = True) -> None:
        self._progress, self._lines = progress, lines
        self._task: TaskID | None = None
        self._plan = TrainingPlan("", 0, 0)

    def on_start(self, plan: TrainingPlan) -> None:
        self._plan = plan
        total = plan.epochs * plan.steps_per_epoch
        self._task = self._progress.add_task(plan.stage, total=total, completed=plan.steps_done, status="")

    def on_step(self, record: StepRecord) -> None:
        self._update(record, record.steps)

    def on_epoch_end(self, record: EpochRecord, improved: bool) -> None:
        self._update(record, record.epoch * self._plan.steps_per_epoch)
        if not self._lines:
            return
        metrics = " ".join(
            f"{name} {record.validation[name]:.4f}" for name in ("recall@10", "ndcg@10") if record.validation
        )
        self._progress.console.print(
            f"{record.stage} {record.epoch:>3}/{self._plan.epochs}  loss {record.loss:.4f}  "
            f"{record.pairs_per_second:.0f} pairs/s  {metrics}{'  [green]best so far[/green]' if improved else ''}"
        )

    def on_end(self, error: BaseException | None) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None

    def _update(self, record: StepRecord | EpochRecord, steps: int) -> None:
        assert self._task is not None
        self._progress.update(
            self._task,
            completed=steps,
            description=f"{record.stage} {record.epoch}/{self._plan.epochs}",
            status=f"loss {record.loss:.3f}  {record.pairs_per_second:.0f} pairs/s",
        )
