"""Recommendations out of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from msm4sr.cli.console import RunFolder, console, told
from msm4sr.errors import InputError


def recommend(
    folder: RunFolder,
    more: Annotated[list[str] | None, typer.Argument(metavar="ID", help="More of --history.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="A user of the data: the whole history is used.")] = None,
    history: Annotated[
        list[str] | None, typer.Option("--history", metavar="ID [ID]...", help="Item ids, oldest first.")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="How many items.")] = 10,
    include_history: Annotated[bool, typer.Option("--include-history", help="Items of the history too.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with pictures here.")] = None,
) -> None:
    """The next items for a user of the data or for any history."""
    with told():
        if (user is None) == (history is None):
            raise InputError("name either a user (--user U) or a history (--history ID ID ...)")
        if more and history is None:
            raise InputError(f"unexpected {' '.join(more)!r}; item ids come after --history")
        _recommend(folder, user, [*(history or []), *(more or [])], k, include_history, html)


def _recommend(
    folder: Path, user: str | None, history: list[str], k: int, include_history: bool, html: Path | None
) -> None:
    from msm4sr.experiments.run import check_items, load_run_data, open_run
    from msm4sr.models.registry import from_pretrained
    from msm4sr.serving.pages import HistoryAndRecommendations, recommendation_page, write_page
    from msm4sr.serving.recommender import ItemTable, user_history
    from msm4sr.serving.recommender import recommend as rank

    opened = open_run(folder)
    network = from_pretrained(folder / "model")
    dataset = load_run_data(opened)
    check_items(opened, dataset)
    items = ItemTable.from_dataset(dataset)
    if user is not None:
        history = user_history(dataset, user)
    chosen = rank(network, items, history, k, exclude_history=not include_history)
    who = f"user {user}" if user is not None else "this history"
    shown = [items.titles[items.rows[item]] for item in history[-5:]]
    latest = f"the latest of {len(history)}" if len(history) > len(shown) else f"all {len(history)}"
    console.print(f"{who}, {latest}: {' · '.join(shown)}", markup=False)
    table = Table()
    table.add_column("", justify="right")
    table.add_column("item")
    table.add_column("title")
    table.add_column("score", justify="right")
    for item in chosen:
        table.add_row(str(item.rank), escape(item.item_id), escape(item.title), f"{item.score:.3f}")
    console.print(table)
    if html is not None:
        rows = [items.rows[item] for item in history]
        title = f"Recommendations for {who}"
        write_page(
            html,
            recommendation_page(title, [HistoryAndRecommendations(who[0].upper() + who[1:], rows, chosen, items)]),
        )
        console.print(f"page: {html}", markup=False)
