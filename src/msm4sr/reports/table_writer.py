"""A table of a report, whatever it holds, and how it is written as Markdown, LaTeX (booktabs) and CSV."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from msm4sr.files import atomic_file

BETTER, WORSE = "⁺", "⁻"
ESCAPED = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "−": "$-$",
    "×": r"$\times$",
    ">": "$>$",
    "<": "$<$",
}


@dataclass(frozen=True)
class Column:
    """`group` stands above neighbours that share it; `printed`: what others have printed, not measured here."""

    name: str
    group: str = ""
    printed: bool = False
    words: bool = False
    """Holds text, which stands on the left; numbers stand on the right."""


@dataclass(frozen=True)
class Cell:
    """`text` is shown, `value` is what the CSV holds where that is more exact."""

    text: str = "–"
    value: float | int | None = None
    spread: float | None = None
    """The deviation over seeds."""
    place: int = 0
    """1 is the best of its column, 2 the second."""
    sign: int = 0
    """1: significantly better than what it is compared with, -1: worse."""
    tip: str = ""
    """More, for those who ask."""

    @property
    def plus_minus(self) -> str:
        return "" if self.spread is None else f"±{self.spread:.4f}"

    @property
    def mark(self) -> str:
        return {1: BETTER, -1: WORSE}.get(self.sign, "")


@dataclass(frozen=True)
class Line:
    label: str
    cells: Sequence[Cell]
    ours: bool = False
    summary: bool = False
    """A line about the others, below them."""


@dataclass(frozen=True)
class Sheet:
    """A table; `name` is the stem of its files. Every line has a cell for each column."""

    name: str
    title: str
    corner: str
    """Heading of the labels."""
    columns: Sequence[Column]
    lines: Sequence[Line]
    notes: Sequence[str] = ()

    @property
    def groups(self) -> list[tuple[str, int]]:
        """The groups of the columns from left to right, and how many columns each has."""
        return [(name, len(list(own))) for name, own in itertools.groupby(column.group for column in self.columns)]


def write_sheet(folder: Path, sheet: Sheet) -> list[Path]:
    """NAME.md, NAME.tex and NAME.csv, each whole or not at all."""
    texts = {"md": markdown(sheet), "tex": latex(sheet), "csv": comma_separated(sheet)}
    written = []
    for kind, text in texts.items():
        written.append(folder / f"{sheet.name}.{kind}")
        with atomic_file(written[-1]) as file:
            file.write_text(text, encoding="utf-8")
    return written


def markdown(sheet: Sheet) -> str:
    """Best bold, second underlined, what others have printed in italics."""

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |\n"

    def shown(column: Column, cell: Cell) -> str:
        text = _plain(cell.text) + cell.mark
        if not text:
            return ""
        marked = {1: f"**{text}**", 2: f"<u>{text}</u>"}.get(cell.place, f"*{text}*" if column.printed else text)
        return marked + (f" {cell.plus_minus}" if cell.plus_minus else "")

    names = [_plain(f"{column.group} {column.name}".strip()) for column in sheet.columns]
    lines = [row([_plain(sheet.corner), *names])]
    lines.append("|---|" + "".join("---|" if column.words else "--:|" for column in sheet.columns) + "\n")
    for line in sheet.lines:
        cells = [shown(column, cell) for column, cell in zip(sheet.columns, line.cells, strict=True)]
        lines.append(row([_plain(line.label), *cells]))
    notes = "".join(f"\n{note}\n" for note in sheet.notes)
    return f"**{_plain(sheet.title)}**\n\n" + "".join(lines) + notes


def _plain(text: str) -> str:
    """Text that is no markup in a cell of Markdown."""
    for character in "\\`*_<|[":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def latex(sheet: Sheet) -> str:
    """A `table` that needs the package booktabs; what others have printed in italics."""

    def shown(column: Column, cell: Cell) -> str:
        text = escape_latex(cell.text)
        if not text:
            return ""
        text = {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(
            cell.place, rf"\textit{{{text}}}" if column.printed else text
        )
        spread = rf" {{\scriptsize $\pm${cell.spread:.4f}}}" if cell.spread is not None else ""
        return text + {1: "$^{+}$", -1: "$^{-}$"}.get(cell.sign, "") + spread

    def row(cells: Sequence[str]) -> str:
        return "  " + " & ".join(cells) + r" \\" + "\n"

    out = "% \\usepackage{booktabs}\n\\begin{table*}\n  \\centering\n"
    out += f"  \\caption{{{escape_latex(sheet.title)}}}\n  \\label{{tab:{sheet.name}}}\n"
    out += (
        f"  \\begin{{tabular}}{{l{''.join('l' if column.words else 'r' for column in sheet.columns)}}}\n  \\toprule\n"
    )
    if any(name for name, _ in sheet.groups):
        heads, rules, place = [], [], 2
        for name, count in sheet.groups:
            heads.append(rf"\multicolumn{{{count}}}{{c}}{{{escape_latex(name)}}}" if name else " & " * (count - 1))
            rules += [rf"\cmidrule(lr){{{place}-{place + count - 1}}}"] if name else []
            place += count
        out += row(["", *heads]) + "  " + " ".join(rules) + "\n"
    out += row([escape_latex(sheet.corner), *(escape_latex(column.name) for column in sheet.columns)]) + "  \\midrule\n"
    for before, line in zip([None, *sheet.lines], sheet.lines, strict=False):
        if line.summary and before is not None and not before.summary:
            out += "  \\midrule\n"
        cells = [shown(column, cell) for column, cell in zip(sheet.columns, line.cells, strict=True)]
        out += row([escape_latex(line.label), *cells])
    out += "  \\bottomrule\n  \\end{tabular}\n"
    out += "".join(f"  \\par\\smallskip\\footnotesize {escape_latex(note)}\n" for note in sheet.notes)
    return out + "\\end{table*}\n"


def escape_latex(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(ESCAPED.get(character, character) for character in " ".join(text.split()))


def comma_separated(sheet: Sheet) -> str:
    """Full digits; a column of deviations beside each column that has any."""
    spread = [any(line.cells[place].spread is not None for line in sheet.lines) for place in range(len(sheet.columns))]
    head = [sheet.corner]
    for column, has in zip(sheet.columns, spread, strict=True):
        name = f"{column.group} {column.name}".strip()
        head += [name, f"{name} deviation"] if has else [name]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for line in sheet.lines:
        row: list[object] = [line.label]
        for cell, has in zip(line.cells, spread, strict=True):
            row.append(cell.text if cell.value is None else cell.value)
            row += [cell.spread] if has else []
        writer.writerow(row)
    return out.getvalue()
