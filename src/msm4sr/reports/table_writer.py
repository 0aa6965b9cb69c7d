"""A table, and how it is written as Markdown, LaTeX (booktabs) and CSV."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from msm4sr.files import write_text

DIGITS = 4  # of a metric, as in the paper
ESCAPED = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "–": "--", "−": "$-$", "×": r"$\times$", ">": "$>$", "<": "$<$",
    "⁺": "$^{+}$", "⁻": "$^{-}$", "≤": r"$\leq$",
}  # fmt: skip


def signed(value: float, form: str = f".{DIGITS}f") -> str:
    """A number with its sign; the minus is as wide as a digit."""
    return f"{value:+{form}}".replace("-", "−")


@dataclass(frozen=True)
class Column:
    """The heading of a column."""

    name: str
    group: str = ""  # a heading above neighbours that share it
    printed: bool = False  # published by others, not measured here
    words: bool = False  # text, which is aligned left; numbers are aligned right


@dataclass(frozen=True)
class TableCell:
    """What is shown, what CSV contains, and how it compares with the cells of its column."""

    text: str = "–"
    value: float | int | None = None  # the exact number, for CSV
    deviation: float | None = None  # over seeds
    place: int = 0  # 1 for the best of the column, 2 for the second, else 0
    sign: int = 0  # 1: significantly better than the reference, -1: significantly worse, 0: neither
    tip: str = ""  # a detail that the page shows on hover

    @property
    def plus_minus(self) -> str:
        return "" if self.deviation is None else f"±{self.deviation:.4f}"

    @property
    def mark(self) -> str:
        return {1: "⁺", -1: "⁻"}.get(self.sign, "")


@dataclass(frozen=True)
class TableRow:
    """A row with a cell for each column; a `summary` is about the rows above it."""

    label: str
    cells: Sequence[TableCell]
    ours: bool = False
    summary: bool = False


@dataclass(frozen=True)
class Table:
    """A table; `name` is the stem of its files, `corner` the heading of the labels."""

    name: str
    title: str
    corner: str
    columns: Sequence[Column]
    rows: Sequence[TableRow]
    notes: Sequence[str] = ()

    @property
    def groups(self) -> list[tuple[str, int]]:
        """The groups of the columns from left to right, each with its number of columns."""
        return [(name, len(list(own))) for name, own in itertools.groupby(column.group for column in self.columns)]


def write_table(folder: Path, table: Table) -> None:
    """Write NAME.md, NAME.tex and NAME.csv, each atomically."""
    for kind, text in (("md", markdown(table)), ("tex", latex(table)), ("csv", comma_separated(table))):
        write_text(folder / f"{table.name}.{kind}", text)


def markdown(table: Table) -> str:
    """The table as Markdown: the best in bold, the second underlined, published values in italics."""
    texts = [[_plain(text) for text in (table.corner, *(f"{c.group} {c.name}".strip() for c in table.columns))]]
    for row in table.rows:
        cells = zip(table.columns, row.cells, strict=True)
        texts.append([_plain(row.label), *(_markdown_cell(column, cell) for column, cell in cells)])
    heading, *lines = ("| " + " | ".join(text) + " |\n" for text in texts)
    rule = "|---|" + "".join("---|" if column.words else "--:|" for column in table.columns) + "\n"
    notes = (f"\n{_plain(note)}\n" for note in table.notes)
    return "".join([f"**{_plain(table.title)}**\n\n", heading, rule, *lines, *notes])


def _markdown_cell(column: Column, cell: TableCell) -> str:
    text = _plain(cell.text) + cell.mark
    if not text:
        return ""
    marked = {1: f"**{text}**", 2: f"<u>{text}</u>"}.get(cell.place, f"*{text}*" if column.printed else text)
    return f"{marked} {cell.plus_minus}".strip()


def _plain(text: str) -> str:
    """Text with Markdown's markup characters escaped."""
    return " ".join(re.sub(r"([\\`*_<|\[])", r"\\\1", text).split())


def latex(table: Table) -> str:
    """The table as LaTeX, for the package booktabs; published values in italics."""
    alignment = "".join("l" if column.words else "r" for column in table.columns)
    out = "% \\usepackage{booktabs}\n\\begin{table*}\n  \\centering\n"
    out += f"  \\caption{{{escape_latex(table.title)}}}\n  \\label{{tab:{table.name}}}\n"
    out += f"  \\begin{{tabular}}{{l{alignment}}}\n  \\toprule\n"
    if any(name for name, _ in table.groups):
        heads, rules, first = [], [], 2
        for name, count in table.groups:
            heads.append(rf"\multicolumn{{{count}}}{{c}}{{{escape_latex(name)}}}" if name else " & " * (count - 1))
            rules += [rf"\cmidrule(lr){{{first}-{first + count - 1}}}"] if name else []
            first += count
        out += _latex_line(["", *heads]) + "  " + " ".join(rules) + "\n"
    out += _latex_line([escape_latex(name) for name in (table.corner, *(column.name for column in table.columns))])
    out += "  \\midrule\n"
    for before, row in zip([None, *table.rows], table.rows, strict=False):
        if row.summary and before is not None and not before.summary:
            out += "  \\midrule\n"
        cells = zip(table.columns, row.cells, strict=True)
        out += _latex_line([escape_latex(row.label), *(_latex_cell(column, cell) for column, cell in cells)])
    out += "  \\bottomrule\n  \\end{tabular}\n"
    out += "".join(f"  \\par\\smallskip\\footnotesize {escape_latex(note)}\n" for note in table.notes)
    return out + "\\end{table*}\n"


def _latex_line(cells: Sequence[str]) -> str:
    return "  " + " & ".join(cells) + r" \\" + "\n"


def _latex_cell(column: Column, cell: TableCell) -> str:
    text = escape_latex(cell.text)
    if not text:
        return ""
    plain = rf"\textit{{{text}}}" if column.printed else text
    marked = {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(cell.place, plain)
    deviation = rf" {{\scriptsize $\pm${cell.deviation:.4f}}}" if cell.deviation is not None else ""
    return marked + {1: "$^{+}$", -1: "$^{-}$"}.get(cell.sign, "") + deviation


def escape_latex(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(ESCAPED.get(character, character) for character in " ".join(text.split()))


def comma_separated(table: Table) -> str:
    """The table as CSV with full precision, and a column of deviations after each column that has any.

    A number that is missing is an empty field.
    """
    columns: list[tuple[str, list[object]]] = []
    for number, column in enumerate(table.columns):
        name, cells = f"{column.group} {column.name}".strip(), [row.cells[number] for row in table.rows]
        columns.append((name, [cell.text if column.words else cell.value for cell in cells]))
        if any(cell.deviation is not None for cell in cells):
            columns.append((f"{name} deviation", [cell.deviation for cell in cells]))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([table.corner, *(name for name, _ in columns)])
    writer.writerows([row.label, *cells] for row, *cells in zip(table.rows, *(c for _, c in columns), strict=True))
    return out.getvalue()
