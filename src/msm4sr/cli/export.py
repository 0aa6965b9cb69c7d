"""Export a prepared folder, or the model of a run, for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from msm4sr.cli.console import NOTHING_WRITTEN, Data, RunFolder, console, handle_errors, say_next
from msm4sr.errors import InputError

if TYPE_CHECKING:
    from msm4sr.data.export import Exported

export = typer.Typer(help="Export a prepared folder, or the model of a run, for other programs.", no_args_is_help=True)

Out = Annotated[Path, typer.Argument(help="The folder to create.", metavar="OUT", show_default=False)]


def report_files(exported: Exported, default_separator: str) -> list[str]:
    """Print what was written; return the option with which `prepare` reads its lists again."""
    for note in exported.notes:
        console.print(f"note     {escape(note)}")
    for path in exported.files:
        console.print(f"written  {escape(str(path))}")
    return [] if exported.separator == default_separator else ["--separator", exported.separator]


@export.command("recbole")
def export_recbole(
    data: Data,
    out: Out,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A setting of the data, such as dataset.split=temporal; repeatable.", metavar="KEY=VALUE"
        ),
    ] = None,
) -> None:
    """Export RecBole's atomic files: NAME.inter, NAME.item and settings for the same protocol. NAME is OUT's name."""
    from msm4sr.data.export import export_recbole

    with handle_errors(NOTHING_WRITTEN):
        from msm4sr.experiments.settings import resolve_settings

        if other := next((change for change in changes or [] if not change.startswith("dataset.")), None):
            raise InputError(f"--set {other}: only settings of the data (dataset.*) change an export")
        split = resolve_settings("seed", "popularity", changes or []).dataset
        exported = export_recbole(data, out, split)
        source = out if split.split == "leave_one_out" else out / f"{out.resolve().name}.inter"  # one of several
        say_next("prepare", "recbole", source, "DATA", "--images", data, *report_files(exported, " "))


@export.command("onnx")
def export_onnx(run: RunFolder, out: Out) -> None:
    """Export the model of a run: the encoders of items and histories as ONNX, and the embeddings of the catalogue."""
    with handle_errors(NOTHING_WRITTEN):
        from msm4sr.experiments.loading import export_run

        for path in export_run(run, out):
            console.print(f"written  {escape(str(path))}")


@export.command("csv")
def export_csv(data: Data, out: Out) -> None:
    """Export interactions.csv and items.csv."""
    from msm4sr.data.export import export_csv

    with handle_errors(NOTHING_WRITTEN):
        exported = export_csv(data, out)
        tables = [path for path in exported.files if path.suffix == ".csv"]
        say_next("prepare", "csv", *tables, "DATA", "--images", data, *report_files(exported, "|"))
