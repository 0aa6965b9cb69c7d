"""Histograms as geometry: counts in, coordinates for a small SVG out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from msm4sr.reports.pages.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, ticks

GAP = 2.0  # between bars, viewBox units
LABELS = 12  # on the x axis at most, so that they stand apart on a phone


@dataclass(frozen=True)
class Bar:
    x: float
    y: float
    width: float
    height: float
    text: str
    """Which bin, and how many."""


@dataclass(frozen=True)
class Bars:
    title: str
    description: str
    """For those who do not see it."""
    bars: list[Bar]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def histogram(title: str, what: str, values: np.ndarray) -> Bars:
    """How many of `values` (whole numbers of 0 or more) lie in 0, 1, 2, 3-4, 5-9, 10-19, 20-49, ...

    `what` names what is counted, for example "users".
    """
    edges = [0, 1, 2, 3, 5]
    while edges[-1] <= values.max():
        edges += [factor * 10 ** (len(str(edges[-1])) if edges[-1] >= 5 else 1) for factor in (1, 2, 5)]
    first = max(int(np.searchsorted(edges, values.min(), side="right")) - 1, 0)
    last = int(np.searchsorted(edges, values.max(), side="right"))
    edges = edges[first : last + 1]
    counts = np.histogram(values, np.array(edges))[0] if len(edges) > 1 else np.array([len(values)])
    names = [f"{low:,}" if high == low + 1 else f"{low:,} to {high - 1:,}" for low, high in itertools.pairwise(edges)]
    return bars(title, what, names, [short(edge) for edge in edges[:-1]], counts.tolist())


def bars(title: str, what: str, names: Sequence[str], labels: Sequence[str], counts: Sequence[int]) -> Bars:
    """One bar a name; every so many labels are written under the axis."""
    y_ticks = ticks(0, max(counts), 4)
    step = (WIDTH - LEFT - RIGHT) / len(counts)
    scale = (HEIGHT - TOP - BOTTOM) / y_ticks[-1]
    floor = HEIGHT - BOTTOM
    gap = GAP if step > 3 * GAP else 0.0
    drawn = [
        Bar(
            x=round(LEFT + place * step + gap / 2, 2),
            y=round(floor - count * scale, 1),
            width=round(step - gap, 2),
            height=round(count * scale, 1),
            text=f"{name}: {count:,} {what}",
        )
        for place, (name, count) in enumerate(zip(names, counts, strict=True))
    ]
    every = -(-len(labels) // LABELS)
    most = max(range(len(counts)), key=counts.__getitem__)
    return Bars(
        title=title,
        description=f"{title}: {len(names)} bars, from {names[0]} to {names[-1]}; the highest is {drawn[most].text}.",
        bars=drawn,
        x_ticks=[(round(LEFT + (place + 0.5) * step, 1), labels[place]) for place in range(0, len(labels), every)],
        y_ticks=[(round(floor - tick * scale, 1), short(int(tick))) for tick in y_ticks if tick == int(tick)],
    )


def short(number: int) -> str:
    """`5000` -> `5k`."""
    for size, letter in ((10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return str(number)
