"""Charts as geometry: values in, coordinates for a small SVG out (drawn by `charts.html.jinja`).

Panels are small charts that share their axes, one per system: its curves over those of the others, in grey.
A dozen systems in one chart need a dozen colours, which are hard to distinguish; here the title names the curve.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from msm4sr.reports.table_writer import signed

WATCHED = ("recall@20", "ndcg@10")  # metrics whose learning curves are drawn, if a run has logged them
STAGES = {"pretrain": "Pre-training", "finetune": "Fine-tuning"}
GAP = 2.0  # between bars, viewBox units
EDGES = [0, 1, 2, 3, *(factor * 10**power for power in range(12) for factor in (5, 10, 20))]  # of bins
WIDTH = 100.0  # viewBox units of a strip of a difference, which the page scales to the available width
MOST_LABELS = 12  # on the x axis, so that they do not overlap on a phone

Point = tuple[float, float]
Ticks = Sequence[tuple[float, str]]
"""Position and label of each."""


@dataclass(frozen=True)
class Scale:
    """A map from values `low` to `high` to positions `start` to `end`; on a logarithmic one values below 1 are at 1."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = map(self._linear, (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.end - self.start), 1)

    def _linear(self, value: float) -> float:
        return math.log10(max(value, 1.0)) if self.log else value


@dataclass(frozen=True)
class Frame:
    """The size of a chart in viewBox units, and the margins that hold the labels of its axes."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float

    def x(self, low: float, high: float, log: bool = False) -> Scale:
        return Scale(low, high, self.left, self.width - self.right, log)

    def y(self, ticks: Sequence[float]) -> Scale:
        return Scale(ticks[0], ticks[-1], self.height - self.bottom, self.top)


CHART = Frame(360, 190, left=46, right=14, top=12, bottom=26)  # as wide as a phone, for readable text
PANEL = Frame(240, 150, left=40, right=20, top=10, bottom=24)  # about pixels when four are side by side


@dataclass(frozen=True)
class Line:
    """A curve in viewBox units: its points as SVG ("x,y x,y ..."), and the points that are marked."""

    label: str
    points: str
    style: str = ""  # a class of the stylesheet: "second", "early" or none
    dots: Sequence[Point] = ()
    best: tuple[Point, str] | None = None  # the highest point and its label


@dataclass(frozen=True)
class Bar:
    """A bar in viewBox units; `text` says which bin, and how many."""

    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass(frozen=True)
class Chart:
    """Lines or bars in a frame; `ours` marks the system that a page is about."""

    title: str
    description: str  # for screen readers
    frame: Frame
    x_ticks: Ticks
    y_ticks: Ticks
    lines: Sequence[Line] = ()
    bars: Sequence[Bar] = ()
    ours: bool = False


def learning_curves(epochs: Sequence[Mapping[str, object]]) -> list[Chart]:
    """For each stage a chart of its loss and one of its validation metrics, as far as they were logged.

    Curves skip values that are missing, null or not finite in `epochs`, the lines of metrics.jsonl.
    """
    charts = []
    for stage in dict.fromkeys(str(epoch.get("stage")) for epoch in epochs):
        own = [epoch for epoch in epochs if str(epoch.get("stage")) == stage]
        logged = {key for epoch in own for key in epoch if "@" in key or key == "mrr"}
        metrics = [key for key in WATCHED if key in logged] or sorted(logged)[:2]
        for what, keys in (("loss", ["loss"]), ("validation", metrics)):
            series = {key: points for key in keys if (points := _points(own, key))}
            if series:
                charts.append(_learning_curve(f"{STAGES.get(stage, stage)}: {what}", series, what == "validation"))
    return charts


def _points(epochs: Sequence[Mapping[str, object]], key: str) -> list[Point]:
    return [
        (float(x), float(y))
        for x, y in ((epoch.get("epoch"), epoch.get(key)) for epoch in epochs)
        if isinstance(x, int | float) and isinstance(y, int | float) and math.isfinite(y)
    ]


def _learning_curve(title: str, series: Mapping[str, list[Point]], is_metric: bool) -> Chart:
    """Curves that share their axes. The y axis of a metric begins at 0, and its highest point is marked."""
    xs, ys = zip(*(point for points in series.values() for point in points), strict=True)
    y_ticks = ticks(min([*ys, 0.0] if is_metric else ys), max(ys), 4)
    x, y = CHART.x(min(xs), max(xs)), CHART.y(y_ticks)
    lines, words = [], [f"{title}."]
    for style, (label, points) in zip(("", "second"), series.items(), strict=False):
        (first, start), (last, end) = points[0], points[-1]
        words.append(f"{label}: {start:.4g} at epoch {first:g}, {end:.4g} at epoch {last:g}.")
        epoch, value = max(points, key=lambda point: point[1])
        best = ((x(epoch), y(value)), f"{value:.4f} at epoch {epoch:g}") if is_metric else None
        lines.append(replace(draw(label, points, x, y, style), best=best))
    integers = [tick for tick in ticks(x.low, x.high, 5) if tick == int(tick) and x.low <= tick <= x.high]
    x_ticks = [(x(tick), f"{tick:g}") for tick in integers or sorted({x.low, x.high})]
    return Chart(title, " ".join(words), CHART, x_ticks, labelled(y_ticks, y), lines)


def draw(label: str, points: Sequence[Point], x: Scale, y: Scale, style: str = "", dots: bool = False) -> Line:
    """A line through points. With `dots` each is marked, and so is a single one."""
    at = [(x(across), y(up)) for across, up in points]
    svg = " ".join(f"{across},{up}" for across, up in at)
    return Line(label, svg, style, at if dots or len(at) == 1 else [])


def labelled(values: Sequence[float], scale: Scale) -> Ticks:
    """Ticks at evenly spaced values, with as many decimals as their distance needs."""
    digits = max(0, -math.floor(math.log10(values[1] - values[0]) + 1e-9))
    return [(scale(value), f"{value:.{digits}f}") for value in values]


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) that enclose low .. high."""
    if high <= low:  # a flat curve still gets an axis
        high = low + (abs(low) * 0.1 or 1.0)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def short(number: int) -> str:
    """`5000` -> `5k`."""
    for size, letter in ((10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return str(number)


@dataclass(frozen=True)
class Curve:
    """Points from left to right; `early`: of a stage before the last one."""

    points: Sequence[Point]
    early: bool = False


@dataclass(frozen=True)
class Panels:
    """Charts with the same axes; `background`: the curves of all systems, as SVG points."""

    title: str
    x_name: str
    panels: list[Chart]
    background: list[str]


def panels(
    title: str, x_name: str, curves: Mapping[str, Sequence[Curve]], ours: Sequence[str] = (), names: Sequence[str] = ()
) -> Panels | None:
    """A panel for each system that has a point, those of `ours` first and marked; None if none has.

    The y axis shows `title`, the x axis `x_name`: logarithmic, since the speeds of systems differ tenfold, or the
    categories `names` at 0, 1, 2, ..., and then no point is marked as the highest. A system has a curve for each seed
    and stage.
    """
    drawn = {name: there for name, own in curves.items() if (there := [curve for curve in own if curve.points])}
    if not drawn:
        return None
    xs, ys = zip(*(point for own in drawn.values() for curve in own for point in curve.points), strict=True)
    y_ticks = ticks(min(0.0, *ys), max(ys), 3)
    x, y = PANEL.x(min(xs), max(xs), log=not names), PANEL.y(y_ticks)
    marks = list(enumerate(names)) or [(mark, short(mark)) for mark in _marks(x.low, x.high)]
    axes = Chart(title, "", PANEL, [(x(mark), label) for mark, label in marks], labelled(y_ticks, y))
    charts = []
    for name in sorted(drawn, key=lambda name: name not in ours):
        own = drawn[name]
        last = [curve for curve in own if not curve.early] or own
        across, value = max((point for curve in last for point in curve.points), key=lambda point: point[1])
        where = names[int(across)] if names else f"{across:,.0f}"
        lines = [draw(name, curve.points, x, y, "early" if curve.early else "", bool(names)) for curve in own]
        if not names:
            lines.append(Line(name, "", best=((x(across), y(value)), f"{value:.4f}")))
        description = f"{name}: {title}, highest {value:.4f} at {x_name} {where}."
        charts.append(replace(axes, title=name, description=description, lines=lines, ours=name in ours))
    background = [draw("", curve.points, x, y).points for own in drawn.values() for curve in own if not curve.early]
    return Panels(title, x_name, charts, background)


def _marks(low: float, high: float) -> list[int]:
    """Round numbers from `low` to `high`: at least three of them, if there are so many."""
    for factors in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
        found = [f * 10**power for power in range(8) for f in factors if max(low, 1) <= f * 10**power <= max(high, 1)]
        if len(found) >= 3:
            break
    return found


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
    """One bar for each name in `counts`, with its label under the axis if it fits."""
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
