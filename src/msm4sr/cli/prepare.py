"""Prepared folders out of what people have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from msm4sr.cli.console import console, say_next, told
from msm4sr.errors import InputError

prepare = typer.Typer(
    help="Make a prepared folder (interactions.parquet, items.parquet, images/).", no_args_is_help=True
)


@prepare.command("csv")
def prepare_csv(
    interactions: Annotated[
        Path, typer.Argument(help="The log: CSV, TSV or Parquet.", metavar="INTERACTIONS", show_default=False)
    ],
    items: Annotated[
        Path, typer.Argument(help="The catalogue: CSV, TSV or Parquet.", metavar="ITEMS", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(help="The folder to make.", metavar="OUT", show_default=False)],
    images: Annotated[Path | None, typer.Option("--images", help="A folder of pictures.")] = None,
    user: Annotated[str, typer.Option(help="Column of the log: who.")] = "user_id",
    item: Annotated[str, typer.Option(help="Column of the log: what.")] = "item_id",
    time: Annotated[str, typer.Option(help="Column of the log: when; '' if its rows are in order.")] = "timestamp",
    time_unit: Annotated[Literal["auto", "s", "ms", "iso"], typer.Option(help="How times are written.")] = "auto",
    rating: Annotated[str, typer.Option(help="Column of the log: how much it was liked.")] = "rating",
    min_rating: Annotated[float | None, typer.Option(help="Interactions rated lower are left out.")] = None,
    item_id: Annotated[str, typer.Option(help="Column of the catalogue: the item's id.")] = "item_id",
    title: Annotated[str, typer.Option(help="Column of the catalogue.")] = "title",
    text: Annotated[list[str], typer.Option(help="Column of the catalogue; several are joined.")] = ["text"],  # noqa: B006
    categories: Annotated[str, typer.Option(help="Column of the catalogue.")] = "categories",
    separator: Annotated[str, typer.Option(help="Between categories.")] = "|",
    delimiter: Annotated[str | None, typer.Option(help="Between fields, where it is not a comma (.tsv: tab).")] = None,
    image: Annotated[str, typer.Option(help="Column of the catalogue: picture files under --images.")] = "image",
) -> None:
    """From tables and a folder of pictures to a prepared folder; says what it kept and dropped, and why."""
    from pydantic import ValidationError

    from msm4sr.data.sources import csv

    with told("interrupted; nothing was written"):
        named = {
            "user": user,
            "item": item,
            "time": time,
            "time_unit": time_unit,
            "rating": rating,
            "min_rating": min_rating,
            "item_id": item_id,
            "title": title,
            "text": tuple(text),
            "categories": categories,
            "separator": separator,
            "delimiter": delimiter,
            "image": image,
        }
        # A column that the user names must be there; one that keeps its default name may be missing.
        changed = {key: value for key, value in named.items() if value != csv.CsvColumns.model_fields[key].default}
        try:
            columns = csv.CsvColumns.model_validate(changed)
        except ValidationError as error:
            problem = error.errors()[0]
            option = "".join(f"--{str(part).replace('_', '-')}: " for part in problem["loc"])
            raise InputError(option + problem["msg"].removeprefix("Value error, ")) from None
        report = csv.prepare_csv(interactions, items, images, out, columns)
        for line in report.lines():
            console.print(escape(line))
        say_next("run", out, "--out", "RUN")


@prepare.command("toyshop")
def prepare_toyshop(
    out: Annotated[Path, typer.Argument(help="The folder to make.", metavar="OUT", show_default=False)],
    users: Annotated[int, typer.Option(min=10)] = 3000,
    items: Annotated[int, typer.Option(min=40)] = 600,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Generate a catalogue with drawn pictures and a log whose taste shows in pictures, in texts and in order."""
    from msm4sr.data.toyshop import generate_toyshop

    with told("interrupted"):
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise InputError(f"{out}: exists already; name a new or an empty folder")
        generate_toyshop(out, users=users, items=items, seed=seed)
        console.print(f"toyshop: {out}", markup=False)
        say_next("run", out, "--out", "RUN")
