"""The command `msm4sr`. Each subcommand reads its options, calls the library, and prints the results."""

from __future__ import annotations

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from io import TextIOWrapper
from typing import Annotated

import typer

from msm4sr.cli.compare import compare, report
from msm4sr.cli.console import INTERRUPTED, ConsoleHandler, console, handle_errors
from msm4sr.cli.data import data, fetch_images
from msm4sr.cli.demo import demo
from msm4sr.cli.doctor import doctor
from msm4sr.cli.evaluate import evaluate
from msm4sr.cli.export import export
from msm4sr.cli.features import features
from msm4sr.cli.prepare import prepare
from msm4sr.cli.recommend import recommend
from msm4sr.cli.serve import serve
from msm4sr.cli.stages import extract, finetune, pretrain, run
from msm4sr.cli.tune import tune
from msm4sr.threads import spin_briefly, use_free_cores

app = typer.Typer(
    help="Sequential recommendation from interactions, texts and images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")  # of a process among those that train together
log = logging.getLogger("msm4sr")
log.addHandler(ConsoleHandler())
log.setLevel(logging.INFO)


def _on_free_cores(command: Callable[..., None]) -> Callable[..., None]:
    """A command that first chooses its threads, and prints the choice."""

    @functools.wraps(command)
    def wrapped(*arguments: object, **options: object) -> None:
        with handle_errors():
            choice = use_free_cores()
        if choice is not None and all(os.environ.get(name, "0") == "0" for name in RANKS):
            console.print(str(choice), markup=False)
        command(*arguments, **options)

    return wrapped


training: tuple[Callable[..., None], ...] = run, extract, pretrain, finetune, evaluate, tune, compare, demo
commands: tuple[Callable[..., None], ...] = *training[:-1], report, recommend, serve, features, demo, doctor
for command in commands:
    app.command()(_on_free_cores(command) if command in training else command)
app.command("fetch-images")(fetch_images)
app.add_typer(prepare, name="prepare")
app.add_typer(data, name="data")
app.add_typer(export, name="export")


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"msm4sr {version('msm4sr')}", markup=False)
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The options of `msm4sr` itself."""
    if context.invoked_subcommand not in {command.__name__ for command in (*training, doctor)}:
        spin_briefly()


def main() -> None:
    """The entry point of the command."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a title that the terminal cannot show is printed with "?"
    warnings.filterwarnings("ignore", module=r"(lightning|torch|transformers|sentence_transformers)")
    for name in ("distributed", "rank_zero"):
        logging.getLogger(f"lightning_fabric.utilities.{name}").setLevel(logging.ERROR)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # hides warnings about what several processes need
    try:
        app()
    except KeyboardInterrupt:  # before a command has begun
        sys.exit(INTERRUPTED)
