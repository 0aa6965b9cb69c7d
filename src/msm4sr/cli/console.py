"""What the commands share: the console, common options, progress, and the handling of errors."""

from __future__ import annotations

import logging
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from msm4sr.cluster import connected
from msm4sr.errors import InputError
from msm4sr.executors import Executor, LocalExecutor
from msm4sr.files import make_folder
from msm4sr.models.registry import MODELS  # imports no torch
from msm4sr.nodes import Resources
from msm4sr.progress import Update

INTERRUPTED = 130  # 128 + SIGINT, as in shells
NOTHING_WRITTEN = "interrupted; nothing was written"

console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
errors = Console(stderr=True, highlight=False, soft_wrap=True)

Data = Annotated[Path, typer.Argument(help="A prepared folder.", metavar="DATA", show_default=False)]
RunFolder = Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN", show_default=False)]
MovedData = Annotated[Path | None, typer.Option("--data", help="The prepared folder, if it has moved.")]
Out = Annotated[Path, typer.Option("--out", help="The run folder to create.", show_default=False)]
Preset = Annotated[str | None, typer.Option("--preset", help="seed, released or best.", show_default="best")]
_MODELS = MODELS.names()
ModelName = Annotated[
    str | None, typer.Option("--model", help=f"{', '.join(_MODELS[:-1])} or {_MODELS[-1]}.", show_default="msm4sr")
]
WarmStart = Annotated[
    Path | None,
    typer.Option(
        "--warm-start",
        metavar="RUN",
        help="Continue from the weights of a finished run, with its settings and a part of its epochs.",
    ),
]
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
Jobs = Annotated[
    int, typer.Option("--jobs", min=1, help="How many to run side by side on this machine, one process each.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Run on a Ray cluster: HOST:PORT of its head, auto, or local for a new one here.",
    ),
]
Cpus = Annotated[int | None, typer.Option("--cpus", min=1, help="With --ray: CPUs of each worker; default: 1.")]
Gpus = Annotated[float | None, typer.Option("--gpus", min=0, help="With --ray: GPUs of each worker; default: 0.")]
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


def feature_sources(values: list[str]) -> tuple[Path | None, dict[str, Path]]:
    """The values of --features: a folder for extracted features, and files of precomputed embeddings by modality."""
    folders: list[Path] = []
    precomputed: dict[str, Path] = {}
    for value in values:
        named = re.fullmatch(r"([^/\\=.]+)=(.+)", value)
        if named is None or Path(value).is_dir():
            # a run folder means its features
            folders.append(Path(value) / "features" if (Path(value) / "config.yaml").exists() else Path(value))
        elif named[1] in precomputed:
            raise InputError(f"--features {value}: {named[1]} already has a file; give one file per modality")
        else:
            precomputed[named[1]] = Path(named[2])
    if len(folders) > 1:
        raise InputError(f"--features: give one folder, not {' and '.join(map(str, folders))}")
    return (folders[0] if folders else None), precomputed


def check_workers(address: str | None, cpus: int | None, gpus: float | None) -> None:
    """Raise InputError for --cpus or --gpus without --ray."""
    if address is None and (cpus, gpus) != (None, None):
        raise InputError("--cpus and --gpus are those of a worker on a cluster; give --ray, or --devices for a run")


@contextmanager
def chosen_executor(
    jobs: int, address: str | None, cpus: int | None, gpus: float | None, data: Sequence[Path], out: Path
) -> Iterator[Executor]:
    """The executor that the options --jobs, --ray, --cpus and --gpus ask for; `out` is made if it is missing."""
    if address is None:
        yield LocalExecutor(jobs)
        return
    if jobs > 1:
        raise InputError("--jobs is for this machine; with --ray as many run side by side as fit on the cluster")
    make_folder(out)
    with connected(address, Resources(cpus or 1, gpus or 0), data, out) as executor:
        yield executor


def say_next(*words: str | Path) -> None:
    """Print the next command, ready to be copied."""
    console.print("next: msm4sr", shlex.join(str(word) for word in words), markup=False)


class ProgressBars(Progress):
    """Progress bars, for the commands and for the libraries (`msm4sr.progress.Progress`)."""

    @contextmanager
    def task(self, title: str, total: float | None = None, unit: str = "", done: float = 0) -> Iterator[Update]:
        """See `msm4sr.progress.Progress.task`."""
        row = self.add_task(escape(title), total=total, completed=int(done), status="")
        start, here = time.monotonic(), 0.0

        def update(done: float, status: str = "", title: str = "") -> None:
            nonlocal here
            here += done
            speed = f"{here / max(time.monotonic() - start, 1e-9):.0f} {unit}/s" if unit else ""
            self.update(row, advance=done, status=status or speed, description=escape(title) or None)

        try:
            yield update
        finally:
            self.remove_task(row)


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
