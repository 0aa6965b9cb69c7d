"""Recommendations out of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from msm4sr.cli.console import RunFolder, console, handle_errors
from msm4sr.errors import InputError


def recommend(
    folder: RunFolder,
    more: Annotated[list[str] | None, typer.Argument(metavar="ID", help="More of --history.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="A user of the data: the whole history is used.")] = None,
    history: Annotated[
        list[str] | None, typer.Option("--history", metavar="ID [ID]...", help="Item ids, oldest first.")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="How many items.")] = 10,
    include_seen: Annotated[bool, typer.Option("--include-seen", help="Items of the history too.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with pictures here.")] = None,
) -> None:
    """The next items for a user of the data or for any history."""
    with handle_errors():
        if (user is None) == (history is None):
            raise InputError("name either a user (--user U) or a history (--history ID ID ...)")
        if more and history is None:
            raise InputError(f"unexpected {' '.join(more)!r}; item ids come after --history")
        _recommend(folder, user, [*(history or []), *(more or [])], k, include_seen, html)


def _recommend(
    folder: Path, user: str | None, history: list[str], k: int, include_seen: bool, html: Path | None
) -> None:
    from msm4sr.experiments.model_folder import check_items
    from msm4sr.experiments.run import open_run
    from msm4sr.experiments.stages import load_run_data
    from msm4sr.models.registry import from_pretrained
    from msm4sr.recommend.recommender import ItemTable, user_history
    from msm4sr.recommend.recommender import recommend as rank
    from msm4sr.reports.pages import HistoryAndRecommendations, recommendation_page, write_page

    opened = open_run(folder)
    network = from_pretrained(folder / "model")
    dataset = load_run_data(opened)
    check_items(opened, dataset)
    items = ItemTable.from_dataset(dataset)
    if user is not None:
        history = user_history(dataset, user)
    chosen = rank(network, items, history, k, exclude_seen=not include_seen)
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
