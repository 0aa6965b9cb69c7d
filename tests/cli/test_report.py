"""msm4sr report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from calling import Cli
from grids import write_cell, write_grid


def grid(tmp_path: Path) -> Path:
    folder = write_grid(tmp_path / "grid")
    for row, rank in (("sasrec", 9), ("msm4sr", 3)):
        write_cell(folder, row, [float(rank + u % 5) for u in range(20)])
    return folder


def test_the_report_is_written_into_the_grid(cli: Cli, tmp_path: Path) -> None:
    folder = grid(tmp_path)
    called = cli("report", folder)
    assert (called.code, called.err) == (0, "")
    assert called.out == f"report: {folder}/report/index.html"
    assert (folder / "report" / "index.html").read_text().startswith("<!doctype html>")
    assert (folder / "report" / "trial.tex").exists()


def test_metrics_and_folder_can_be_chosen(cli: Cli, tmp_path: Path) -> None:
    called = cli("report", grid(tmp_path), "--out", tmp_path / "page", "--metric", "mrr", "--metric", "recall@50")
    assert called.code == 0
    head = (tmp_path / "page" / "trial.csv").read_text().splitlines()[0]
    assert head == "System,Seen items,shop MRR,shop R@50"


def test_errors_name_the_problem(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "no grid here (no grid.yaml)" in refused("report", tmp_path)
    assert "--metric ndcg@3: there is no such metric" in refused("report", grid(tmp_path), "--metric", "ndcg@3")
