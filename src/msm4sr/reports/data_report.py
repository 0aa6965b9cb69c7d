"""The page of a data set, from what a prepared folder holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msm4sr.data.provenance import PROVENANCE
from msm4sr.data.sources.images import is_url
from msm4sr.data.statistics import Statistics
from msm4sr.recommend.recommender import ItemTable
from msm4sr.reports.pages import DataReport, data_page, write_page
from msm4sr.reports.pages.bars import Bars, bars, histogram

SAMPLE = 20  # items shown
MOST_BARS = 48  # of a chart over time; longer periods are counted by year


def write_data_report(statistics: Statistics, file: Path, seed: int = 0) -> Path:
    """Write the page; the items that it shows are drawn with `seed`, those with a picture first."""
    lines = statistics.lines()
    shown = ("Users", "Items", "Interactions", "Sparsity")
    report = DataReport(
        name=statistics.folder.resolve().name,
        headline=[(label, value) for label, value in lines if label in shown],
        lines=[(label, value) for label, value in lines if label not in shown],
        origin=origin_lines(statistics.folder),
        charts=_charts(statistics),
        items=ItemTable.from_items(statistics.items, statistics.folder),
        sample=_sample(statistics, seed),
        note=f"drawn at random among {statistics.n_items:,}, those with a picture first",
    )
    write_page(file, data_page(report))
    return file


def origin_lines(folder: Path) -> list[tuple[str, str]]:
    """What provenance.json says, as label and value; empty without one, or where it is damaged."""
    try:
        record: dict[str, Any] = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        lines = [("Made by", str(record["made_by"])), ("Format", str(record["format"]))]
        for source in record["sources"]:
            lines.append((str(source["file"]), f"{source['bytes']:,} bytes, sha256 {source['sha256'][:16]}"))
        for step in record["steps"]:
            counts = [f"{step[what]:,} {what}" for what in ("interactions", "users", "items") if what in step]
            lines.append((f"After: {step['step']}", ", ".join(counts)))
        lines += [(f"Dropped: {drop['reason']}", f"{drop['count']:,}") for drop in record["dropped"]]
        return [*lines, ("Result", f"sha256 {record['result']['sha256'][:16]}")]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _charts(statistics: Statistics) -> list[Bars]:
    charts = [
        histogram("Interactions of a user", "users", statistics.history_lengths),
        histogram("Interactions of an item", "items", statistics.item_counts),
        histogram("Characters of an item's title and text", "items", statistics.text_lengths),
    ]
    if statistics.months:
        charts.append(_over_time(statistics.months))
    return charts


def _over_time(months: Sequence[tuple[str, int]]) -> Bars:
    if len(months) <= MOST_BARS:
        names = [month for month, _ in months]
        labels = [month if len(months) <= 6 else month[2:] for month in names]
        return bars("Interactions by month", "interactions", names, _apart(labels, 6), [count for _, count in months])
    years: dict[str, int] = {}
    for month, count in months:
        years[month[:4]] = years.get(month[:4], 0) + count
    return bars("Interactions by year", "interactions", list(years), _apart(list(years), 8), list(years.values()))


def _apart(labels: list[str], most: int) -> list[str]:
    """Only so many labels that they stand apart; the others are empty."""
    every = -(-len(labels) // most)
    return [label if place % every == 0 else "" for place, label in enumerate(labels)]


def _sample(statistics: Statistics, seed: int) -> list[tuple[int, str]]:
    """Item rows, and of each its categories."""
    images = statistics.items["image"].to_list()
    pictured = np.array([any(not is_url(name) for name in names or ()) for names in images])
    order = np.random.default_rng(seed).permutation(len(images))
    rows = np.concatenate([order[pictured[order]], order[~pictured[order]]])[:SAMPLE]
    categories = statistics.items["categories"].to_list()
    return [(int(row), ", ".join((categories[row] or [])[:3])) for row in rows]
