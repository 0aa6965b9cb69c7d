"""Charts as geometry: values in, coordinates for a small SVG out (drawn by `charts.html.jinja`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

WATCHED = ("recall@20", "ndcg@10")  # metrics whose learning curves are drawn, where a run has logged them
STAGES = {"pretrain": "Pre-training", "finetune": "Fine-tuning"}

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


CHART = Frame(360, 190, left=46, right=14, top=12, bottom=26)  # a phone's width, so that its text is readable there


@dataclass(frozen=True)
class Line:
    """A curve in viewBox units: its points as SVG ("x,y x,y ..."), and the points that are marked."""

    label: str
    points: str
    style: str = ""  # a class of the style sheet: "second", "early" or none
    dots: Sequence[Point] = ()
    best: tuple[Point, str] | None = None  # the highest point, and what it is worth


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
