"""The page of a grid: its tables, charts and settings in one self-contained file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from msm4sr.reports.pages.differences import DifferenceBar
from msm4sr.reports.pages.page import render
from msm4sr.reports.pages.panels import Panels
from msm4sr.reports.table_writer import Cell, Column, Line, Table


@dataclass(frozen=True)
class Headline:
    """The best result of ours on a data set; `detail` compares it with the best baseline."""

    label: str
    value: str
    detail: str


@dataclass(frozen=True)
class Result:
    """The main table of a data set, and the size of the data."""

    table: Table
    size: str


@dataclass(frozen=True)
class Unfinished:
    """Cells that have no result: which, in what state, and why."""

    cells: str
    state: str
    reason: str


@dataclass(frozen=True)
class Differences:
    """The differences of all rows to the reference, on a data set; `caption` names metric and reference."""

    data: str
    caption: str
    bars: Sequence[DifferenceBar]
    table: Table


@dataclass(frozen=True)
class Popularity:
    """Metrics by the training interactions of the target; `users`: how many are in each bucket."""

    users: str
    charts: Sequence[Panels]
    table: Table


@dataclass(frozen=True)
class RowSettings:
    """A row: the options that ask for it, and every setting that not all rows share."""

    label: str
    options: str
    settings: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class GridPage:
    """The contents of the page, in its order.

    Attributes:
        popularity_first: the grid is about items by their popularity.
        combined: the main tables of all data sets side by side, in the paper's form; for the files alone.
        shares: data set, and a metric by the share of users in training.
    """

    title: str
    kind: str
    popularity_first: bool
    facts: str
    headline: Sequence[Headline]
    main: Sequence[Result]
    combined: Sequence[Table]
    held_out: Sequence[Table]
    shares: Sequence[tuple[str, Panels]]
    unfinished: Sequence[Unfinished]
    differences: Sequence[Differences]
    popularity: Sequence[Popularity]
    curves: Sequence[tuple[str, Sequence[Panels]]]
    validation: Sequence[Table]
    cost: Sequence[Table]
    published: Sequence[Table]
    rows: Sequence[RowSettings]
    shared: Sequence[tuple[str, str]]
    cells: Table
    versions: Sequence[tuple[str, Sequence[str]]]

    @property
    def tables(self) -> list[Table]:
        """Every table, to be written next to the page."""
        found = [*self.combined, *(one.table for one in self.differences), *(one.table for one in self.popularity)]
        return [*found, *self.held_out, *self.validation, *self.cost, *self.published, self.cells]


class PlacedCell(NamedTuple):
    """A cell and its column; `first`: the column begins a group."""

    cell: Cell
    column: Column
    first: bool


def grid_page(page: GridPage) -> str:
    """The HTML of the page."""
    return render("grid.html.jinja", title=page.title, page=page, placed=placed)


def placed(table: Table, line: Line | None = None) -> list[PlacedCell]:
    """The cells of a line, or of the column headings where there is none."""
    cells = [Cell(column.name) for column in table.columns] if line is None else line.cells
    groups = [column.group for column in table.columns]
    return [
        PlacedCell(cell, column, number > 0 and groups[number] != groups[number - 1])
        for number, (cell, column) in enumerate(zip(cells, table.columns, strict=True))
    ]
