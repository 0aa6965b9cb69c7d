"""Small charts side by side that share their axes, one a system: its curves over those of all others, in grey.

A dozen systems in one chart need a dozen colours, which are hard to distinguish; here the title names the curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from msm4sr.reports.pages.charts import Chart, Frame, Line, Point, draw, labelled, short, ticks

PANEL = Frame(240, 150, left=40, right=20, top=10, bottom=24)  # about pixels where four are side by side


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
    """A panel for each system that has a point, ours first; None where none has.

    Args:
        title: what is on the y axis.
        x_name: what is on the x axis. It is logarithmic, since the speeds of systems differ tenfold.
        curves: system to its curves, one a seed and stage.
        ours: systems to mark.
        names: of the values 0, 1, 2, ... of a categorical x axis, on which no point is marked as the highest.
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
