"""Differences with their intervals as geometry: a bar from zero to the difference, a line over the interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msm4sr.reports.tables import signed

WIDTH = 100.0  # viewBox units of a bar's strip, which the page scales to the available width


@dataclass(frozen=True)
class DifferenceBar:
    """A bar; positions are from 0 to WIDTH, on the scale that all bars of a chart share.

    Attributes:
        sign: 1: significantly above zero, -1: significantly below, 0: neither.
    """

    label: str
    x: float
    width: float
    low: float
    high: float
    zero: float
    text: str
    interval: str
    sign: int
    ours: bool


def difference_bars(rows: Sequence[tuple[str, float, float, float, int, bool]]) -> list[DifferenceBar]:
    """Rows of (label, difference, low, high, sign, ours) on one scale that holds zero and all intervals."""
    least = min([0.0, *(low for _, _, low, _, _, _ in rows)])
    most = max([0.0, *(high for _, _, _, high, _, _ in rows)])
    span = (most - least) or 1.0

    def at(value: float) -> float:
        return round(1 + (WIDTH - 2) * (value - least) / span, 2)

    return [
        DifferenceBar(
            label=label,
            x=min(at(0), at(mean)),
            width=round(abs(at(mean) - at(0)), 2),
            low=at(low),
            high=at(high),
            zero=at(0),
            text=signed(mean),
            interval=f"[{signed(low)}, {signed(high)}]",
            sign=sign,
            ours=ours,
        )
        for label, mean, low, high, sign, ours in rows
    ]
