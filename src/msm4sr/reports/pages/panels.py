"""Small charts side by side that share their axes, one a system: its own curves over those of all others, in grey.

A dozen systems in one chart need a dozen colours, which nobody can tell apart; here a title names the curve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from msm4sr.reports.pages.bars import short
from msm4sr.reports.pages.charts import ticks

WIDTH, HEIGHT = 240, 150  # viewBox units, about pixels where four stand side by side
LEFT, RIGHT, TOP, BOTTOM = 40, 20, 10, 24

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """Points from left to right; `early`: of a stage before the one that counts."""

    points: Points
    early: bool = False


@dataclass(frozen=True)
class Panel:
    title: str
    description: str
    """For those who do not see it."""
    curves: list[tuple[str, bool]]
    """SVG points, and whether the curve is of an earlier stage."""
    dots: list[tuple[float, float]]
    best: tuple[float, float, str] | None
    """The highest point, and what it is worth; None where points are places, which are not compared."""
    ours: bool


@dataclass(frozen=True)
class Panels:
    title: str
    x_name: str
    panels: list[Panel]
    background: list[str]
    """SVG points of the curves of all systems."""
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def panels(
    title: str,
    x_name: str,
    curves: Mapping[str, Sequence[Curve]],
    ours: Sequence[str] = (),
    names: Sequence[str] = (),
) -> Panels | None:
    """A panel for each system that has a point; None where none has.

    Args:
        title, x_name: what is on the y axis, and on the x axis.
        curves: system to its curves, one a seed and stage. The x axis is logarithmic, since systems differ by their
            speed tenfold; what is less than 1 stands at 1.
        ours: systems to mark.
        names: of the places 0, 1, 2, ... that x then holds, evenly spaced.
    """
    there = {name: [curve for curve in own if curve.points] for name, own in curves.items()}
    there = {name: own for name, own in there.items() if own}
    if not there:
        return None
    every = [point for own in there.values() for curve in own for point in curve.points]

    def along(x: float) -> float:
        return x if names else math.log10(max(x, 1.0))

    x_low, x_high = along(min(x for x, _ in every)), along(max(x for x, _ in every))
    y_ticks = ticks(min(0.0, *(y for _, y in every)), max(y for _, y in every), 3)

    def at(point: tuple[float, float]) -> tuple[float, float]:
        across = (along(point[0]) - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        up = (point[1] - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        x = LEFT + across * (WIDTH - LEFT - RIGHT)
        return round(x, 1), round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1)

    def path(curve: Curve) -> str:
        return " ".join(f"{x},{y}" for x, y in map(at, curve.points))

    shown = []
    for name, own in sorted(there.items(), key=lambda item: item[0] not in ours):  # ours first, the order kept
        late = [curve for curve in own if not curve.early] or own
        top = max((point for curve in late for point in curve.points), key=lambda point: point[1])
        where = names[int(top[0])] if names else f"{top[0]:,.0f}"
        dots = [point for curve in own for point in curve.points if names or len(curve.points) == 1]
        shown.append(
            Panel(
                title=name,
                description=f"{name}: {title}, highest {top[1]:.4f} at {x_name} {where}.",
                curves=[(path(curve), curve.early) for curve in own],
                dots=[at(point) for point in dots],
                best=None if names else (*at(top), f"{top[1]:.4f}"),
                ours=name in ours,
            )
        )
    marks = list(enumerate(names)) or [(mark, short(mark)) for mark in _marks(x_low, x_high)]
    digits = max(0, -math.floor(math.log10(y_ticks[1] - y_ticks[0]) + 1e-9))
    return Panels(
        title=title,
        x_name=x_name,
        panels=shown,
        background=[path(curve) for own in there.values() for curve in own if not curve.early],
        x_ticks=[(at((mark, 0))[0], text) for mark, text in marks],
        y_ticks=[(at((every[0][0], tick))[1], f"{tick:.{digits}f}") for tick in y_ticks],
    )


def _marks(low: float, high: float) -> list[int]:
    """Whole numbers with a logarithm from `low` to `high`: three or more where there are so many, few if they do."""
    found: list[int] = []
    for factors in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
        found = [f * 10**power for power in range(8) for f in factors if low <= math.log10(f * 10**power) <= high]
        if len(found) >= 3:
            break
    return found
