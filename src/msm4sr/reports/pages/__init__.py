"""Pages for people: recommendations to look at, and the report of a run.

Each page is one file that needs nothing else: styles and pictures are inside it, it runs no script, and its
content security policy forbids any request. Everything that comes from data is escaped by the templates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from msm4sr.recommend.recommender import ItemTable, Recommendation
from msm4sr.reports.pages.bars import Bars
from msm4sr.reports.pages.charts import learning_curves
from msm4sr.reports.pages.page import render
from msm4sr.reports.pages.thumbnails import Tile, Tiles, write_page

__all__ = [
    "DataReport",
    "HistoryAndRecommendations",
    "RunReport",
    "data_page",
    "recommendation_page",
    "report_page",
    "write_page",
]

SHOWN_HISTORY = 10  # items of a history on a page: the newest, which say most about what comes next
HEADLINE = ("recall@20", "ndcg@10", "mrr")


@dataclass(frozen=True)
class HistoryAndRecommendations:
    """One user (or any history) and what was recommended: a section of a page.

    `history` holds item rows of `items`, oldest first. `target` is the row of the item that the user took
    next, where that is known; it is marked if it is among the recommendations.
    """

    user: str
    history: Sequence[int]
    recommendations: Sequence[Recommendation]
    items: ItemTable
    target: int | None = None


@dataclass(frozen=True)
class RunReport:
    """All that the report of a run shows.

    data_lines: label and value, e.g. ("Users", "2,987"), ("Dropped interactions: exact duplicates", "13").
    metrics: {"validation": {"ndcg@10": ...}, "test": {...}}, as in metrics.json.
    curves: the lines of metrics.jsonl (`stage`, `epoch`, `loss`, `seconds`, metrics).
    settings_yaml: the run's config.yaml.
    samples: a few users. comparison: systems and their test metrics, in the order of the table.
    """

    name: str
    data_lines: Sequence[tuple[str, str]]
    metrics: Mapping[str, Mapping[str, float]]
    curves: Sequence[Mapping[str, object]]
    settings_yaml: str
    samples: Sequence[HistoryAndRecommendations] = ()
    comparison: Sequence[tuple[str, Mapping[str, float]]] = ()


@dataclass(frozen=True)
class DataReport:
    """All that the page of a data set shows.

    headline, lines, origin: label and value. sample: item rows of `items` to look at, with a line on each; `note`
    says how they were chosen.
    """

    name: str
    headline: Sequence[tuple[str, str]]
    lines: Sequence[tuple[str, str]]
    origin: Sequence[tuple[str, str]]
    charts: Sequence[Bars]
    items: ItemTable
    sample: Sequence[tuple[int, str]]
    note: str


@dataclass(frozen=True)
class _Card:
    tile: Tile
    title: str
    rank: int | None = None
    score: str = ""
    bar: float = 0.0  # length, 0 .. 100
    is_target: bool = False
    note: str = ""


@dataclass(frozen=True)
class _Person:
    """A section as the template draws it."""

    user: str
    history: list[_Card]
    history_length: int
    recommendations: list[_Card]
    target: str | None
    target_rank: int | None


def recommendation_page(title: str, rows: Sequence[HistoryAndRecommendations]) -> str:
    """One HTML page: each row's history as a strip of pictures, its recommendations as a grid of cards."""
    return render("recommendations.html.jinja", title=title, people=_people(rows))


def report_page(report: RunReport) -> str:
    """A run's report.html: data, metrics, comparison, learning curves, sample recommendations, settings."""
    names = _metric_order(report.metrics.values())
    test = report.metrics.get("test", {})
    compared = _metric_order(values for _, values in report.comparison)
    best = {
        name: max((values[name] for _, values in report.comparison if name in values), default=math.nan)
        for name in compared
    }
    return render(
        "report.html.jinja",
        title=report.name,
        report=report,
        headline=[(name, test[name]) for name in HEADLINE if name in test],
        metric_names=names,
        compared=compared,
        best=best,
        charts=learning_curves(report.curves),
        effort=_effort(report.curves),
        people=_people(report.samples),
    )


def data_page(report: DataReport) -> str:
    """A data set on one page: numbers, where it comes from, distributions, some items with their pictures."""
    tiles, titles = Tiles(), report.items.titles
    return render(
        "data.html.jinja",
        title=report.name,
        headline=report.headline,
        lines=report.lines,
        origin=report.origin,
        charts=report.charts,
        cards=[_Card(tiles.tile(report.items, row), titles[row], note=note) for row, note in report.sample],
        sample_note=report.note,
    )


def _people(rows: Sequence[HistoryAndRecommendations]) -> list[_Person]:
    tiles = Tiles()
    people = []
    for row in rows:
        titles, rows_of = row.items.titles, row.items.rows
        shown = list(row.history)[-SHOWN_HISTORY:]
        scores = [one.score for one in row.recommendations]
        # Bars compare the scores of one list. They start at zero where no score is negative.
        low, high = min([0.0, *scores]), max([0.0, *scores])
        people.append(
            _Person(
                user=row.user,
                history=[_Card(tiles.tile(row.items, item), titles[item]) for item in shown],
                history_length=len(row.history),
                recommendations=[
                    _Card(
                        tile=tiles.tile(row.items, rows_of[one.item_id]),
                        title=one.title,
                        rank=one.rank,
                        score=f"{one.score:.2f}",
                        bar=round(100 * (one.score - low) / (high - low), 1) if high > low else 0.0,
                        is_target=rows_of[one.item_id] == row.target,
                    )
                    for one in row.recommendations
                ],
                target=None if row.target is None else titles[row.target],
                target_rank=next((one.rank for one in row.recommendations if rows_of[one.item_id] == row.target), None),
            )
        )
    return people


def _metric_order(tables: Iterable[Mapping[str, float]]) -> list[str]:
    """Names in reading order: recall by cutoff, ndcg by cutoff, mrr, then any other as it came."""
    names = dict.fromkeys(name for table in tables for name in table)
    measures = ["recall", "ndcg", "mrr"]

    def place(name: str) -> tuple[int, int]:
        measure, _, cutoff = name.partition("@")
        known = measures.index(measure) if measure in measures else len(measures)
        return known, int(cutoff) if cutoff.isdigit() else 0

    return sorted(names, key=place)


def _effort(rows: Sequence[Mapping[str, object]]) -> str:
    """How long training took, in words; empty where nothing was logged."""
    seconds = [value for row in rows if isinstance(value := row.get("seconds"), int | float)]
    if not rows:
        return ""
    epochs = f"{len(rows)} epoch" + ("s" if len(rows) != 1 else "")
    return f"{epochs} in {_duration(sum(seconds))}" if seconds else epochs


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
