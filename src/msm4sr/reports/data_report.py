"""The page of a data set, from what a prepared folder holds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msm4sr.data.items import Item, has_image
from msm4sr.data.schema import PROVENANCE
from msm4sr.data.statistics import Statistics
from msm4sr.files import write_text
from msm4sr.reports.pages.charts import Chart, bar_chart, histogram
from msm4sr.reports.pages.page import render
from msm4sr.reports.pages.thumbnails import Thumbnails

HEADLINE = ("Users", "Items", "Interactions", "Sparsity")
EXAMPLES = 20  # items shown
MOST_BARS = 48  # of a chart over time; longer periods are counted by year


def write_data_report(statistics: Statistics, file: Path, seed: int = 0) -> Path:
    """Write the page of a data set and return its path; `seed` draws the example items."""
    lines = statistics.lines()
    page = render(
        "data.html.jinja",
        title=statistics.folder.resolve().name,
        headline=[(label, value) for label, value in lines if label in HEADLINE],
        statistics=[(label, value) for label, value in lines if label not in HEADLINE],
        origin=_origin(statistics.folder),
        charts=[
            histogram("Interactions per user", "users", statistics.history_lengths),
            histogram("Interactions per item", "items", statistics.item_counts),
            histogram("Characters of title and text per item", "items", statistics.text_lengths),
            *([_over_time(statistics.months)] if statistics.months else []),
        ],
        items=_examples(statistics, seed),
        n_items=statistics.n_items,
        thumbnails=Thumbnails(statistics.folder),
    )
    write_text(file, page)
    return file


def _origin(folder: Path) -> list[tuple[str, str]]:
    """The content of provenance.json, as label and value; empty if it is missing or damaged."""
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


def _over_time(months: Sequence[tuple[str, int]]) -> Chart:
    if len(months) <= MOST_BARS:
        return bar_chart("Interactions per month", "interactions", dict(months), [month for month, _ in months], 5)
    years: Counter[str] = Counter()
    for month, count in months:
        years[month[:4]] += count
    return bar_chart("Interactions per year", "interactions", years, list(years), 8)


def _examples(statistics: Statistics, seed: int) -> list[Item]:
    """Items drawn at random, those with an image first."""
    shown = np.array([has_image(images) for images in statistics.items["image"].to_list()])
    order = np.random.default_rng(seed).permutation(len(shown))
    rows = np.concatenate([order[shown[order]], order[~shown[order]]])[:EXAMPLES]
    return [Item.from_row(statistics.items, row) for row in rows.tolist()]
