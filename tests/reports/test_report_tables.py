"""The tables of a report, cell by cell."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from grids import SEEN_EXCLUDED, SEEN_INCLUDED, change_metrics, fail_cell, write_cell, write_grid
from hypothesis import given
from hypothesis import strategies as st

from msm4sr.reports.comparison import METRICS, measure
from msm4sr.reports.grid_report import write_grid_report
from msm4sr.reports.results import GridResults, read_grid
from msm4sr.reports.table_writer import Table, TableCell, TableRow
from msm4sr.reports.tables import (
    cold_table,
    cost_table,
    difference_table,
    held_out_table,
    main_table,
    places,
    published_table,
    software_versions,
    split_settings,
    validation_table,
)

RANKS = {"popularity": 90, "sasrec": 12, "sasrecm": 9, "msm4sr": 4}


def ranks(row: str, seed: int = 0) -> list[float]:
    rng = np.random.default_rng([seed, RANKS[row]])
    return np.ceil(RANKS[row] * rng.exponential(size=200)).tolist()


def results(tmp_path: Path, data: tuple[str, ...] = ("pantry", "shop"), seeds: tuple[int, ...] = (0, 1)) -> GridResults:
    grid = write_grid(tmp_path / "grid", tuple(RANKS), data, seeds)
    for name in data:
        for row in RANKS:
            for seed in seeds:
                protocol = {"protocol": SEEN_EXCLUDED} if row == "popularity" else {}
                write_cell(grid, row, ranks(row, seed), name, seed, **protocol)  # type: ignore[arg-type]
    return read_grid(grid)


def main(found: GridResults, only: str | None = None) -> Table:
    (comparison,) = measure(found, METRICS, resamples=300)
    return main_table(comparison, only=only)


def line(table: Table, label: str) -> dict[tuple[str, str], TableCell]:
    found: TableRow = next(each for each in table.rows if each.label == label)
    return {(c.group, c.name): cell for c, cell in zip(table.columns, found.cells, strict=True)}


def test_the_table_has_the_papers_form(tmp_path: Path) -> None:
    table = main(results(tmp_path))
    assert [each.label for each in table.rows] == ["POPULARITY", "SASREC", "SASRECM", "MSM4SR", "Improvement"]
    assert table.groups == [("", 1), ("pantry", 6), ("pantry, as printed", 6), ("shop", 6)]
    assert [c.name for c in table.columns[1:7]] == ["R@5", "R@10", "R@20", "N@5", "N@10", "N@20"]
    best = line(table, "MSM4SR")["pantry", "N@10"]
    assert (best.place, best.sign, best.text) == (1, 1, f"{best.value:.4f}")
    assert best.deviation is not None
    assert "against SASRECM" in best.tip
    assert "200 users" in best.tip
    assert line(table, "SASRECM")["shop", "R@5"].place == 2
    assert line(table, "Improvement")["shop", "R@5"].text.startswith("+")


def test_every_row_says_whether_it_ranks_seen_items(tmp_path: Path) -> None:
    table = main(results(tmp_path))
    shown = [line(table, label)["", "Seen items"].text for label in ("POPULARITY", "SASREC")]
    assert shown == ["excluded", "included"]


def test_other_details_of_a_protocol_are_shown(tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "grid", ("msm4sr",))
    write_cell(grid, "msm4sr", ranks("msm4sr"), protocol=f"{SEEN_INCLUDED}, by content alone")
    assert line(main(read_grid(grid)), "MSM4SR")["", "Seen items"].text == "included, by content alone"


def test_published_values_are_shown_but_not_compared(tmp_path: Path) -> None:
    """0.0405 and the like are far below what is measured here, and 0.9 would be far above."""
    found = results(tmp_path)
    table = main(found)
    printed = [c for c in table.columns if c.printed]
    assert {c.group for c in printed} == {"pantry, as printed"}
    cell = line(table, "MSM4SR")["pantry, as printed", "R@5"]
    assert (cell.text, cell.place, cell.sign, cell.deviation) == ("0.0405", 0, 0, None)
    assert line(table, "POPULARITY")["pantry, as printed", "R@5"].text == "–"  # the paper has no such row
    for each in table.rows:
        for c, there in zip(table.columns, each.cells, strict=True):
            if c.printed:
                assert (there.place, there.sign) == (0, 0)
    assert line(table, "Improvement")["pantry, as printed", "R@5"].text == ""
    assert any("context, not measured here" in note for note in table.notes)
    assert not any(c.printed for c in main(found, only="shop").columns)


def test_measured_cells_do_not_depend_on_published_values(tmp_path: Path) -> None:
    pantry, shop = (main(results(tmp_path / name, (name,))) for name in ("pantry", "shop"))
    measured = [
        [[cell for c, cell in zip(table.columns, each.cells, strict=True) if not c.printed] for each in table.rows]
        for table in (pantry, shop)
    ]
    assert measured[0] == measured[1]


def test_failed_and_missing_cells_are_marked(tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "grid", tuple(RANKS), ("shop",), (0, 1))
    for seed in (0, 1):
        write_cell(grid, "sasrec", ranks("sasrec", seed), seed=seed)
        fail_cell(grid, "sasrecm", "loss is nan", seed=seed)
    write_cell(grid, "msm4sr", ranks("msm4sr"))
    table = main(read_grid(grid))
    failed = line(table, "SASRECM")["shop", "R@5"]
    assert (failed.text, failed.tip, failed.value) == ("failed", "loss is nan", None)
    assert line(table, "POPULARITY")["shop", "R@5"].text == "missing"
    few = line(table, "MSM4SR")["shop", "R@5"]
    assert few.text.endswith("*")
    assert few.tip.startswith("1 of 2 seeds")
    assert few.deviation is None
    assert any(note.startswith("* mean over the finished seeds") for note in table.notes)


@pytest.mark.parametrize("ours", [["none"], list(RANKS)])
def test_without_baselines_or_without_ours_there_is_no_improvement(tmp_path: Path, ours: list[str]) -> None:
    grid = write_grid(tmp_path / "grid", tuple(RANKS), best_against=ours)
    for row in RANKS:
        write_cell(grid, row, ranks(row))
    table = main(read_grid(grid))
    assert [each.label for each in table.rows] == [row.upper() for row in RANKS]
    assert not any("Improvement" in note for note in table.notes)


def test_a_grid_of_one_seed_has_no_deviations(tmp_path: Path) -> None:
    table = main(results(tmp_path, seeds=(0,)))
    assert any(note.startswith("One seed, hence no deviations") for note in table.notes)
    assert all(cell.deviation is None for each in table.rows for cell in each.cells)
    assert line(table, "Improvement")["shop", "N@10"].text.startswith("+")


VALUES = st.lists(st.none() | st.floats(0, 1), max_size=12)


@given(VALUES)
def test_places_go_to_the_highest_shown_values(values: list[float | None]) -> None:
    found = places(values)
    shown = [round(value, 4) for value in values if value is not None]
    if len(set(shown)) < 2:  # nothing is better than the rest
        assert set(found) <= {0}
        return
    order = sorted(set(shown), reverse=True)
    for value, place in zip(values, found, strict=True):
        expected = 0 if value is None else order.index(round(value, 4)) + 1
        assert place == (expected if expected <= 2 else 0)


def test_differences_have_intervals_around_them(tmp_path: Path) -> None:
    (comparison,) = measure(results(tmp_path, ("shop",)), METRICS, resamples=300)
    table = difference_table(comparison, "shop")
    assert [each.label for each in table.rows][:3] == ["POPULARITY, Recall@5", "SASREC, Recall@5", "MSM4SR, Recall@5"]
    assert len(table.rows) == 3 * len(METRICS)
    for each in table.rows:
        against, mean, low, high, p, corrected = each.cells
        assert against.text == "SASRECM"
        assert low.value is not None
        assert low.value <= (mean.value or 0) <= (high.value or 0)
        assert 0 < (p.value or 0) <= (corrected.value or 0) <= 1
    assert "300 resamples" in table.notes[0]


def test_held_out_items_have_a_table_with_chance_as_last_line(tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "grid", ("sasrec", "msm4sr"), seeds=(0, 1))
    for seed in (0, 1):
        for row, value in (("sasrec", 0.1), ("msm4sr", 0.3 + seed / 10)):
            parts = {"among_all": value, "among_held_out": 2 * value}
            chance = {"chance_among_all": 0.01, "chance_among_held_out": 0.05}
            metrics = {name: dict.fromkeys(METRICS, number) for name, number in (parts | chance).items()}
            write_cell(grid, row, ranks(row), seed=seed, held_out={"users": 1200, "items": 34} | metrics)
    (comparison,) = measure(read_grid(grid), METRICS, resamples=50)
    table = held_out_table(comparison, "shop")
    assert [each.label for each in table.rows] == ["SASREC", "MSM4SR", "Random"]
    assert table.groups == [("among all items", 6), ("among held-out items", 6)]
    best = line(table, "MSM4SR")["among all items", "R@10"]
    assert (best.text, best.place) == ("0.3500", 1)
    assert best.deviation == pytest.approx(0.0707, abs=1e-4)
    assert line(table, "Random")["among held-out items", "N@5"].text == "0.0500"
    assert table.notes[0].startswith("The 1,200 users with a test target among the 34 items held out of training")


def test_rows_that_hold_out_different_items_have_no_common_chance(tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "grid", ("sasrec", "msm4sr"))
    parts = list(product(("", "chance_"), ("all", "held_out")))
    for row, users in (("sasrec", 6), ("msm4sr", 23)):
        metrics = {f"{chance}among_{among}": dict.fromkeys(METRICS, 0.1) for chance, among in parts}
        write_cell(grid, row, ranks(row), held_out={"users": users, "items": 4} | metrics)
    (comparison,) = measure(read_grid(grid), METRICS, resamples=50)
    table = held_out_table(comparison, "shop")
    assert [each.label for each in table.rows] == ["SASREC", "MSM4SR"]
    assert "not comparable" in table.notes[0]


@pytest.mark.parametrize(("users", "columns"), [((0, 0), []), ((0, 7), ["users (7)"]), ((3, 7), ["users"])])
def test_cold_users_have_columns_if_a_row_has_them(tmp_path: Path, users: tuple[int, int], columns: list[str]) -> None:
    """Rows with other cores have other cold users, and may have none."""
    grid = write_grid(tmp_path / "grid", ("sasrec", "msm4sr"))
    for row, number in zip(("sasrec", "msm4sr"), users, strict=True):
        found = {"users": number, "metrics": dict.fromkeys(METRICS, 0.2) if number else {}}
        cold = {"test": {"users": found, "items": {"items": 0, "metrics": {}}}}
        change_metrics(write_cell(grid, row, ranks(row)), cold=cold)
    (comparison,) = measure(read_grid(grid), METRICS, resamples=50)
    table = cold_table(comparison, "shop")
    assert [group for group, _ in table.groups if group] == columns
    if columns:
        assert (line(table, "SASREC")[columns[0], "R@10"].value is None) == (not users[0])
    write_grid_report(grid, metrics=METRICS)


def test_without_held_out_items_the_table_is_empty(tmp_path: Path) -> None:
    (comparison,) = measure(results(tmp_path, ("shop",)), METRICS, resamples=50)
    assert held_out_table(comparison, "shop").rows == []


def test_validation_table_has_means_over_seeds(tmp_path: Path) -> None:
    grid = results(tmp_path, ("shop",))
    (comparison,) = measure(grid, ("ndcg@10",))
    table = validation_table(comparison, "shop")
    for row, line in zip(comparison.rows, table.rows, strict=True):
        each = [outcome.metrics["validation"]["ndcg@10"] for outcome in grid.finished("shop", row.name)]
        assert line.cells[0].value == pytest.approx(sum(each) / len(each))


def test_cost_table_has_weights_seconds_memory_and_hardware(tmp_path: Path) -> None:
    table = cost_table(results(tmp_path, ("shop",)), "shop")
    cells = {c.name: cell.text for c, cell in zip(table.columns, table.rows[0].cells, strict=True)}
    assert cells == {
        "weights": "1,234",
        "pre-training, s": "0",
        "fine-tuning, s": "6",
        "epochs": "3",
        "memory, MiB": "321",
        "hardware": "a CPU, 2 threads",
    }


def test_published_results_name_protocol_and_source() -> None:
    table = published_table("ml-1m")
    assert all(each.cells[-1].text and each.cells[-2].text for each in table.rows)
    assert all(cell.place == 0 for each in table.rows for cell in each.cells)
    assert published_table("shop").rows == []


def test_settings_are_split_into_shared_and_per_row(tmp_path: Path) -> None:
    ours = {"name": "msm4sr", "model": "msm4sr", "changes": {"pretrain.init_from": "/source-{seed}"}}
    grid = write_grid(tmp_path / "grid", ("sasrec", ours), seeds=(0, 1))
    for seed in (0, 1):
        epochs, source = {"finetune": {"epochs": 3}}, {"pretrain": {"init_from": f"/source-{seed}"}}
        write_cell(grid, "sasrec", [1], seed=seed, settings={"model": {"dim": 8}, **epochs})
        write_cell(grid, "msm4sr", [1], seed=seed, settings={"model": {"dim": 8, "experts": 4}, **epochs, **source})
    shared, own = split_settings(read_grid(grid))
    assert shared == {"finetune.epochs": 3, "model.dim": 8, "preset": "best"}
    assert own["sasrec"] == {}
    assert own["msm4sr"] == {
        "model.experts": 4,
        "pretrain.init_from (shop, seed 0)": "/source-0",
        "pretrain.init_from (shop, seed 1)": "/source-1",
    }


@pytest.mark.parametrize("torch", ["2.13.0", "2.12.0"])
def test_versions_that_differ_between_cells_are_all_named(tmp_path: Path, torch: str) -> None:
    grid = write_grid(tmp_path / "grid")
    write_cell(grid, "sasrec", [1])
    change_metrics(write_cell(grid, "msm4sr", [1]), versions={"python": "3.11.9", "torch": torch})
    assert dict(software_versions(read_grid(grid).all()))["torch"] == list(dict.fromkeys(["2.13.0", torch]))
