"""Small charts side by side that share their axes, one a system: its curves over those of all others, in grey.

A dozen systems in one chart need a dozen colours, which are hard to distinguish; here the title names the curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from msm4sr.reports.pages.charts import Chart, Frame, Line, Point, Scale, Ticks, labelled, short, svg_points, ticks

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
    title: str,
    x_name: str,
    curves: Mapping[str, Sequence[Curve]],
    ours: Sequence[str] = (),
    names: Sequence[str] = (),
) -> Panels | None:
    """A panel for each system that has a point, ours first; None where none has.

    Args:
        title: what is on the y axis.
        x_name: what is on the x axis. It is logarithmic, since the speeds of systems differ tenfold; values below 1 are
            drawn at 1.
        curves: system to its curves, one a seed and stage.
        ours: systems to mark.
        names: of the values 0, 1, 2, ... of a categorical x axis, evenly spaced. Such points are not compared: none
            is marked as the highest.
    """
    drawn = {name: [curve for curve in own if curve.points] for name, own in curves.items()}
    drawn = {name: own for name, own in drawn.items() if own}
    if not drawn:
        return None
    xs, ys = zip(*(point for own in drawn.values() for curve in own for point in curve.points), strict=True)
    y_ticks = ticks(min(0.0, *ys), max(ys), 3)
    axes = _Axes(title, x_name, names, PANEL.x(min(xs), max(xs), log=not names), PANEL.y(y_ticks), y_ticks)
    return Panels(
        title=title,
        x_name=x_name,
        panels=[
            axes.panel(name, drawn[name], name in ours) for name in sorted(drawn, key=lambda name: name not in ours)
        ],
        background=[
            svg_points(curve.points, axes.x, axes.y) for own in drawn.values() for curve in own if not curve.early
        ],
    )


@dataclass(frozen=True)
class _Axes:
    """The axes that all panels share."""

    title: str
    x_name: str
    names: Sequence[str]
    x: Scale
    y: Scale
    y_ticks: Sequence[float]

    @cached_property
    def x_ticks(self) -> Ticks:
        marks = list(enumerate(self.names)) or [(mark, short(mark)) for mark in _marks(self.x.low, self.x.high)]
        return [(self.x(mark), label) for mark, label in marks]

    def panel(self, name: str, curves: Sequence[Curve], ours: bool) -> Chart:
        """The panel of a system; its highest point is looked for in the last stage, where there is one."""
        last = [curve for curve in curves if not curve.early] or curves
        across, value = max((point for curve in last for point in curve.points), key=lambda point: point[1])
        where = self.names[int(across)] if self.names else f"{across:,.0f}"
        lines = [self._line(name, curve) for curve in curves]
        if not self.names:
            lines.append(Line(name, "", best=((self.x(across), self.y(value)), f"{value:.4f}")))
        return Chart(
            title=name,
            description=f"{name}: {self.title}, highest {value:.4f} at {self.x_name} {where}.",
            frame=PANEL,
            x_ticks=self.x_ticks,
            y_ticks=labelled(self.y_ticks, self.y),
            lines=lines,
            ours=ours,
        )

    def _line(self, name: str, curve: Curve) -> Line:
        marked = curve.points if self.names or len(curve.points) == 1 else ()
        dots = [(self.x(across), self.y(up)) for across, up in marked]
        return Line(name, svg_points(curve.points, self.x, self.y), "early" if curve.early else "", dots)


def _marks(low: float, high: float) -> list[int]:
    """Round numbers from `low` to `high`: at least three of them, if there are so many."""
    found: list[int] = []
    for factors in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
        found = [f * 10**power for power in range(8) for f in factors if max(low, 1) <= f * 10**power <= max(high, 1)]
        if len(found) >= 3:
            break
    return found
