"""Prepared folders out of what people have."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
from pydantic import BaseModel, ValidationError
from rich.markup import escape

from msm4sr.cli.console import console, handle_errors, say_next
from msm4sr.errors import InputError

if TYPE_CHECKING:
    from msm4sr.data.sources.pipeline import PrepareReport

Settings = TypeVar("Settings", bound=BaseModel)

prepare = typer.Typer(
    help="Make a prepared folder (interactions.parquet, items.parquet, images/).", no_args_is_help=True
)

NOTHING_WRITTEN = "interrupted; nothing was written"

Made = Annotated[Path, typer.Argument(help="The folder to make.", metavar="OUT", show_default=False)]
Images = Annotated[Path | None, typer.Option("--images", help="A folder of pictures.")]
Keep = Literal["keep", "drop"]
MinRating = Annotated[float | None, typer.Option(help="Interactions rated lower are left out.")]
RULES: dict[str, Any] = {
    "user_core": Annotated[int | None, typer.Option(min=0, help="Users with fewer interactions leave, until all fit.")],
    "item_core": Annotated[int | None, typer.Option(min=0, help="Items with fewer interactions leave, until all fit.")],
    "repeats": Annotated[
        Literal["keep", "last"] | None,
        typer.Option(help="last: of a user's interactions with an item the latest alone stays.  [default: keep]"),
    ],
    "unknown_items": Annotated[Keep | None, typer.Option(help="Interactions whose item the catalogue lacks.")],
    "unseen_items": Annotated[Keep | None, typer.Option(help="Items that nobody took.")],
    "max_invalid_fraction": Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of unusable rows in a file that is put up with.")
    ],
}
"""The options of all formats: the fields of `Rules`."""


def with_rules(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with the options `RULES` in place of its parameter `rules`, which gets them as a dict."""

    @wraps(command)
    def wrapped(**options: Any) -> None:
        command(rules={name: options.pop(name) for name in RULES}, **options)

    signature = inspect.signature(command, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "rules"]
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in RULES.items()
    ]
    wrapped.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *more)}
    return wrapped


def chosen(settings: Settings, **options: Any) -> Settings:
    """The settings with those options that were given."""
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return type(settings).model_validate({**settings.model_dump(exclude_unset=True), **given})
    except ValidationError as error:
        problem = error.errors()[0]
        option = "".join(f"--{str(part).replace('_', '-')}: " for part in problem["loc"])
        raise InputError(option + problem["msg"].removeprefix("Value error, ")) from None


def tell(report: PrepareReport, out: Path) -> None:
    for line in report.lines():
        console.print(escape(line))
    if report.with_addresses:
        say_next("fetch-images", out)
    say_next("run", out, "--out", "RUN")


@prepare.command("amazon")
@with_rules
def prepare_amazon(
    reviews: Annotated[Path, typer.Argument(help="*.json.gz or *.jsonl.gz.", metavar="REVIEWS", show_default=False)],
    meta: Annotated[Path, typer.Argument(help="meta_*.json(l).gz.", metavar="META", show_default=False)],
    out: Made,
    images: Images = None,
    like_paper: Annotated[
        bool, typer.Option("--like-paper", help="Users with at least 5 interactions, repeats collapsed to the last.")
    ] = False,
    max_images: Annotated[int, typer.Option(min=0, help="Pictures of an item at most, the main one first.")] = 1,
    min_rating: MinRating = None,
    *,
    rules: dict[str, Any],
) -> None:
    """From Amazon's public files (of 2014, 2018 or 2023) to a prepared folder."""
    from msm4sr.data.sources import amazon

    with handle_errors(NOTHING_WRITTEN):
        kept = chosen(
            amazon.AMAZON_LIKE_PAPER if like_paper else amazon.AMAZON_RULES,
            min_rating=min_rating,
            **rules,
        )
        tell(amazon.prepare_amazon(reviews, meta, out, images, kept, max_images), out)


@prepare.command("movielens")
@with_rules
def prepare_movielens(
    folder: Annotated[Path, typer.Argument(help="An unpacked archive.", metavar="FOLDER", show_default=False)],
    out: Made,
    texts: Annotated[Path | None, typer.Option(help="A table with the columns item_id and text.")] = None,
    posters: Annotated[Path | None, typer.Option(help="A folder of pictures <movie id>.jpg.")] = None,
    min_rating: MinRating = None,
    *,
    rules: dict[str, Any],
) -> None:
    """From MovieLens (100K, 1M, 10M, 20M, 25M, 32M, latest-small) to a prepared folder."""
    from msm4sr.data.sources import movielens

    with handle_errors(NOTHING_WRITTEN):
        kept = chosen(
            movielens.MOVIELENS_RULES,
            min_rating=min_rating,
            **rules,
        )
        tell(movielens.prepare_movielens(folder, out, texts, posters, kept), out)


@prepare.command("recbole")
@with_rules
def prepare_recbole(
    files: Annotated[
        Path, typer.Argument(help="NAME.inter, or the folder of it.", metavar="FILES", show_default=False)
    ],
    out: Made,
    images: Images = None,
    user: Annotated[str | None, typer.Option(help="Column of the log: who.  [default: user_id]")] = None,
    item: Annotated[str | None, typer.Option(help="Column of both files: what.  [default: item_id]")] = None,
    time: Annotated[str | None, typer.Option(help="Column of the log: when.  [default: timestamp or position]")] = None,
    rating: Annotated[str | None, typer.Option(help="Column of the log.  [default: rating]")] = None,
    title: Annotated[
        str | None, typer.Option(help="Column of the catalogue.  [default: title, movie_title ...]")
    ] = None,
    text: Annotated[str | None, typer.Option(help="Column of the catalogue.  [default: text, description]")] = None,
    categories: Annotated[
        str | None, typer.Option(help="Column of the catalogue.  [default: categories, genre ...]")
    ] = None,
    image: Annotated[str | None, typer.Option(help="Column of the catalogue.  [default: image]")] = None,
    separator: Annotated[str | None, typer.Option(help="Between the values of a list.  [default: a space]")] = None,
    min_rating: MinRating = None,
    *,
    rules: dict[str, Any],
) -> None:
    """From RecBole's atomic files (NAME.inter, NAME.item) to a prepared folder."""
    from msm4sr.data.sources import recbole

    with handle_errors(NOTHING_WRITTEN):
        columns = chosen(
            recbole.RecboleColumns(),
            user=user,
            item=item,
            time=time,
            rating=rating,
            title=title,
            text=text,
            categories=categories,
            image=image,
            separator=separator,
        )
        kept = chosen(
            recbole.RECBOLE_RULES,
            min_rating=min_rating,
            **rules,
        )
        tell(recbole.prepare_recbole(files, out, images, columns, kept), out)


@prepare.command("parquet")
@prepare.command("csv")
@with_rules
def prepare_csv(
    interactions: Annotated[
        Path, typer.Argument(help="The log: CSV, TSV or Parquet.", metavar="INTERACTIONS", show_default=False)
    ],
    items: Annotated[
        Path, typer.Argument(help="The catalogue: CSV, TSV or Parquet.", metavar="ITEMS", show_default=False)
    ],
    out: Made,
    images: Images = None,
    user: Annotated[str, typer.Option(help="Column of the log: who.")] = "user_id",
    item: Annotated[str, typer.Option(help="Column of the log: what.")] = "item_id",
    time: Annotated[str, typer.Option(help="Column of the log: when; '' if its rows are in order.")] = "timestamp",
    time_unit: Annotated[Literal["auto", "s", "ms", "iso"], typer.Option(help="How times are written.")] = "auto",
    rating: Annotated[str, typer.Option(help="Column of the log: how much it was liked.")] = "rating",
    min_rating: MinRating = None,
    item_id: Annotated[str, typer.Option(help="Column of the catalogue: the item's id.")] = "item_id",
    title: Annotated[str, typer.Option(help="Column of the catalogue.")] = "title",
    text: Annotated[list[str], typer.Option(help="Column of the catalogue; several are joined.")] = ["text"],
    categories: Annotated[str, typer.Option(help="Column of the catalogue.")] = "categories",
    separator: Annotated[str, typer.Option(help="Between categories.")] = "|",
    delimiter: Annotated[str | None, typer.Option(help="Between fields, where it is not a comma (.tsv: tab).")] = None,
    image: Annotated[str, typer.Option(help="Column of the catalogue: picture files under --images.")] = "image",
    *,
    rules: dict[str, Any],
) -> None:
    """From tables and a folder of pictures to a prepared folder; says what it kept and dropped, and why."""
    from msm4sr.data.sources import csv

    with handle_errors(NOTHING_WRITTEN):
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
        kept = chosen(
            csv.TABLE_RULES,
            **rules,
        )
        tell(csv.prepare_csv(interactions, items, images, out, chosen(csv.CsvColumns(), **changed), kept), out)


@prepare.command("toyshop")
def prepare_toyshop(
    out: Annotated[Path, typer.Argument(help="The folder to make.", metavar="OUT", show_default=False)],
    users: Annotated[int, typer.Option(min=10)] = 3000,
    items: Annotated[int, typer.Option(min=40)] = 600,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Generate a catalogue with drawn pictures and a log whose taste shows in pictures, in texts and in order."""
    from msm4sr.data.toyshop import generate_toyshop

    with handle_errors("interrupted"):
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise InputError(f"{out}: exists already; name a new or an empty folder")
        generate_toyshop(out, users=users, items=items, seed=seed)
        console.print(f"toyshop: {out}", markup=False)
        say_next("run", out, "--out", "RUN")
