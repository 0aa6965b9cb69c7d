"""Learning curves as a picture: the loss, and what validation said, epoch by epoch."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

INK, GRID = "#3c4043", "#e8eaed"
LOSS, SHOWN = "#5f6368", {"recall@10": "#1a73e8", "ndcg@10": "#e8710a"}  # apart for the colour-blind too


def write_curves(rows: Sequence[Mapping[str, Any]], chose: Mapping[str, str], file: Path) -> None:
    """Draw the lines of metrics.jsonl into a PNG: a column a stage, the loss above, recall@10 and ndcg@10 below.

    The epoch whose weights are kept is marked, the first one with the best value of the metric that `chose` in the
    stage. Nothing is drawn of no epochs.
    """
    from matplotlib.figure import Figure  # half a second that only this needs
    from matplotlib.ticker import MaxNLocator

    stages = list(dict.fromkeys(row["stage"] for row in rows))
    if not stages:
        return
    figure = Figure(figsize=(4.6 * len(stages) + 0.6, 5.4), layout="constrained", facecolor="white")
    panels = figure.subplots(2, len(stages), sharex="col", squeeze=False)
    for column, stage in enumerate(stages):
        own = [row for row in rows if row["stage"] == stage]
        validated = [row for row in own if "ndcg@10" in row]
        above, below = panels[0][column], panels[1][column]
        marker = "o" if len(own) <= 40 else None
        style: dict[str, Any] = {"marker": marker, "markersize": 3, "linewidth": 1.8, "solid_capstyle": "round"}
        above.plot([row["epoch"] for row in own], [row["loss"] for row in own], color=LOSS, **style)
        above.set_title(stage, loc="left", fontsize=12, fontweight="bold", color=INK)
        for name, colour in SHOWN.items():
            epochs, values = [row["epoch"] for row in validated], [row[name] for row in validated]
            below.plot(epochs, values, color=colour, label=name, **style)
        if validated:
            kept = max(validated, key=itemgetter(chose[stage]))
            below.axvline(kept["epoch"], color=GRID, linewidth=6, zorder=0)
            for name, colour in SHOWN.items():
                below.annotate(
                    f"{kept[name]:.3f}",
                    (kept["epoch"], kept[name]),
                    textcoords="offset points",
                    xytext=(0, 7),
                    ha="center",
                    fontsize=9,
                    color=colour,
                )
            below.margins(x=0.08, y=0.15)
            below.legend(  # above the panel: looking for a free place in it can take seconds
                loc="lower left", bbox_to_anchor=(-0.02, 0.97), ncols=2, frameon=False, fontsize=9, labelcolor=INK
            )
        below.set_xlabel("epoch", color=INK)
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        for panel in (above, below):
            panel.grid(axis="y", color=GRID, linewidth=0.8)
            panel.set_axisbelow(True)
            panel.tick_params(colors=INK, labelsize=9, length=0)
            panel.spines[["top", "right", "left"]].set_visible(False)
            panel.spines["bottom"].set_color(GRID)
    panels[0][0].set_ylabel("training loss", color=INK)
    panels[1][0].set_ylabel("validation", color=INK)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=144)
    part = file.with_name(file.name + ".part")
    part.write_bytes(drawn.getvalue())
    os.replace(part, file)
