"""Published results, shown next to measured ones and never compared with them.

`paper.csv`: the tables of the method's paper (arXiv 2303.11879), values as printed, each with the name of that row in
the grids that ship with the package. `elsewhere.csv`: other published results on public data sets.

A data set is identified by the name of its folder, in any case: `pantry` is the paper's Pantry, prepared with
`msm4sr prepare amazon ... --like-paper`.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import NamedTuple


class Published(NamedTuple):
    """A published value; `text` keeps its digits."""

    system: str
    metric: str
    text: str
    source: str
    protocol: str = ""

    @property
    def value(self) -> float:
        return float(self.text)


def paper_results(table: str, dataset: str) -> dict[tuple[str, str], Published]:
    """(name of our row, metric) to the value in the paper's table of this kind for this data set."""
    lines = [line for line in _lines("paper.csv", dataset) if line["table"] == table]
    return {(line["row"], line["metric"]): _published(line) for line in lines}


def other_results(dataset: str) -> list[Published]:
    """What others have published for this data set, in the order of the file."""
    return [_published(line) for line in _lines("elsewhere.csv", dataset)]


def _published(line: Mapping[str, str]) -> Published:
    return Published(line["system"], line["metric"], line["value"], line["source"], line.get("protocol", ""))


def _lines(name: str, dataset: str) -> Sequence[dict[str, str]]:
    lines = csv.DictReader((files(__name__) / name).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["dataset"].casefold() == dataset.casefold()]
