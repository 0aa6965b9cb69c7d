"""What the commands share: where they print, their common options, progress, and how errors are told."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from msm4sr.errors import InputError
from msm4sr.models.registry import MODELS  # imports no torch
from msm4sr.progress import Advance

if TYPE_CHECKING:  # what is heavy is imported by the command that needs it, so that --help answers at once
    from msm4sr.training.trainer import EpochRecord

INTERRUPTED = 130  # 128 + SIGINT, as shells have it

console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
errors = Console(stderr=True, highlight=False, soft_wrap=True)

Data = Annotated[Path, typer.Argument(help="A prepared folder.", metavar="DATA", show_default=False)]
RunFolder = Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN", show_default=False)]
Out = Annotated[Path, typer.Option("--out", help="The run folder to make.", show_default=False)]
Preset = Annotated[str, typer.Option("--preset", help="seed, released or best.")]
_MODELS = MODELS.names()
ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        help=f"{', '.join(_MODELS[:-1])} or {_MODELS[-1]}.",
    ),
]
SettingsFile = Annotated[
    Path | None,
    typer.Option(
        "--settings",
        metavar="FILE",
        help="YAML with what differs from the preset, such as tuned values; --set comes after it.",
    ),
]
Changes = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Change any setting, e.g. finetune.learning_rate=1e-4."),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Of every random draw; 0 unless the preset says else.")]
FeatureSources = Annotated[
    list[str],
    typer.Option(
        "--features",
        metavar="DIR | NAME=FILE",
        help="DIR: keep extracted features there, to share them between runs. NAME=FILE: vectors of your own for the "
        "modality NAME (text, visual, or any other), Parquet with item_id and vector. May be given several times.",
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="A picture that cannot be used is an error.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run that stands in --out.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")]
Devices = Annotated[
    int | None, typer.Option("--devices", min=1, help="Processes to train with, a device each.", show_default="1")
]
Strategy = Annotated[str | None, typer.Option("--strategy", help="auto or ddp: how several processes train together.")]
Log = Annotated[str | None, typer.Option("--log", help="Also log to tensorboard, mlflow or wandb, under RUN/logs.")]


@contextmanager
def handle_errors(interrupted: str = "interrupted") -> Iterator[None]:
    """What goes wrong, in one line and an exit code: 2 for wrong input, 130 for Ctrl-C.

    Where several processes train together, what goes wrong in all of them is told by the first.
    """
    try:
        with _one_voice():
            yield
    except InputError as error:
        errors.print(f"[red]error:[/red] {escape(str(error))}")
        raise typer.Exit(2) from None
    except FloatingPointError as error:
        errors.print(f"[red]error:[/red] {escape(str(error))}")
        raise typer.Exit(1) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        errors.print(f"[red]error:[/red] {escape(where + (error.strerror or str(error)))}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        errors.print(f"\n[yellow]{escape(interrupted)}[/yellow]")
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def _one_voice() -> Iterator[None]:
    """Keeps a process that is not the first from repeating what the first one tells, or from complaining of its end."""
    try:
        yield
    except BaseException as error:
        if "torch" not in sys.modules:
            raise
        from msm4sr.training.device import first_is_gone, is_lost_connection, rank_here

        rank = rank_here()
        if rank == 0 and is_lost_connection(error):
            errors.print("[red]error:[/red] another process of this training has ended; what it said stands above")
            raise typer.Exit(1) from None
        if rank > 0 and (isinstance(error, KeyboardInterrupt) or first_is_gone()):
            raise typer.Exit(1) from None
        if rank > 0:
            errors.print(f"process {rank} (counted from 0):")
        raise


def say_next(*words: str | Path) -> None:
    """The command that comes next, to be copied as it is."""
    console.print("next: msm4sr", shlex.join(str(word) for word in words), markup=False)


class ProgressBars(Progress):
    """Bars of rich that also show the tasks of the libraries (`msm4sr.progress.Progress`)."""

    @contextmanager
    def task(self, title: str, total: float | None = None, unit: str = "") -> Iterator[Advance]:
        """See `msm4sr.progress.Progress.task`."""
        row = self.add_task(title, total=total)
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
    return ProgressBars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        StatusColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # in a file or a pipe the lines of the epochs are enough
    )


class ConsoleHandler(logging.Handler):
    """Prints what the libraries log, above any progress bar; warnings in yellow."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else None
        console.print(Text(record.getMessage(), style=style or ""))


def log_to_console() -> None:
    """Show the log of the libraries on the console, from INFO on. Safe to call more than once."""
    logger = logging.getLogger("msm4sr")
    if not any(isinstance(handler, ConsoleHandler) for handler in logger.handlers):
        logger.addHandler(ConsoleHandler())
        logger.setLevel(logging.INFO)


class StatusColumn(ProgressColumn):
    """What a task says of itself beside its bar, if it does."""

    def render(self, task: Task) -> Text:
        return Text(task.fields.get("status", ""))


class TrainingProgress:
    """A bar over all steps with the current loss and speed, and (with `lines`) a line an epoch."""

    def __init__(self, progress: Progress, lines: bool = True) -> None:
        self._progress = progress
        self._lines = lines
        self._task: TaskID | None = None
        self._epochs, self._steps = 0, 0

    def start(self, stage: str, epochs: int, steps: int, done: int) -> None:
        self._epochs, self._steps = epochs, steps
        self._task = self._progress.add_task(stage, total=epochs * steps, completed=done, status="")

    def step(self, stage: str, epoch: int, loss: float, steps: int, pairs_per_second: float) -> None:
        assert self._task is not None
        self._progress.update(
            self._task,
            advance=steps,
            description=f"{stage} {epoch}/{self._epochs}",
            status=f"loss {loss:.3f}  {pairs_per_second:.0f} pairs/s",
        )

    def epoch(self, record: EpochRecord, best: bool) -> None:
        assert self._task is not None
        self._progress.update(
            self._task,
            completed=record.epoch * self._steps,
            description=f"{record.stage} {record.epoch}/{self._epochs}",
            status=f"loss {record.loss:.3f}  {record.pairs_per_second:.0f} pairs/s",
        )
        if not self._lines:
            return
        found = " ".join(
            f"{name} {record.validation[name]:.4f}" for name in ("recall@10", "ndcg@10") if record.validation
        )
        self._progress.console.print(
            f"{record.stage} {record.epoch:>3}/{self._epochs}  loss {record.loss:.4f}  "
            f"{record.pairs_per_second:.0f} pairs/s  {found}{'  [green]best so far[/green]' if best else ''}"
        )

    def finish(self, stage: str) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
