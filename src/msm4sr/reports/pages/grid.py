"""The page of a grid: its tables, charts and settings on one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msm4sr.reports.pages.differences import DifferenceBar
from msm4sr.reports.pages.page import render
from msm4sr.reports.pages.panels import Panels
from msm4sr.reports.table_writer import Cell, Column, Line, Sheet


@dataclass(frozen=True)
class Headline:
    label: str
    value: str
    more: str


@dataclass(frozen=True)
class Result:
    """The main table of a data set, and how large the data is."""

    sheet: Sheet
    size: str


@dataclass(frozen=True)
class Unfinished:
    """Cells that have no result: which, in what state, and why."""

    cells: str
    state: str
    reason: str


@dataclass(frozen=True)
class Differences:
    """Bars of all rows on a data set; `said` names the metric and what the rows are compared with."""

    data: str
    said: str
    bars: Sequence[DifferenceBar]
    sheet: Sheet


@dataclass(frozen=True)
class Popularity:
    """Metrics by the training interactions of the target, on a data set."""

    data: str
    users: str
    """How many in each bucket."""
    charts: Sequence[Panels]
    sheet: Sheet


@dataclass(frozen=True)
class RowSettings:
    """What a row differs in: as the grid asks for it, and every setting that is not shared by all."""

    label: str
    asked: str
    settings: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class GridPage:
    """All that the page shows, in its order."""

    title: str
    kind: str
    popularity_first: bool
    """It is what this grid is about."""
    facts: str
    headline: Sequence[Headline]
    main: Sequence[Result]
    """One a data set, as wide as a screen."""
    whole: Sequence[Sheet]
    """The same for all data sets side by side, in the paper's form: for the files."""
    held_out: Sequence[Sheet]
    shares: Sequence[tuple[str, Panels]]
    """A data set, and a metric by the share of the users that is trained on."""
    unfinished: Sequence[Unfinished]
    differences: Sequence[Differences]
    popularity: Sequence[Popularity]
    curves: Sequence[tuple[str, Sequence[Panels]]]
    validation: Sequence[Sheet]
    cost: Sequence[Sheet]
    elsewhere: Sequence[Sheet]
    rows: Sequence[RowSettings]
    shared: Sequence[tuple[str, str]]
    cells: Sheet
    versions: Sequence[tuple[str, Sequence[str]]]

    @property
    def sheets(self) -> list[Sheet]:
        """Every table, to be written beside the page."""
        found = [*self.whole, *(one.sheet for one in self.differences), *(one.sheet for one in self.popularity)]
        return [*found, *self.held_out, *self.validation, *self.cost, *self.elsewhere, self.cells]


@dataclass(frozen=True)
class _TableCell:
    """A cell with what its column says of it."""

    cell: Cell
    column: Column
    first: bool
    """Begins a group of columns."""


def grid_page(page: GridPage) -> str:
    """The HTML of the page."""
    return render("grid.html.jinja", title=page.title, page=page, placed=placed)


def placed(sheet: Sheet, line: Line | None = None) -> list[_TableCell]:
    """The cells of a line, or with none the column heads, each with its column and whether that begins a group."""
    cells = [Cell(column.name) for column in sheet.columns] if line is None else line.cells
    groups = [column.group for column in sheet.columns]
    return [
        _TableCell(cell, column, number > 0 and groups[number] != groups[number - 1])
        for number, (cell, column) in enumerate(zip(cells, sheet.columns, strict=True))
    ]
