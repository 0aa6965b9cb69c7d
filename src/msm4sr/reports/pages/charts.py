"""Learning curves as geometry: the numbers of metrics.jsonl in, coordinates for a small SVG out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 360, 190  # viewBox units: drawn for a phone's width, so that its text stays readable there
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 26  # room for the labels

WATCHED = ("recall@20", "ndcg@10")  # metrics that are drawn, where a run has logged them
STAGES = {"pretrain": "Pre-training", "finetune": "Fine-tuning"}


@dataclass(frozen=True)
class Line:
    """One curve. `best` is the marked point (x, y, text) or None where the curve has no best."""

    label: str
    points: str  # "x,y x,y ...", SVG units
    dots: list[tuple[float, float]]  # drawn in place of a line where there is a single point
    best: tuple[float, float, str] | None


@dataclass(frozen=True)
class Chart:
    title: str
    description: str  # for those who do not see it
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def learning_curves(rows: Sequence[Mapping[str, object]]) -> list[Chart]:
    """For each stage a chart of its loss and one of its validation metrics, as far as the rows hold them.

    A row is a line of metrics.jsonl: `stage`, `epoch`, `loss`, metrics. A value that is missing, null or not
    finite is left out of its curve.
    """
    charts = []
    for stage in dict.fromkeys(str(row.get("stage")) for row in rows):
        own = [row for row in rows if str(row.get("stage")) == stage]
        name = STAGES.get(stage, stage)
        logged = {key for row in own for key in row if "@" in key or key == "mrr"}
        metrics = [key for key in WATCHED if key in logged] or sorted(logged)[:2]
        watched = {key: _series(own, key) for key in metrics}
        charts.append(_chart(f"{name}: loss", {"loss": _series(own, "loss")}, from_zero=False))
        charts.append(_chart(f"{name}: validation", watched, from_zero=True))
    return [chart for chart in charts if chart is not None]


def _series(rows: Sequence[Mapping[str, object]], key: str) -> list[tuple[float, float]]:
    points = []
    for row in rows:
        x, y = row.get("epoch"), row.get(key)
        if isinstance(x, int | float) and isinstance(y, int | float) and math.isfinite(y):
            points.append((float(x), float(y)))
    return points


def _chart(title: str, series: Mapping[str, list[tuple[float, float]]], from_zero: bool) -> Chart | None:
    """A chart of curves that share their axes; None where no curve has a point. `from_zero`: y has a 0."""
    series = {label: points for label, points in series.items() if points}
    if not series:
        return None
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    x_low, x_high = min(xs), max(xs)
    y_ticks = ticks(min([*ys, 0.0] if from_zero else ys), max(ys), 4)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def at_x(x: float) -> float:
        share = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def at_y(y: float) -> float:
        return round(HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    lines = []
    for label, points in series.items():
        placed = [(at_x(x), at_y(y)) for x, y in points]
        best = None
        if from_zero:  # a metric: its highest point is the one that model selection took
            x, y = max(points, key=lambda point: point[1])
            best = (at_x(x), at_y(y), f"{y:.4f} at epoch {x:g}")
        path = " ".join(f"{x},{y}" for x, y in placed)
        lines.append(Line(label, path, placed if len(placed) == 1 else [], best))

    whole = [tick for tick in ticks(x_low, x_high, 5) if tick == int(tick) and x_low <= tick <= x_high]
    step = y_ticks[1] - y_ticks[0]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return Chart(
        title=title,
        description=" ".join([f"{title}.", *(_in_words(label, points) for label, points in series.items())]),
        lines=lines,
        x_ticks=[(at_x(tick), f"{tick:g}") for tick in whole or sorted({x_low, x_high})],
        y_ticks=[(at_y(tick), f"{tick:.{digits}f}") for tick in y_ticks],
    )


def _in_words(label: str, points: list[tuple[float, float]]) -> str:
    (first, start), (last, end) = points[0], points[-1]
    return f"{label}: {start:.4g} at epoch {first:g}, {end:.4g} at epoch {last:g}."


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) that enclose low .. high."""
    if high <= low:  # a flat curve still gets an axis
        high = low + (abs(low) * 0.1 or 1.0)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]
