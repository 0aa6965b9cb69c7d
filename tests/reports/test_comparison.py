"""Means, deviations and tests of a grid: what is compared with what, over which family."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import pytest
import yaml
from grids import SEEN_EXCLUDED, cell_folder, write_cell, write_grid

from msm4sr.errors import InputError
from msm4sr.evaluation.metrics import metrics_per_user
from msm4sr.evaluation.significance import holm, mean_over_seeds, paired_bootstrap
from msm4sr.reports.comparison import Comparison, check_metrics, measure, measure_seen_excluded
from msm4sr.reports.results import read_grid
from msm4sr.reports.tables import main_table

ROWS = ("popularity", "sasrec", "s3rec", "msm4sr")
QUALITY = {"popularity": 60.0, "sasrec": 25.0, "s3rec": 22.0, "msm4sr": 12.0}  # mean rank
SEEDS = (0, 1, 2)
METRICS = ("recall@10", "ndcg@10")


def ranks(row: str, seed: int = 0, users: int = 120) -> np.ndarray:
    """Users that are hard for one system are hard for all."""
    hard = np.random.default_rng(9).exponential(size=users)
    own = np.random.default_rng([seed, ROWS.index(row)]).exponential(size=users)
    return np.ceil(QUALITY[row] * (0.7 * hard + 0.3 * own))


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    folder = write_grid(tmp_path / "grid", ROWS, seeds=SEEDS)
    for row in ROWS:
        for seed in SEEDS:
            write_cell(folder, row, ranks(row, seed).tolist(), seed=seed)
    return folder


def only(grid: Path) -> Comparison:
    (comparison,) = measure(read_grid(grid), METRICS, resamples=400)
    return comparison


def test_a_score_has_the_mean_and_the_sample_deviation_over_seeds(grid: Path) -> None:
    score = only(grid).scores["shop", "sasrec", "ndcg@10"]
    values = [float(metrics_per_user(ranks("sasrec", seed))["ndcg@10"].mean()) for seed in SEEDS]
    assert score.values == pytest.approx(values)
    assert score.mean == pytest.approx(statistics.mean(values))
    assert score.deviation == pytest.approx(statistics.stdev(values))


def test_rows_are_tested_against_the_best_baseline_by_a_paired_bootstrap_over_users(grid: Path) -> None:
    comparison = only(grid)
    assert set(comparison.references.values()) == {"s3rec"}  # ours is better, but no baseline
    assert {row for _, row, _ in comparison.tests} == {"popularity", "sasrec", "msm4sr"}
    for row in ("popularity", "msm4sr"):
        mine, other = (
            mean_over_seeds([metrics_per_user(ranks(name, seed))["recall@10"] for seed in SEEDS])
            for name in (row, "s3rec")
        )
        (expected,) = paired_bootstrap(mine[:, None], other[:, None], resamples=400)
        found = comparison.tests["shop", row, "recall@10"]
        assert (found.difference.mean, found.difference.low, found.difference.high) == pytest.approx(
            (expected.mean, expected.low, expected.high)
        )
        assert found.difference.p == expected.p
        assert found.users == 120
    assert comparison.tests["shop", "msm4sr", "recall@10"].sign == 1
    assert comparison.tests["shop", "popularity", "recall@10"].sign == -1


def test_holms_family_is_the_rows_of_a_column(grid: Path) -> None:
    comparison = only(grid)
    for metric in METRICS:
        column = [comparison.tests["shop", row, metric] for row in ("popularity", "sasrec", "msm4sr")]
        assert [test.p for test in column] == holm([test.difference.p for test in column])


def test_the_improvement_is_ours_over_the_best_baseline(grid: Path) -> None:
    comparison = only(grid)
    mine, other = (comparison.scores["shop", row, "ndcg@10"].mean for row in ("msm4sr", "s3rec"))
    assert comparison.improvement("shop", "ndcg@10") == pytest.approx((mine - other) / other)


def test_variants_are_tested_against_the_full_system(tmp_path: Path) -> None:
    ours = ["sasrec", "msm4sr"]  # the first of them is the full one, wherever its row stands
    folder = write_grid(tmp_path / "grid", ("msm4sr", "s3rec", "sasrec"), kind="ablation", best_against=ours)
    for row in ("sasrec", "s3rec", "msm4sr"):
        write_cell(folder, row, ranks(row).tolist())
    comparison = only(folder)
    assert set(comparison.references.values()) == {"sasrec"}
    assert {row for _, row, _ in comparison.tests} == {"s3rec", "msm4sr"}
    assert comparison.improvement("shop", "ndcg@10") is None


def test_one_seed_has_no_deviation_but_an_improvement_and_a_test(tmp_path: Path) -> None:
    folder = write_grid(tmp_path / "grid", ("sasrec", "msm4sr"))
    for row in ("sasrec", "msm4sr"):
        write_cell(folder, row, ranks(row).tolist())
    comparison = only(folder)
    assert comparison.scores["shop", "msm4sr", "ndcg@10"].deviation is None
    assert (comparison.improvement("shop", "ndcg@10") or 0) > 0
    assert ("shop", "msm4sr", "ndcg@10") in comparison.tests


def test_rows_with_other_users_are_reported_as_untested(grid: Path) -> None:
    for seed in SEEDS:
        folder = cell_folder(grid, "sasrec", seed=seed)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        write_cell(grid, "sasrec", ranks("sasrec", seed).tolist(), seed=seed, users=[f"v{u}" for u in range(120)])
    comparison = only(grid)
    assert {row for _, row, _ in comparison.tests} == {"popularity", "msm4sr"}
    assert comparison.untested == [("shop", "SASREC was tested on other users or items than the others")]
    assert ("shop", "sasrec", "ndcg@10") in comparison.scores


def test_rows_without_ranks_per_user_are_reported_as_untested(grid: Path) -> None:
    (cell_folder(grid, "popularity", seed=1) / "users.parquet").unlink()
    comparison = only(grid)
    assert {row for _, row, _ in comparison.tests} == {"sasrec", "msm4sr"}
    assert comparison.untested == [("shop", "POPULARITY has no users.parquet (`msm4sr evaluate` makes it)")]


def test_rows_of_different_protocols_are_compared_separately(tmp_path: Path) -> None:
    folder = write_grid(tmp_path / "grid", ("sasrec", "s3rec", "msm4sr"))
    for row in ("sasrec", "s3rec", "msm4sr"):
        settings = {"model": {"name": row}, "evaluation": {"exclude_seen": row == "s3rec"}}
        write_cell(folder, row, ranks(row).tolist(), settings=settings)
    included, excluded = measure(read_grid(folder), METRICS, resamples=50)
    assert [row.name for row in included.rows] == ["sasrec", "msm4sr"]
    assert [row.name for row in excluded.rows] == ["s3rec"]
    assert set(included.references.values()) == {"sasrec"}
    assert excluded.tests == {}


def test_models_that_always_exclude_seen_items_are_compared_with_the_others(tmp_path: Path) -> None:
    """They never rank what was trained on, whatever the settings are: the paper's tables have them so."""
    folder = write_grid(tmp_path / "grid", ("sasrec", "msm4sr"))
    write_cell(folder, "sasrec", ranks("sasrec").tolist(), protocol=SEEN_EXCLUDED)
    write_cell(folder, "msm4sr", ranks("msm4sr").tolist())
    assert len(measure(read_grid(folder), METRICS, resamples=50)) == 1


def test_rows_are_compared_again_with_seen_items_excluded(tmp_path: Path) -> None:
    folder = write_grid(tmp_path / "grid", ("popularity", "sasrec", "msm4sr"))
    for row in ("popularity", "sasrec", "msm4sr"):
        own = ranks(row)
        write_cell(folder, row, own.tolist(), seen_excluded=own.tolist() if row == "popularity" else [1.0] * len(own))
    measured = measure(read_grid(folder), METRICS, resamples=50)
    [without] = measure_seen_excluded(read_grid(folder), measured)
    assert without.scores["shop", "sasrec", "ndcg@10"].mean == 1.0
    assert without.scores["shop", "popularity", "ndcg@10"] == measured[0].scores["shop", "popularity", "ndcg@10"]
    assert without.tests["shop", "popularity", "ndcg@10"].difference.mean < 0
    assert "seen items excluded" in main_table(without).title


def test_seen_items_are_not_excluded_again_where_nothing_would_change(tmp_path: Path) -> None:
    same = write_grid(tmp_path / "same", ("sasrec",))
    write_cell(same, "sasrec", ranks("sasrec").tolist())
    assert measure_seen_excluded(read_grid(same), measure(read_grid(same), METRICS, resamples=50)) == []


def test_rows_that_include_and_exclude_seen_items_are_compared_with_these_excluded(tmp_path: Path) -> None:
    mixed = write_grid(tmp_path / "mixed", ("sasrec", "s3rec"))
    for row in ("sasrec", "s3rec"):
        settings = {"evaluation": {"exclude_seen": row == "s3rec"}}
        write_cell(mixed, row, [5, 6], settings=settings, seen_excluded=[1, 2])
    first = measure(read_grid(mixed), METRICS, resamples=50)
    [together] = measure_seen_excluded(read_grid(mixed), first)
    assert [row.name for row in together.rows] == ["sasrec", "s3rec"]
    assert together.protocol == "all rows, seen items excluded"
    assert len({one.name for one in (*first, together)}) == 3


def test_each_split_has_its_table_with_seen_items_excluded(tmp_path: Path) -> None:
    folder = write_grid(tmp_path / "grid", ("sasrec", "s3rec"))
    for row in ("sasrec", "s3rec"):
        settings = {"dataset": {"split": "temporal"}} if row == "s3rec" else {}
        write_cell(folder, row, [5, 6], settings=settings, seen_excluded=[1, 2])
    found = measure_seen_excluded(read_grid(folder), measure(read_grid(folder), METRICS, resamples=50))
    assert [[row.name for row in one.rows] for one in found] == [["sasrec"], ["s3rec"]]
    assert [one.protocol.partition(",")[0] for one in found] == ["leave-one-out", "temporal split at 0.8 and 0.9"]


def test_a_row_whose_protocol_differs_by_data_set_is_in_the_table_of_each(tmp_path: Path) -> None:
    for name, split in (("a", "leave_one_out"), ("b", "temporal")):
        (tmp_path / f"{name}.yaml").write_text(f"dataset: {{split: {split}}}\n")
    row = {"name": "sasrec", "model": "sasrec", "preset": "seed", "settings": str(tmp_path / "{data}.yaml")}
    folder = write_grid(tmp_path / "grid", (row, "popularity"), data=("a", "b"))
    for data, split in (("a", "leave_one_out"), ("b", "temporal")):
        settings = {"dataset": {"split": split}, "model": {"name": "sasrec"}}
        write_cell(folder, "sasrec", [5, 6], data=data, settings=settings)
    grid = yaml.safe_load((folder / "grid.yaml").read_text())
    del grid["rows"][0]["changes"]  # the files of settings say it
    (folder / "grid.yaml").write_text(yaml.safe_dump(grid))
    first, second = measure(read_grid(folder), METRICS, resamples=50)
    assert (first.split, first.results.data, [row.name for row in first.rows]) == (
        "leave-one-out", ("a", "b"), ["sasrec", "popularity"],
    )  # fmt: skip
    assert (second.results.data, [row.name for row in second.rows]) == (("b",), ["sasrec"])
    assert ("b", "sasrec", "ndcg@10") not in first.scores
    assert ("b", "sasrec", "ndcg@10") in second.scores


def test_a_cell_of_another_protocol_than_its_row_is_an_error(tmp_path: Path) -> None:
    folder = write_grid(tmp_path / "grid", ("sasrec",), seeds=(0, 1))
    for seed in (0, 1):
        settings = {"evaluation": {"exclude_seen": seed == 1}}
        write_cell(folder, "sasrec", [1, 2], seed=seed, settings=settings)
    with pytest.raises(InputError, match=r"seed-0: made with different settings: evaluation\.exclude_seen is False"):
        read_grid(folder)


def test_unknown_metrics_are_errors() -> None:
    assert check_metrics(["mrr", "recall@50"]) == ("mrr", "recall@50")
    assert check_metrics([])[0] == "recall@5"
    with pytest.raises(InputError, match=r"--metric ndcg@7: there is no such metric; there are recall@5,"):
        check_metrics(["ndcg@7"])


def test_a_grid_without_a_finished_cell_has_nothing_to_compare(tmp_path: Path) -> None:
    folder = write_grid(tmp_path / "grid")
    comparison = only(folder)
    assert (comparison.scores, comparison.tests, comparison.references) == ({}, {}, {})
