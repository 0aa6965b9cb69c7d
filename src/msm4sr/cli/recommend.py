"""Recommendations of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from msm4sr.cli.console import MovedData, RunFolder, console, handle_errors
from msm4sr.errors import InputError

if TYPE_CHECKING:
    from msm4sr.recommend.recommender import Recommendation, Recommender

SHOWN = 5  # titles of the history


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

        given = [item_id for item_id in (*(history or []), *(more or [])) if item_id]
        history = given if user is None else _history_of(folder, data, user)
        who = "this history" if user is None else f"user {user}"
        recommender = load_recommender(folder, IndexSettings(kind="exact"), strict=True, data=data)
        answer = recommender.recommend(history, k, exclude_seen=not include_seen)
        found, column, digits = answer.items, "score", 3
        if answer.popular:
            who, column, digits = "an empty history (popular items)", "interactions", 0
            console.print("an empty history: the items with the most training interactions", markup=False)
        else:
            shown = [recommender.item(item_id).name for item_id in history[-SHOWN:]]
            latest = f"the latest of {len(history)}" if len(history) > len(shown) else f"all {len(history)}"
            console.print(f"{who}, {latest}: {' · '.join(shown)}", markup=False)
        table = Table(Column("", justify="right"), "item", "title", Column(column, justify="right"))
        for item in found:
            table.add_row(str(item.rank), escape(item.item_id), escape(item.title), f"{item.score:.{digits}f}")
        console.print(table)
        if html is not None:
            _write_page(html, who, recommender, history, found)
            console.print(f"page: {html}", markup=False)


def _history_of(folder: Path, data: Path | None, user: str) -> list[str]:
    from msm4sr.experiments.model_folder import check_items
    from msm4sr.experiments.run import open_run
    from msm4sr.experiments.stages import load_run_data
    from msm4sr.recommend.catalogue import user_history

    run = open_run(folder, data=data)
    try:
        dataset = load_run_data(run)
    except InputError as error:
        raise InputError(f"{error}\n--user needs the data of the run; --history needs only its model folder") from None
    check_items(run, dataset)
    return user_history(dataset, user)


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
