"""How a table is written: Markdown, LaTeX, CSV."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm4sr.reports.table_writer import (
    Column,
    Table,
    TableCell,
    TableRow,
    comma_separated,
    escape_latex,
    latex,
    markdown,
    write_table,
)

TABLE = Table(
    name="small",
    title="R&D at 5 %",
    corner="System",
    columns=[
        Column("Seen items", words=True),
        Column("R@5", "shop"),
        Column("N@5", "shop"),
        Column("R@5", "shop, as printed", printed=True),
    ],
    rows=[
        TableRow(
            "A_1",
            [
                TableCell("included"),
                TableCell("0.1000", 0.1, 0.00251),
                TableCell("0.0500", 0.05, place=2),
                TableCell("0.0900", 0.09),
            ],
        ),
        TableRow(
            "B|2",
            [
                TableCell("excluded"),
                TableCell("0.2000", 0.2, 0.01, 1, 1),
                TableCell("0.0600", 0.06, place=1),
                TableCell(),
            ],
            ours=True,
        ),
        TableRow(
            "Improvement", [TableCell(""), TableCell("+100.0%", 1.0, sign=-1), TableCell(), TableCell("")], summary=True
        ),
    ],
    notes=["100 % of users."],
)


def test_markdown_marks_the_best_the_second_the_deviation_and_published_values() -> None:
    assert markdown(TABLE).splitlines() == [
        "**R&D at 5 %**",
        "",
        "| System | Seen items | shop R@5 | shop N@5 | shop, as printed R@5 |",
        "|---|---|--:|--:|--:|",
        r"| A\_1 | included | 0.1000 ±0.0025 | <u>0.0500</u> | *0.0900* |",
        r"| B\|2 | excluded | **0.2000⁺** ±0.0100 | **0.0600** | *–* |",
        "| Improvement |  | +100.0%⁻ | – |  |",
        "",
        "100 % of users.",
    ]


def test_latex_is_a_booktabs_table() -> None:
    text = latex(TABLE)
    for line in (
        r"\caption{R\&D at 5 \%}",
        r"\begin{tabular}{llrrr}",
        r" &  & \multicolumn{2}{c}{shop} & \multicolumn{1}{c}{shop, as printed} \\",
        r"\cmidrule(lr){3-4} \cmidrule(lr){5-5}",
        r"System & Seen items & R@5 & N@5 & R@5 \\",
        r"A\_1 & included & 0.1000 {\scriptsize $\pm$0.0025} & \underline{0.0500} & \textit{0.0900} \\",
        r"B|2 & excluded & \textbf{0.2000}$^{+}$ {\scriptsize $\pm$0.0100} & \textbf{0.0600} & \textit{--} \\",
        r"Improvement &  & +100.0\%$^{-}$ & -- &  \\",
    ):
        assert line in text, line
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.count("&") - line.count(r"\&") + (line.count("multicolumn{2}")) for line in rows} == {4}
    assert text.count(r"\midrule") == 2  # one of them above the summary
    for name in ("table*", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 1


def test_csv_has_full_precision_and_columns_of_deviations() -> None:
    rows = list(csv.reader(io.StringIO(comma_separated(TABLE))))
    assert rows == [
        ["System", "Seen items", "shop R@5", "shop R@5 deviation", "shop N@5", "shop, as printed R@5"],
        ["A_1", "included", "0.1", "0.00251", "0.05", "0.09"],
        ["B|2", "excluded", "0.2", "0.01", "0.06", ""],
        ["Improvement", "", "1.0", "", "", ""],
    ]


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=12))
def test_no_label_breaks_a_table(label: str) -> None:
    table = Table("s", label, label, [Column(label, label, words=True)], [TableRow(label, [TableCell(label)])])
    rows = [line for line in markdown(table).splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", line.replace(r"\\", ""))) for line in rows] == [3] * 3
    assert list(csv.reader(io.StringIO(comma_separated(table))))[1] == [label, label]
    escaped = escape_latex(label)
    assert not re.search(r"(?<!\\)[&%#_]", escaped)
    assert escaped.count("$") - escaped.count(r"\$") in range(0, 2 * len(label) + 1, 2)


@pytest.mark.parametrize("text", ["a & b", "50%", "$x$", "#1", "a_b", "{x}", "~", "^", "\\cmd", "<>", "⁺⁻≤"])
def test_latex_special_characters_are_escaped(text: str) -> None:
    assert escape_latex(text) != text
    assert re.sub(r"\\text\w+\{\}|\\[&%$#_{}]|\$([<>]|\^\{[+-]\}|\\leq)\$|[\w\s]", "", escape_latex(text)) == ""


def test_a_table_is_written_as_markdown_latex_and_csv(tmp_path: Path) -> None:
    write_table(tmp_path, TABLE)
    assert {file.name for file in tmp_path.iterdir()} == {"small.md", "small.tex", "small.csv"}
    assert (tmp_path / "small.tex").read_text() == latex(TABLE)
