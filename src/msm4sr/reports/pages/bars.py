"""Histograms, and differences with their intervals, as geometry."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from msm4sr.reports.pages.charts import CHART, Bar, Chart, short, ticks
from msm4sr.reports.table_writer import signed

GAP = 2.0  # between bars, viewBox units
EDGES = [0, 1, 2, 3, *(factor * 10**power for power in range(12) for factor in (5, 10, 20))]  # of bins
WIDTH = 100.0  # viewBox units of a strip of a difference, which the page scales to the available width
MOST_LABELS = 12  # on the x axis, so that they do not overlap on a phone


def histogram(title: str, what: str, values: np.ndarray) -> Chart:
    """How many of `values` (integers of 0 or more, one for each `what`) are 0, 1, 2, 3-4, 5-9, 10-19, 20-49, ..."""
    first, last = (int(np.searchsorted(EDGES, bound, side="right")) for bound in (values.min(), values.max()))
    edges = EDGES[first - 1 : last + 1]
    counts = np.histogram(values, np.array(edges))[0]
    names = [f"{low:,}" if high == low + 1 else f"{low:,} to {high - 1:,}" for low, high in itertools.pairwise(edges)]
    return bar_chart(title, what, dict(zip(names, counts.tolist(), strict=True)), [short(edge) for edge in edges])


def bar_chart(
    title: str, what: str, counts: dict[str, int], labels: Sequence[str], most_labels: int = MOST_LABELS
) -> Chart:
    """One bar for each name in `counts`, with its label under the axis where it fits."""
    y_ticks = ticks(0, max(counts.values()), 4)
    y = CHART.y(y_ticks)
    step = (CHART.width - CHART.left - CHART.right) / len(counts)
    gap = GAP if step > 3 * GAP else 0.0
    bars = []
    for number, (name, count) in enumerate(counts.items()):
        x, height = round(CHART.left + number * step + gap / 2, 2), round(y(0) - y(count), 1)
        bars.append(Bar(x, y(count), round(step - gap, 2), height, f"{name}: {count:,} {what}"))
    names, highest = list(counts), max(bars, key=lambda bar: bar.height).text
    shown = range(0, len(bars), math.ceil(len(bars) / most_labels))
    return Chart(
        title=title,
        description=f"{title}: {len(bars)} bars, from {names[0]} to {names[-1]}; the highest is {highest}.",
        frame=CHART,
        x_ticks=[(round(CHART.left + (number + 0.5) * step, 1), labels[number]) for number in shown],
        y_ticks=[(y(tick), short(int(tick))) for tick in y_ticks if tick == int(tick)],
        bars=bars,
    )


@dataclass(frozen=True)
class DifferenceBar:
    """A bar; positions are from 0 to WIDTH, on the scale that all bars of a chart share."""

    label: str
    x: float
    width: float
    low: float
    high: float
    zero: float
    text: str
    interval: str
    sign: int  # 1: significantly above zero, -1: significantly below, 0: neither
    ours: bool


def difference_bars(rows: Sequence[tuple[str, float, float, float, int, bool]]) -> list[DifferenceBar]:
    """Rows of (label, difference, low, high, sign, ours) on one scale that holds zero and all intervals."""
    least = min([0.0, *(low for _, _, low, _, _, _ in rows)])
    most = max([0.0, *(high for _, _, _, high, _, _ in rows)])
    span = (most - least) or 1.0

    def at(value: float) -> float:
        return round(1 + (WIDTH - 2) * (value - least) / span, 2)

    bars = []
    for label, mean, low, high, sign, ours in rows:
        x, width = min(at(0), at(mean)), round(abs(at(mean) - at(0)), 2)
        interval = f"[{signed(low)}, {signed(high)}]"
        bars.append(DifferenceBar(label, x, width, at(low), at(high), at(0), signed(mean), interval, sign, ours))
    return bars
