"""Numbers that others have printed, to stand beside what is measured here and never among it.

`paper.csv`: the tables of the method's paper (arXiv 2303.11879), values as printed: table, data set, system, metric,
and the name of that row in the grids that ship with the package. `elsewhere.csv`: other published figures on public
data sets, each with its protocol and source.

A data set is the same when its folder has the printed name, however capitalised: `pantry` is the paper's Pantry.
Whoever names a folder so says that it was prepared so; `msm4sr prepare amazon ... --like-paper` does it.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple


class Printed(NamedTuple):
    """A number as somebody printed it; `text` keeps its digits."""

    system: str
    metric: str
    text: str
    source: str
    protocol: str = ""

    @property
    def value(self) -> float:
        return float(self.text)


def of_paper(table: str, dataset: str) -> dict[tuple[str, str], Printed]:
    """What the paper's table of this kind prints for this data set, by the (name of our row, metric)."""
    found: dict[tuple[str, str], Printed] = {}
    for line in _lines("paper.csv"):
        if line["table"] == table and _same(line["dataset"], dataset):
            printed = Printed(line["system"], line["metric"], line["value"], line["source"])
            found[line["row"], line["metric"]] = printed
    return found


def elsewhere(dataset: str) -> list[Printed]:
    """What others have printed for this data set, with their protocol, in the order of the file."""
    return [
        Printed(line["system"], line["metric"], line["value"], line["source"], line["protocol"])
        for line in _lines("elsewhere.csv")
        if _same(line["dataset"], dataset)
    ]


def _same(printed: str, folder: str) -> bool:
    return printed.casefold() == folder.casefold()


def _lines(name: str) -> Sequence[dict[str, str]]:
    return list(csv.DictReader((files(__name__) / name).read_text(encoding="utf-8").splitlines()))
