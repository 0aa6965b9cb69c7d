"""Grids through the command line: complete, interrupted, failed, shared, refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from calling import Cli, Trained, metrics_of, small_log, write_folder

from msm4sr.experiments import compare
from msm4sr.experiments.grid_config import CONFIGS, GridRequest, plan_grid
from msm4sr.experiments.run import read_metrics, write_metrics
from msm4sr.locks import try_lock
from msm4sr.models.registry import MODELS
from msm4sr.training.checkpoint import last_file, read_state

QUICK = ("--set=finetune.epochs=2", "--set=model.dim=8", "--set=model.inner_dim=8")
ROWS = """
rows:
  - {name: popularity, label: Popularity, model: popularity}
  - {name: sasrec, model: sasrec}
  - {name: itemknn, label: ItemKNN, model: itemknn}
"""


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """IDs alone."""
    return write_folder(tmp_path_factory.mktemp("data") / "ring", small_log(users=20, length=8, items=60))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "three.yaml"
    file.write_text(ROWS)
    return file


@pytest.fixture
def grid(cli: Cli, ring: Path, config: Path, tmp_path: Path) -> Path:
    called = cli("compare", config, "--data", ring, "--out", tmp_path / "grid", *QUICK)
    assert called.code == 0, called
    return tmp_path / "grid"


def cell(grid: Path, row: str, seed: int = 0) -> Path:
    return grid / "cells" / "ring" / row / f"seed-{seed}"


def test_every_cell_is_the_run_that_its_settings_make(cli: Cli, grid: Path, ring: Path, tmp_path: Path) -> None:
    assert {path.name for path in (grid / "cells" / "ring").iterdir()} == {"popularity", "sasrec", "itemknn"}
    assert cli("run", ring, "--out", tmp_path / "run", "--model", "sasrec", *QUICK, "--seed=0").code == 0
    assert metrics_of(cell(grid, "sasrec")) == metrics_of(tmp_path / "run")
    assert (cell(grid, "sasrec") / "model" / "model.safetensors").exists()
    assert not list(grid.rglob(".run.lock"))


def test_the_table_shows_means_over_seeds_and_by_which_protocol_each_row_is_ranked(
    cli: Cli, grid: Path, ring: Path, config: Path
) -> None:
    called = cli("compare", config, "--data", ring, "--out", grid, *QUICK, "--seed=0", "--seed=1")
    assert called.code == 0
    assert "3 of 6 cells are already finished" in called.out
    values = [metrics_of(cell(grid, "sasrec", seed))["test"]["ndcg@10"] for seed in (0, 1)]
    assert values[0] != values[1]
    assert f"sasrec {sum(values) / 2:.4f} " in called.out
    assert "test, mean over 2 seeds; leave-one-out, full ranking" in called.out
    assert "excluded" in called.out.split("ItemKNN")[1]


def test_what_is_finished_is_left_alone(
    cli: Cli, grid: Path, ring: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "run_cell", None)
    called = cli("compare", config, "--data", ring, "--out", grid, *QUICK)
    assert called.code == 0
    assert "3 of 3 cells are already finished" in called.out


def test_an_interrupted_cell_is_resumed(
    cli: Cli, grid: Path, ring: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    other = tmp_path / "other"
    with monkeypatch.context() as patched:
        patched.setattr(compare, "evaluate_stage", interrupt)
        arguments = ("compare", config, "--data", ring, "--out", other, *QUICK, "--rows", "sasrec")
        called = cli(*arguments)
    assert called.code == 130
    assert "Rerun the command to continue" in called.err
    before = last_file(cell(other, "sasrec") / "checkpoints", "finetune").stat().st_mtime_ns
    assert cli(*arguments).code == 0
    assert last_file(cell(other, "sasrec") / "checkpoints", "finetune").stat().st_mtime_ns == before
    assert metrics_of(cell(other, "sasrec")) == metrics_of(cell(grid, "sasrec"))


FAILING = ROWS + "  - {name: unhappy, model: sasrec, changes: {finetune.learning_rate: 1.0e+30}}\n"


def test_a_failed_cell_stops_nothing_is_shown_and_is_run_again_on_demand(
    cli: Cli, ring: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing.yaml").write_text(FAILING.replace("rows:\n", "rows:\n  - {name: blind, model: dualgnn}\n"))
    out = tmp_path / "grid"
    arguments = ("compare", tmp_path / "failing.yaml", "--data", ring, "--out", out, *QUICK)
    called = cli(*arguments)
    assert called.code == 1
    assert "2 of 5 cells failed" in called.err
    assert cell(out, "itemknn").joinpath("metrics.json").exists()
    blind, unhappy = (json.loads((cell(out, row) / "failed.json").read_text()) for row in ("blind", "unhappy"))
    assert blind["traceback"] is None
    assert "text" in blind["reason"]
    assert unhappy["reason"].startswith("FloatingPointError: finetune: the loss became")
    assert "Traceback" in unhappy["traceback"]
    assert unhappy["settings"]["finetune"]["learning_rate"] == 1e30
    assert f"failed: {blind['reason']}" in called.out

    done: list[Path] = []
    monkeypatch.setattr(compare, "run_cell", lambda *arguments, **options: done.append(arguments[0].folder) or fail())
    called = cli(*arguments)
    assert called.code == 1
    assert not done
    assert "failed" in called.out
    assert cli(*arguments, "--retry-failed").code == 1
    assert sorted(done) == [cell(out, "blind"), cell(out, "unhappy")]
    monkeypatch.undo()
    assert cli(*arguments, "--retry-failed", "--rows=blind").code == 1
    assert "text" in json.loads((cell(out, "blind") / "failed.json").read_text())["reason"]


def test_a_cell_that_failed_after_its_training_is_not_trained_again(
    cli: Cli, ring: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("compare", config, "--data", ring, "--out", tmp_path / "grid", *QUICK, "--rows=sasrec")
    with monkeypatch.context() as patched:
        patched.setattr(compare, "evaluate_stage", lambda *arguments, **options: fail())
        assert cli(*arguments).code == 1
    trained = last_file(cell(tmp_path / "grid", "sasrec") / "checkpoints", "finetune")
    before = trained.stat().st_mtime_ns
    assert cli(*arguments, "--retry-failed").code == 0
    assert trained.stat().st_mtime_ns == before
    assert not (cell(tmp_path / "grid", "sasrec") / "failed.json").exists()


def test_a_cell_that_another_process_works_on_is_left_to_it(
    cli: Cli, refused: Callable[..., str], ring: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "ENDING", 0.0)
    out = tmp_path / "grid"
    arguments = ("compare", config, "--data", ring, "--out", out, *QUICK, "--rows=sasrec")
    assert cli(*arguments[:-1], "--rows=popularity").code == 0
    lock = try_lock(cell(out, "sasrec") / ".run.lock")
    assert lock is not None
    called = cli(*arguments)
    assert called.code == 1
    assert "another process works on this run" in called.out
    assert "1 of 1 cells were lost" in called.err
    assert not (cell(out, "sasrec") / "failed.json").exists()
    (cell(out, "sasrec") / "failed.json").write_text('{"reason": "of an earlier run", "traceback": null}')
    assert "another process works on this run" in refused(*arguments, "--retry-failed")
    assert (cell(out, "sasrec") / "failed.json").exists()
    lock.release()
    assert cli(*arguments, "--retry-failed").code == 0


def test_a_cell_of_another_version_of_the_code_is_refused(
    refused: Callable[..., str], grid: Path, config: Path, ring: Path
) -> None:
    old = cell(grid, "sasrec")
    metrics = read_metrics(old) or {}
    write_metrics(old, metrics | {"identity": metrics["identity"] | {"code": 1}})
    answer = refused("compare", config, "--data", ring, "--out", grid, *QUICK)
    assert f"{old}: made by another version of msm4sr: code is 1 there and " in answer
    assert f"{old}: made by another version of msm4sr than other cells" in refused("report", grid)


def test_a_row_that_has_only_failed_may_be_mended(cli: Cli, grid: Path, ring: Path, tmp_path: Path) -> None:
    file = tmp_path / "three.yaml"
    arguments = ("compare", file, "--data", ring, "--out", grid, *QUICK)
    file.write_text(FAILING)
    assert cli(*arguments).code == 1
    file.write_text(FAILING.replace("1.0e+30", "1.0e-2").replace("label: ItemKNN", "label: Neighbours"))
    called = cli(*arguments)
    assert called.code == 1
    assert "FloatingPointError" in called.out, "failed cells are done again on demand alone"
    called = cli(*arguments, "--retry-failed")
    assert called.code == 0, called
    assert "Neighbours" in called.out
    said = yaml.safe_load((grid / "grid.yaml").read_text())
    assert said["rows"][-1]["changes"]["finetune.learning_rate"] == 0.01
    assert not (cell(grid, "unhappy") / "failed.json").exists()
    file.write_text(FAILING)
    assert cli(*arguments).code == 2, "what is finished stands"


def fail() -> None:
    raise RuntimeError("not today")


MSM4SR = (sys.executable, "-m", "msm4sr")


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*MSM4SR, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        start_new_session=True,
    )


def wait_for_epoch(process: subprocess.Popen[str], run: Path, epoch: int) -> None:
    """Until the checkpoints of fine-tuning there are of that epoch."""
    while True:
        state = read_state(run / "checkpoints", "finetune")
        if state is not None and state.epoch >= epoch:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)


def test_a_grid_is_run_by_one_process(refused: Callable[..., str], grid: Path, ring: Path, config: Path) -> None:
    lock = try_lock(grid / ".compare.lock")
    assert lock is not None
    answer = refused("compare", config, "--data", ring, "--out", grid, *QUICK, "--seed=1")
    assert (
        "another process runs this grid; wait until it ends. To run cells side by side, use --jobs or --ray" in answer
    )
    lock.release()


def test_several_processes_share_the_cells(cli: Cli, grid: Path, ring: Path, config: Path) -> None:
    called = cli("compare", config, "--data", ring, "--out", grid, *QUICK, "--seed=1", "--rows=sasrec", "--jobs=2")
    assert called.code == 0, called
    assert "1/1 ring sasrec seed 1 ndcg@10" in called.out
    assert metrics_of(cell(grid, "sasrec", 1))["run"]["seed"] == 1


@pytest.mark.slow
def test_after_ctrl_c_and_after_a_kill_others_take_over_bit_identically(
    cli: Cli, ring: Path, config: Path, tmp_path: Path
) -> None:
    settings = (*QUICK, "--set=finetune.epochs=150", "--set=finetune.patience=150", "--rows=sasrec")
    arguments = ("compare", config, "--data", ring, *settings, "--seed=0", "--seed=1")
    out = tmp_path / "grid"
    first = start(*arguments, "--out", out, "--jobs=2")
    wait_for_epoch(first, cell(out, "sasrec"), 4)
    os.killpg(first.pid, signal.SIGINT)
    said = first.communicate()[0]
    assert first.returncode == 130, said
    assert "Rerun the command to continue" in said
    assert "Traceback" not in said

    at = read_state(cell(out, "sasrec") / "checkpoints", "finetune")
    assert at is not None
    second = start(*arguments, "--out", out)  # takes over at once what was let go
    wait_for_epoch(second, cell(out, "sasrec"), at.epoch + 4)
    second.kill()
    second.communicate()
    assert not (cell(out, "sasrec") / "metrics.json").exists(), "it was to be killed before it was done"

    third = start(*arguments, "--out", out, "--jobs=2")
    said = third.communicate()[0]
    assert third.returncode == 0, said
    assert cli(*arguments, "--out", tmp_path / "undisturbed").code == 0
    for seed in (0, 1):
        assert metrics_of(cell(out, "sasrec", seed)) == metrics_of(cell(tmp_path / "undisturbed", "sasrec", seed))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--set=finetune.epochs=3"], "rows popularity: changes.finetune.epochs is 2 there and 3 now"),
        (["--preset=seed"], "rows popularity: preset is best there and seed now"),
    ],
)
def test_another_grid_in_the_same_folder_is_refused_and_what_differs_is_said(
    refused: Callable[..., str], grid: Path, ring: Path, config: Path, changed: list[str], said: str
) -> None:
    before = (grid / "grid.yaml").read_text()
    assert said in refused("compare", config, "--data", ring, "--out", grid, *QUICK, *changed)
    assert (grid / "grid.yaml").read_text() == before


def test_a_cell_that_was_made_by_other_settings_is_refused(
    refused: Callable[..., str], grid: Path, ring: Path, config: Path
) -> None:
    """For example by a preset that has changed since."""
    file = cell(grid, "sasrec") / "config.yaml"
    file.write_text(file.read_text().replace("dropout: 0.2", "dropout: 0.3", 1))
    message = refused("compare", config, "--data", ring, "--out", grid, *QUICK)
    assert "seed-0: made with different settings: model.dropout is 0.3 there and 0.2 now" in message


def test_rows_seeds_and_data_are_added_to_a_grid(cli: Cli, grid: Path, ring: Path, tmp_path: Path) -> None:
    more = tmp_path / "three.yaml"
    more.write_text(ROWS + "  - {name: wider, model: sasrec, changes: {model.dim: 16}}\n")
    other = write_folder(tmp_path / "other", small_log(users=9, items=9))
    options = ("--data", other, "--out", grid, *QUICK, "--rows=wider", "--rows=popularity", "--seed=7")
    assert cli("compare", more, *options).code == 0
    said = yaml.safe_load((grid / "grid.yaml").read_text())
    assert [row["name"] for row in said["rows"]] == ["popularity", "sasrec", "itemknn", "wider"]
    assert said["rows"][-1]["changes"]["model.dim"] == 16, "what a row says itself stands"
    assert [data["name"] for data in said["data"]] == ["ring", "other"]
    assert said["seeds"] == [0, 7]
    made = {str(file.parent.relative_to(grid / "cells")) for file in grid.glob("cells/*/*/*/metrics.json")}
    assert made == {"ring/popularity/seed-0", "ring/sasrec/seed-0", "ring/itemknn/seed-0"} | {
        "other/popularity/seed-7",
        "other/wider/seed-7",
    }


def test_rows_take_files_of_settings_for_their_data_set(
    cli: Cli, refused: Callable[..., str], ring: Path, config: Path, tmp_path: Path
) -> None:
    (tmp_path / "tuned" / "ring").mkdir(parents=True)
    (tmp_path / "tuned" / "ring" / "sasrec.yaml").write_text("model: {dim: 24, inner_dim: 24}\n")
    arguments = ("compare", config, "--data", ring, "--settings", tmp_path / "tuned", "--set=finetune.epochs=2")
    out = tmp_path / "grid"
    assert cli(*arguments, "--set=model.inner_dim=8", "--out", out).code == 0
    used = yaml.safe_load((cell(out, "sasrec") / "config.yaml").read_text())["model"]
    assert (used["dim"], used["inner_dim"]) == (24, 8), "what is set on the command line stands"
    (tmp_path / "tuned" / "ring" / "sasrec.yaml").write_text("model: {dim: 25}\n")
    assert "heads" in refused(*arguments, "--out", out)
    (tmp_path / "tuned" / "ring" / "sasrec.yaml").write_text("model: {dim: 26}\n")
    assert "model.dim is 24 there and 26 now" in refused(*arguments, "--set=model.inner_dim=8", "--out", out)
    other = write_folder(tmp_path / "other", small_log())
    said = refused(*arguments, "--data", other, "--out", tmp_path / "more")
    assert "sasrec has a file for ring but not for other" in said


def test_rows_without_a_file_of_their_own_take_that_of_their_model(ring: Path, tmp_path: Path) -> None:
    (tmp_path / "ring").mkdir(exist_ok=True)
    (tmp_path / "ring" / "sasrec.yaml").write_text("model: {dim: 24}\n")
    (tmp_path / "ring" / "own.yaml").write_text("model: {dim: 32}\n")
    config = tmp_path / "grid.yaml"
    rows = [
        "{name: a, model: sasrec}",
        "{name: own, model: sasrec}",
        "{name: b, model: sasrec, changes: {model.dim: 8}}",
    ]
    config.write_text(f"rows: [{', '.join([*rows, '{name: knn, model: itemknn}'])}]")
    grid = plan_grid(GridRequest(str(config), [ring], settings=tmp_path))
    assert [row.resolve(grid.data[0], 0).model.dim for row in grid.rows[:3]] == [24, 32, 8]  # type: ignore[union-attr]
    assert grid.rows[3].settings is None


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        (ROWS, ["--rows=SASRec"], "no row 'SASRec'; there are popularity, sasrec, itemknn; did you mean 'sasrec'?"),
        (
            f"best_against: [sasrecs]\n{ROWS}",
            [],
            "best_against: there is no row 'sasrecs'; there are popularity, sasrec",
        ),
        (ROWS, ["--data=nothing"], "error: --data nothing: no such folder"),
        (ROWS, ["--set=model.hops=3"], "no model of these rows has that setting"),
        (ROWS, ["--set=finetune.epoch=3"], "there is no setting 'finetune.epoch' of popularity"),
        (ROWS, ["--set=device.devices=2"], "--jobs runs several cells"),
        ("rows: [{model: sasrec}]", [], "row : name"),
        ("rows: [{name: ../x}]", [], "row ../x: name"),
        ("rows: [{name: a}, {name: a}]", [], "'a' is listed twice"),
        ("rows: [{name: a, model: sasrek}]", [], "row a: --model: there is no model 'sasrek'"),
        ("rows: [{name: a, colour: red}]", [], "row a: colour"),
        ("kind: poem\nrows: [{name: a}]", [], "kind"),
        ("rows: 3", [], "rows: Input should be a list (given: 3)"),
        ("rows: [{name: a, changes: [b]}]", [], "row a: changes: Input should be a mapping (given: ['b'])"),
        (f"needs: [a]\n{ROWS}", [], "needs: Input should be a mapping (given: ['a'])"),
        (f"data: shop\n{ROWS}", [], "data: Input should be a list (given: 'shop')"),
        (f"colour: red\n{ROWS}", [], "colour: Extra inputs are not permitted (there are name, title, kind, needs"),
        ("a b", [], "not a mapping"),
        ("a: [", [], "not YAML"),
    ],
)
def test_an_invalid_grid_is_refused_before_anything_is_made(
    refused: Callable[..., str], ring: Path, tmp_path: Path, text: str, options: list[str], said: str
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    out = tmp_path / "grid"
    assert said in refused("compare", tmp_path / "mine.yaml", "--data", ring, "--out", out, *options)
    assert not out.exists()


def test_a_config_that_is_not_there_a_grid_without_data_and_a_folder_of_something_else_are_refused(
    refused: Callable[..., str], ring: Path, config: Path, tmp_path: Path
) -> None:
    assert "did you mean 'comparison'?" in refused("compare", "comparisn", "--data", ring, "--out", tmp_path / "g")
    assert "--data: name at least one" in refused("compare", config, "--out", tmp_path / "g")
    same = ("--data", ring, "--data", ring)
    assert "'ring' is listed twice" in refused("compare", config, *same, "--out", tmp_path / "g")
    assert "holds no grid" in refused("compare", config, "--data", ring, "--out", ring)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_ships_is_a_grid(name: str, ring: Path) -> None:
    needed: dict[str, Any] = {
        "transfer": {"changes": ["pretrain.init_from=RUN"]},
        "any_modality": {"precomputed": {"audio": Path("audio.parquet")}},
    }
    grid = plan_grid(GridRequest(name, [ring], **needed.get(name, {})))
    assert grid.kind == name
    assert all(row.label for row in grid.rows)
    assert set(grid.best_against) <= {row.name for row in grid.rows}


def test_a_config_without_rows_has_a_row_for_each_model(ring: Path) -> None:
    rows = plan_grid(GridRequest("comparison", [ring])).rows
    assert {row.name: row.label for row in rows} == {name: model.label for name, model in MODELS.items()}
    assert {row.name for row in rows[:2]} == {"popularity", "itemknn"}
    assert rows[-1].name == "msm4sr"


SHORT = (
    *("--preset=seed", "--set=model.dim=16", "--set=model.experts=2", "--set=pretrain.batch_pairs=128"),
    *("--set=pretrain.epochs=1", "--set=finetune.epochs=1", "--set=finetune.batch_pairs=128"),
)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, shop: Path, trained: Trained, features: Path) -> Path:
    """A folder with the features of the shop under its name, to be written to."""
    folder = tmp_path_factory.mktemp("shelf")
    shutil.copytree(features, folder / shop.name)
    return folder


def stages(run: Path) -> list[str]:
    return [json.loads(line)["stage"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_rows_of_the_ablation_train_what_they_say(cli: Cli, shop: Path, shelf: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid"
    called = cli("compare", "ablation", "--data", shop, "--features", shelf, "--out", out, *SHORT)
    assert called.code == 0, called
    runs = {path.parent.name: path for path in out.glob("cells/toyshop/*/seed-0")}
    assert len(runs) == 6
    assert {tuple(stages(run)) for name, run in runs.items() if name not in ("no-pretraining", "end-to-end")} == {
        ("pretrain", "finetune")
    }
    assert stages(runs["no-pretraining"]) == stages(runs["end-to-end"]) == ["finetune"]
    losses = {
        name: (run / "metrics.jsonl").read_text().split('"loss": ')[1].split(",")[0] for name, run in runs.items()
    }
    assert len(set(losses.values())) == 6, losses
    finished = metrics_of(runs["end-to-end"])
    assert cli("evaluate", runs["end-to-end"]).code == 0
    assert metrics_of(runs["end-to-end"]) == finished


def test_rows_with_items_held_out_are_shown_beside_chance(cli: Cli, ring: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid"
    rows = ("--rows=popularity", "--rows=sasrec", "--set=dataset.hold_out_items=0.3")
    file = tmp_path / "strict.yaml"
    file.write_text("kind: strict_cold_start\nbase: {changes: {dataset.hold_out_items: 0.1}}\n" + ROWS.lstrip())
    called = cli("compare", file, "--data", ring, "--out", out, *QUICK, *rows)
    assert called.code == 0, called
    held = metrics_of(cell(out, "sasrec"))["held_out"]
    assert held["items"] == 8, "of the 27 with interactions"
    shown = called.out.split("Items held out of training")[1]
    values = [held[part][metric] for part in ("among_all", "among_held_out") for metric in ("ndcg@10", "recall@10")]
    assert "sasrec " + " ".join(f"{value:.4f}" for value in values) in shown
    chances = [held[f"chance_{part}"][m] for part in ("among_all", "among_held_out") for m in ("ndcg@10", "recall@10")]
    assert "Random " + " ".join(f"{value:.4f}" for value in chances) in shown


def test_what_a_config_needs_is_asked_for(refused: Callable[..., str], ring: Path, tmp_path: Path) -> None:
    for config, said in (
        ("transfer", "give --set pretrain.init_from=...: a run of msm4sr on another data set"),
        ("any_modality", "give --features NAME=FILE: precomputed embeddings"),
    ):
        assert said in refused("compare", config, "--data", ring, "--out", tmp_path / "grid")


def test_a_row_whose_change_precomputed_embeddings_would_hide_is_refused(
    refused: Callable[..., str], ring: Path, tmp_path: Path
) -> None:
    options = ("--data", ring, "--features", "visual=clip.parquet", "--out", tmp_path / "grid")
    said = refused("compare", "sensitivity", *options)
    assert "row keywords-5: features.visual.kind has no effect on precomputed embeddings" in said
    grid = plan_grid(GridRequest("ablation", [ring], precomputed={"visual": Path("clip.parquet")}))
    assert all("visual" in row.precomputed for row in grid.rows)


def test_precomputed_embeddings_are_a_modality_of_the_rows_that_say_so(
    cli: Cli, shop: Path, shelf: Path, tmp_path: Path
) -> None:
    items = pl.read_parquet(shop / "items.parquet")["item_id"]
    vectors = np.random.default_rng(0).normal(size=(len(items), 4)).tolist()
    pl.DataFrame({"item_id": items, "vector": vectors}).write_parquet(tmp_path / "audio-toyshop.parquet")
    audio = f"audio={tmp_path}/audio-{{data}}.parquet"
    out = tmp_path / "grid"
    options = ("--features", shelf, "--features", audio, "--out", out, *SHORT, "--set=finetune.epochs=0")
    called = cli("compare", "any_modality", "--data", shop, *options)
    assert called.code == 0, called
    models = {
        row: json.loads((out / "cells" / "toyshop" / row / "seed-0" / "model" / "config.json").read_text())
        for row in ("without", "own", "all")
    }
    assert models["without"]["modalities"] == ["text", "visual"]
    assert models["own"]["modalities"] == models["all"]["modalities"] == ["text", "visual", "audio"]
    assert models["own"]["config"]["score_with"] == ["audio"]
    assert models["all"]["config"]["score_with"] == []


def test_all_cells_are_compared_by_the_same_content_if_one_row_uses_features(
    cli: Cli, shop: Path, features: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.yaml"
    rows.write_text("rows:\n  - {name: popularity, model: popularity}\n  - {name: sasrecm, model: sasrecm}\n")
    pooled = "--set=features.visual.kind=pooled"
    quick = ("--set=finetune.epochs=1", "--set=model.dim=8", "--set=model.inner_dim=8", pooled)
    out = tmp_path / "grid"
    called = cli("compare", rows, "--data", shop, "--out", out, "--features", features, *quick)
    assert called.code == 0, called
    for row in ("popularity", "sasrecm"):
        metrics = metrics_of(out / "cells" / shop.name / row / "seed-0")
        assert 0 < metrics["beyond_accuracy"]["seen_included"]["diversity_content@10"] < 1
    alone = cli("compare", rows, "--data", shop, "--out", tmp_path / "alone", "--rows", "popularity", pooled)
    assert alone.code == 0, alone
    metrics = metrics_of(tmp_path / "alone" / "cells" / shop.name / "popularity" / "seed-0")
    assert "diversity_content@10" not in metrics["beyond_accuracy"]["seen_included"]


def test_a_folder_of_settings_that_is_not_there_is_refused(
    refused: Callable[..., str], ring: Path, tmp_path: Path
) -> None:
    said = refused("compare", "comparison", "--data", ring, "--settings", tmp_path / "none", "--out", tmp_path / "grid")
    assert f"--settings {tmp_path / 'none'}: no such folder" in said
    assert not (tmp_path / "grid").exists()
