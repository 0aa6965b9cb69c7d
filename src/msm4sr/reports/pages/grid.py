"""The page of a grid: its tables, charts and settings in one self-contained file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from msm4sr.reports.pages.differences import DifferenceBar
from msm4sr.reports.pages.page import render
from msm4sr.reports.pages.panels import Panels
from msm4sr.reports.table_writer import Cell, Column, Line, Table


class Headline(NamedTuple):
    """The best result of ours on a data set; `detail` compares it with the best baseline."""

    label: str
    value: str
    detail: str


class Unfinished(NamedTuple):
    """Cells that have no result: which, in what state, and why."""

    cells: str
    state: str
    reason: str


class RowSettings(NamedTuple):
    """A row: the options that ask for it, and every setting that not all rows share."""

    label: str
    options: str
    settings: Sequence[tuple[str, str]]


class Section(NamedTuple):
    """A section of the page: charts, a table or both, where the table is collapsed; `context` was not measured here."""

    title: str
    subtitle: str = ""
    table: Table | None = None
    bars: Sequence[DifferenceBar] = ()
    charts: Sequence[Panels] = ()
    context: bool = False


@dataclass(frozen=True)
class GridPage:
    """The contents of the page, in its order; `combined`: the main tables with all data sets, for the files alone."""

    title: str
    kind: str
    facts: str
    headline: Sequence[Headline]
    unfinished: Sequence[Unfinished]
    sections: Sequence[Section]
    combined: Sequence[Table]
    rows: Sequence[RowSettings]
    shared: Sequence[tuple[str, str]]
    cells: Table
    versions: Sequence[tuple[str, Sequence[str]]]

    @property
    def tables(self) -> list[Table]:
        """Every table that is written to files, main tables with all data sets."""
        shown = [section.table for section in self.sections if section.table is not None]
        return list({table.name: table for table in (*shown, *self.combined, self.cells)}.values())


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
