"""Reading a grid folder: what became of each cell."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock
from grids import cell_folder, fail_cell, write_cell, write_grid

from msm4sr.errors import InputError
from msm4sr.reports.results import read_grid


def test_each_cell_is_finished_failed_running_or_missing(tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "grid", ("sasrec", "msm4sr"), ("shop", "films"))
    write_cell(grid, "sasrec", [1, 2, 3])
    fail_cell(grid, "msm4sr", "no memory")
    cell_folder(grid, "sasrec", "films").mkdir(parents=True)
    cell_folder(grid, "msm4sr", "films").mkdir(parents=True)
    (cell_folder(grid, "msm4sr", "films") / ".run.lock").touch()  # of a worker that was killed
    with FileLock(cell_folder(grid, "sasrec", "films") / ".run.lock"):
        results = read_grid(grid)
    found = {(cell.data, cell.row): (cell.state, cell.reason) for cell in results.all()}
    assert found == {
        ("shop", "sasrec"): ("finished", ""),
        ("shop", "msm4sr"): ("failed", "no memory"),
        ("films", "sasrec"): ("running", ""),
        ("films", "msm4sr"): ("missing", ""),
    }
    (done,) = results.finished("shop", "sasrec")
    assert done.metrics["test"]["recall@5"] == 1
    assert done.settings == {"preset": "best", "model.name": "sasrec"}  # neither data nor seed, which name the cell
    assert [epoch["epoch"] for epoch in done.epochs] == [1, 2, 3]
    users = done.test_users
    assert users is not None
    assert users["rank"].to_list() == [1, 2, 3]
    assert (results.title, results.kind, results.ours) == ("A trial", "comparison", ("msm4sr",))
    assert [row.label for row in results.rows] == ["SASREC", "MSM4SR"]


def test_labels_that_several_rows_share_are_extended_by_names(tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "grid", ("sasrec", "sine", "msm4sr"), labels={"sasrec": "A", "sine": "A"})
    assert [row.label for row in read_grid(grid).rows] == ["A (sasrec)", "A (sine)", "MSM4SR"]


def test_a_folder_without_a_grid_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no grid here \(no grid\.yaml\); `msm4sr compare` creates one$"):
        read_grid(tmp_path)
    (tmp_path / "config.yaml").write_text("data: x")
    with pytest.raises(InputError, match=r"report\.html"):
        read_grid(tmp_path)


@pytest.mark.parametrize("text", ["[]", "a: [", "name: x", "name: x\ndata: 3\nseeds: [0]\nrows: []"])
def test_a_damaged_grid_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(InputError, match=r"grid\.yaml"):
        read_grid(tmp_path)


def test_a_metrics_file_of_another_kind_is_an_error(tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "grid")
    (write_cell(grid, "sasrec", [1, 2]) / "metrics.json").write_text('{"validation": {}}')
    with pytest.raises(InputError, match=r"metrics\.json: damaged or edited \(.*; `msm4sr evaluate"):
        read_grid(grid)


@pytest.mark.parametrize("name", ["metrics.json", "config.yaml", "metrics.jsonl", "users.parquet"])
def test_a_damaged_file_of_a_cell_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    grid = write_grid(tmp_path / "grid")
    (write_cell(grid, "sasrec", [1, 2]) / name).write_text("{half a li")
    with pytest.raises(InputError, match=rf"seed-0/{name}"):
        assert read_grid(grid).outcomes["shop", "sasrec"][0].test_users
