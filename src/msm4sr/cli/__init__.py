"""The command `msm4sr`. Each subcommand reads its options, calls the library, and prints the results."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from importlib.metadata import version
from io import TextIOWrapper
from typing import Annotated

import typer

from msm4sr.cli.compare import compare, report
from msm4sr.cli.console import ConsoleHandler, console
from msm4sr.cli.data import data, fetch_images
from msm4sr.cli.demo import demo
from msm4sr.cli.doctor import doctor
from msm4sr.cli.export import export
from msm4sr.cli.features import features
from msm4sr.cli.prepare import prepare
from msm4sr.cli.recommend import recommend
from msm4sr.cli.serve import serve
from msm4sr.cli.stages import evaluate, extract, finetune, pretrain, run
from msm4sr.cli.tune import tune

app = typer.Typer(
    help="Sequential recommendation from interactions, texts and images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
log = logging.getLogger("msm4sr")
log.addHandler(ConsoleHandler())
log.setLevel(logging.INFO)
commands = run, extract, pretrain, finetune, evaluate, tune, compare, report, recommend, serve, features, demo, doctor
for command in commands:
    app.command()(command)
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
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The options of `msm4sr` itself."""


def main() -> None:
    """The entry point of the command."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a title that the terminal cannot show is printed with "?"
    warnings.filterwarnings("ignore", module=r"(lightning|torch|transformers|sentence_transformers)")
    for name in ("distributed", "rank_zero"):
        logging.getLogger(f"lightning_fabric.utilities.{name}").setLevel(logging.ERROR)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # hides warnings about what several processes need
    # Before torch loads OpenMP (docs/performance.md): a thread that spins for long keeps others from the processor, and
    # waking one that sleeps at once is slow.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    app()
