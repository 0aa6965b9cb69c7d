"""Recommendations of a finished run."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from msm4sr.cli.console import MovedData, RunFolder, console, handle_errors
from msm4sr.errors import InputError

if TYPE_CHECKING:
    from msm4sr.recommend.recommender import Recommendation, Recommendations, Recommender

SHOWN = 5  # titles of the history


IncludedCategories = Annotated[
    list[str], typer.Option(metavar="NAME", help="Only items of this category. Can be given several times.")
]
ExcludedCategories = Annotated[
    list[str], typer.Option(metavar="NAME", help="No item of this category. Can be given several times.")
]
ExcludedItems = Annotated[list[str], typer.Option(metavar="ID", help="Not this item. Can be given several times.")]
CategoryBoosts = Annotated[
    list[str],
    typer.Option(
        metavar="NAME=NUMBER",
        help="Add to the scores of a category, in standard deviations of the scores, such as 0.5 or -1.",
    ),
]
ItemBoosts = Annotated[
    list[str], typer.Option(metavar="ID=NUMBER", help="Add to the score of an item; boosts of one item add up.")
]


def recommend(
    folder: RunFolder,
    more: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Further item ids of --history.")] = None,
    user: Annotated[
        str | None, typer.Option("--user", help="A user of the data, by id; needs the data of the run.")
    ] = None,
    history: Annotated[
        list[str] | None,
        typer.Option("--history", metavar="ID [ID]...", help="Item ids, oldest first, or '' for none."),
    ] = None,
    data: MovedData = None,
    k: Annotated[int, typer.Option("-k", help="Number of items.")] = 10,
    include_seen: Annotated[bool, typer.Option("--include-seen", help="Also recommend items of the history.")] = False,
    include_category: IncludedCategories = [],
    exclude_category: ExcludedCategories = [],
    exclude_item: ExcludedItems = [],
    boost_category: CategoryBoosts = [],
    boost_item: ItemBoosts = [],
    diversity: Annotated[
        float, typer.Option(help="0: by score; towards 1: more dissimilar items (maximal marginal relevance).")
    ] = 0.0,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with images to this file.")] = None,
) -> None:
    """Recommend the next items for a user of the data or for any history."""
    with handle_errors():
        if (user is None) == (history is None):
            raise InputError("give either --user USER or --history ID [ID ...]")
        if more and history is None:
            raise InputError(f"unexpected {' '.join(more)!r}; item ids follow --history")
        from msm4sr.experiments.loading import load_recommender
        from msm4sr.recommend.index import IndexSettings
        from msm4sr.recommend.rules import Rules

        rules = Rules(
            include_categories=include_category or None,
            exclude_categories=exclude_category,
            exclude_items=exclude_item,
            boost_categories=_boosts("--boost-category", boost_category),
            boost_items=_boosts("--boost-item", boost_item),
            diversity=diversity,
        )
        given = [item_id for item_id in (*(history or []), *(more or [])) if item_id]
        recommender = load_recommender(folder, IndexSettings(kind="exact"), strict=True, data=data)
        history = given if user is None else _history_of(recommender, user)
        answer = recommender.recommend(history, k, exclude_seen=not include_seen, rules=rules)
        who = _print(recommender, "this history" if user is None else f"user {user}", history, answer)
        if html is not None:
            _write_page(html, who, recommender, history, answer.items)
            console.print(f"page: {html}", markup=False)


def _boosts(option: str, values: list[str]) -> dict[str, float]:
    boosts = defaultdict[str, float](float)  # those of one name add up
    for value in values:
        name, equals, number = value.rpartition("=")
        try:
            boosts[name] += float(number)
        except ValueError:
            equals = ""
        if not equals:
            raise InputError(f"{option} {value!r}: give a name and a number, such as {name or value}=0.5")
    return boosts


def _history_of(recommender: Recommender, user: str) -> list[str]:
    from msm4sr.recommend.users import UnknownUser

    try:
        return recommender.user_history(user)
    except UnknownUser:
        raise
    except InputError as error:
        raise InputError(f"{error}\n--user needs the data of the run; --history needs only its model folder") from None


def _print(recommender: Recommender, who: str, history: list[str], answer: Recommendations) -> str:
    """Print the history and a table of recommendations; whom they are for."""
    column, digits = "score", 3
    if answer.popular:
        who = "an empty history (popular items)"
        if all(item.score.is_integer() for item in answer.items):  # not boosted
            column, digits = "interactions", 0
        console.print("an empty history: the items with the most training interactions", markup=False)
    else:
        shown = [recommender.item(item_id).name for item_id in history[-SHOWN:]]
        latest = f"the latest of {len(history)}" if len(history) > len(shown) else f"all {len(history)}"
        console.print(f"{who}, {latest}: {' · '.join(shown)}", markup=False)
    table = Table(Column("", justify="right"), "item", "title", Column(column, justify="right"))
    for item in answer.items:
        table.add_row(str(item.rank), escape(item.item_id), escape(item.title), f"{item.score:.{digits}f}")
    console.print(table)
    if not answer.items:
        console.print("no item is left to recommend; relax the rules or pass --include-seen", markup=False)
    return who


def _write_page(
    file: Path, who: str, recommender: Recommender, history: list[str], found: list[Recommendation]
) -> None:
    from msm4sr.files import write_text
    from msm4sr.reports.pages.page import ExampleUser, recommendation_page

    example = ExampleUser(
        label=who[0].upper() + who[1:],
        history=[recommender.item(item_id) for item_id in history],
        recommended=[(recommender.item(one.item_id), one.score) for one in found],
    )
    write_text(file, recommendation_page(f"Recommendations for {who}", [example], recommender.folder))
