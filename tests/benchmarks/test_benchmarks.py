"""The benchmarks run on a tiny shop and measure what they claim."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from builders import make_dataset, make_msm4sr, random_sequences
from common import matrix_peak, memory_now, memory_peak
from grids import write_cell, write_grid
from parity.export import NAME, as_recbole_transformer, export_dataset
from steps import PARTS, Limit, Parts, Stage, run_steps
from typer.testing import CliRunner

from msm4sr.cli import app
from msm4sr.data.dataset import Dataset, training_histories
from msm4sr.data.toyshop import generate_toyshop
from msm4sr.experiments.settings import RunSettings, resolve_settings
from msm4sr.features.store import MISSING, StoreTables, write_store

ROOT = Path(__file__).resolve().parents[2]
N_ITEMS = 30
STAGES: tuple[Stage, ...] = ("pretrain", "finetune")


def small() -> tuple[Dataset, RunSettings]:
    changes = [f"{stage}.batch_pairs=40" for stage in STAGES] + ["device.accelerator=cpu", "pretrain.drop=0"]
    return make_dataset(random_sequences(20, N_ITEMS, 14), N_ITEMS), resolve_settings("seed", changes=changes)


# -- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_steps_continue_over_epochs_and_each_is_measured(stage: Stage) -> None:
    dataset, settings = small()
    ticks = count(0, 3)
    steps = run_steps(stage, make_msm4sr(N_ITEMS), dataset, settings, Limit(11), lambda: next(ticks))
    epoch = np.maximum(np.diff(training_histories(dataset).offsets) - 1, 0).sum()
    assert len(steps) == 11
    assert sum(step.pairs for step in steps) > epoch, "the test must run more than an epoch"
    assert [step.cost for step in steps] == [3] * 11
    for step in steps:
        assert step.pairs == step.tokens <= step.slots


def test_no_step_begins_after_the_time_limit() -> None:
    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])  # from now on, PyTorch calls hooks of a step twice
    dataset, settings = small()
    steps = run_steps("finetune", make_msm4sr(N_ITEMS), dataset, settings, Limit(50, at_least=3, seconds=0))
    assert len(steps) == 3


def test_all_parts_of_a_step_take_time_and_hooks_are_removed() -> None:
    dataset, settings = small()
    model, parts = make_msm4sr(N_ITEMS), Parts()
    run_steps("pretrain", model, dataset, settings, Limit(4), listen=parts.listen)
    milliseconds = parts.close()
    assert set(milliseconds) == set(PARTS)
    assert all(each > 0 for each in milliseconds.values())
    run_steps("pretrain", model, dataset, settings, Limit(2))
    assert parts.close() == milliseconds


def test_memory_and_the_peak_are_of_a_plausible_size() -> None:
    before = memory_peak()
    block = torch.ones(64, 1024, 1024)  # 256 MiB
    assert memory_now() > 256
    assert memory_peak() >= max(before, memory_now() - 1)
    del block
    assert 1e7 < matrix_peak(size=128) < 1e15


# -- the export to RecBole -------------------------------------------------------------------------------------------


def test_the_export_keeps_every_item_and_the_order_of_each_history(tmp_path: Path) -> None:
    dataset = make_dataset([[3, 1, 3, 0], [2, 2, 1]], 6)
    export_dataset(dataset, tmp_path)
    log = pl.read_csv(tmp_path / NAME / f"{NAME}.inter", separator="\t")
    assert log.sort("user_id:token", "timestamp:float")["item_id:token"].to_list() == dataset.histories.values.tolist()
    assert log["user_id:token"].to_list() == [0, 0, 0, 0, 1, 1, 1]
    assert pl.read_csv(tmp_path / NAME / f"{NAME}.item", separator="\t")["item_id:token"].to_list() == [*range(6)]


def test_recbole_gets_our_settings() -> None:
    options = as_recbole_transformer(
        resolve_settings("seed", "sasrec", ["model.dim=32", "finetune.learning_rate=0.01"])
    )
    assert (options["hidden_size"], options["learning_rate"], options["train_batch_size"]) == (32, 0.01, 1024)


# -- the scripts -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks") / "shop"
    generate_toyshop(folder, users=60, items=40)
    return folder


def run_script(name: str, *options: object) -> SimpleNamespace:
    command = [sys.executable, str(ROOT / "benchmarks" / name), *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return SimpleNamespace(code=done.returncode, out=done.stdout, error=done.stderr)


@pytest.mark.slow
def test_training_reports_a_stage(shop: Path) -> None:
    few = ("--steps", 3, "--warmup", 1, "--threads", 1, "--model", "sasrec", "--set", "finetune.batch_pairs=50")
    done = run_script("training.py", "--data", shop, "--stage", "finetune", *few)
    assert done.code == 0, done.error
    assert re.search(r"^\| speed, all timed steps \| [1-9]\d* pairs/s \|$", done.out, re.M)
    assert re.search(r"^\| share of the float32 peak .* \| 0\.\d+ \|$", done.out, re.M)
    counted, by_hand = re.search(r"counted \(by hand from shapes\) \| ([\d.]+) \(([\d.]+)\)", done.out).groups()  # type: ignore[union-attr]
    assert float(counted) == pytest.approx(float(by_hand), rel=0.01)
    assert len(re.findall(r"^\| `", done.out, re.M)) == 10


def test_labelled_runs_of_different_settings_have_a_line_each(shop: Path, tmp_path: Path) -> None:
    runs = [tmp_path / str(neighbours) for neighbours in (2, 20)]
    for run in runs:
        options = ["--model", "itemknn", "--set", f"model.neighbours={run.name}", "--out", str(run)]
        assert CliRunner().invoke(app, ["run", str(shop), *options]).exit_code == 0
    refused = run_script("runs.py", *runs)
    assert refused.code == 2
    assert f"{runs[1]}: other settings than the runs of ItemKNN on shop before it" in refused.error
    done = run_script("runs.py", *(f"{run.name} neighbours={run}" for run in runs))
    assert done.code == 0, done.error
    assert re.findall(r"^\| shop \| (.*?) \| 1 \| 0\.", done.out, re.M) == ["2 neighbours", "20 neighbours"]


@pytest.mark.slow
def test_processes_that_divide_a_catalogue_are_compared() -> None:
    done = run_script("sharded.py", "--items", 3000, "--users", 50, "--steps", 4, "--processes", 1, "--processes", 2)
    assert done.code == 0, done.error
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.out.splitlines()[-2:]]
    assert [row[0] for row in rows] == ["1", "2"]
    assert all(float(row[1].split()[0].replace(",", "")) > 0 for row in rows)
    assert [len(row[3].split()) for row in rows] == [1, 2]
    assert 0 < float(rows[1][-1]) < 1e-5


@pytest.mark.slow  # a process a cell
def test_growth_fills_its_table_and_draws(tmp_path: Path) -> None:
    done = run_script("growth.py", "--quick", "--steps", 3, "--threads", 1, "--out", tmp_path / "growth.png")
    assert done.code == 0, done.error
    assert len(re.findall(r"^\| (?:history|items|users) \|.* [1-9][0-9,]* pairs/s \|", done.out, re.M)) == 12
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow  # 24 processes
def test_speed_on_a_shared_machine_is_a_row_for_each_load_and_stage() -> None:
    done = run_script("shared_machine.py", "--steps", 2, "--rounds", 1, "--items", 40)
    assert done.code == 0, done.error
    row = r"^\| [012] \| \w+ \|(?: [1-9]\d* \(.*\) \|){4} \d+ threads? \(.*\) \|$"
    assert len(re.findall(row, done.out, re.M)) == 6


@pytest.mark.slow  # an environment of 2 GB, unless it is there
def test_both_libraries_train_on_the_same_pairs_and_have_the_same_ranks(shop: Path, tmp_path: Path) -> None:
    environment = ROOT / ".venv-recbole"
    if not (environment / ".installed").exists():
        pytest.skip("RecBole's environment is not created by a test; run benchmarks/recbole_sasrec.py")
    few = ("--epochs", 2, "--threads", 1, "--environment", environment, "--out", tmp_path / "plot.png")
    done = run_script("recbole_sasrec.py", "--data", shop, *few)
    assert done.code == 0, done.error
    difference = re.search(r"of the same scores differ by (\S+) at most", done.out)
    assert difference
    assert float(difference[1]) < 1e-6
    assert len(re.findall(r"^\| (?:msm4sr|RecBole) \|", done.out, re.M)) == 2


def test_the_images_of_a_share_of_the_items_are_removed(tmp_path: Path) -> None:
    names, counts = [f"item-{n}" for n in range(12)], np.array([1, 2, 0, 1] * 3)
    vectors = np.arange(counts.sum(), dtype=np.float32)[:, None].repeat(4, axis=1)
    missing = pl.DataFrame(schema=MISSING)
    write_store(tmp_path / "visual", {}, StoreTables(names, names, counts, missing), [vectors], dim=4)
    first = {name: float(row) for name, row, n in zip(names, np.cumsum(counts) - counts, counts, strict=True) if n}
    kept = {}
    for share in ("0", "0.3", "0.7"):
        done = run_script("remove_images.py", tmp_path / "visual", share, tmp_path / "kept.parquet")
        assert done.code == 0, done.error
        rows = pl.read_parquet(tmp_path / "kept.parquet")
        kept[share] = {name: vector[0] for name, vector in zip(rows["item_id"], rows["vector"], strict=True)}
    assert kept["0"] == first
    assert [len(found) for found in kept.values()] == [9, 6, 3]
    assert kept["0.7"].items() < kept["0.3"].items() < kept["0"].items()


def test_the_chart_of_accuracy_has_a_point_for_each_finished_system(tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "grid", ("sasrec", "sasrecm", "difsr"))
    write_cell(grid, "sasrec", [3, 30, 30], seen_excluded=[1, 30, 30])
    write_cell(grid, "sasrecm", [1, 30, 30], seen_excluded=[1, 30, 30])
    done = run_script("accuracy.py", grid, "--plot", tmp_path / "accuracy.png")
    assert done.code == 0, done.error
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_graph_models_of_a_grid_are_ranked_with_and_without_folding_in_by_the_same_weights(
    shop: Path, tmp_path: Path
) -> None:
    grid = tmp_path / "grid"
    command = [sys.executable, "-m", "msm4sr", "compare", "comparison", "--data", shop, "--out", grid]
    options = ["--rows", "sasrec", "--rows", "lightgcn", "--set", "finetune.epochs=3"]
    subprocess.run([*map(str, command), *options], check=True, capture_output=True)
    cell = grid / "cells" / shop.name / "lightgcn" / "seed-0"
    metrics = json.loads((cell / "metrics.json").read_text())["seen_excluded"]["test"]
    done = run_script("fold_in.py", grid)
    assert done.code == 0, done.error
    (line,) = [line for line in done.out.splitlines() if shop.name in line]
    plain = f"| {shop.name} | LightGCN | 1 | {metrics['recall@10']:.4f} | {metrics['ndcg@10']:.4f} |"
    assert line.startswith(plain)
    assert line.removeprefix(plain).split("|")[:2] != plain.split("|")[-3:-1]
