"""Killed at any moment and resumed, a run ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml
from calling import Cli, metrics_of

from msm4sr.tensor_files import load_tensors, read_about, save_tensors
from msm4sr.training.checkpoint import TrainingState, best_file, last_file, read_state

MSM4SR = Path(sys.executable).with_name("msm4sr")
STAGES = ("pretrain", "finetune")
KILLS = {"pretrain": 2, "finetune": 2}
OPTIONS = (
    "--preset=seed",
    *(f"--set={stage}.{setting}" for stage in STAGES for setting in ("epochs=4", "batch_pairs=8", "patience=2")),
    "--set=finetune.validate_every=2",
    "--set=pretrain.schedule=cosine",
    "--set=finetune.averaging=true",
)
OFTEN = tuple(f"--set={stage}.checkpoint_every=0" for stage in STAGES)


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "COLUMNS": "200"}
    return subprocess.Popen(
        [MSM4SR, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def progress(run: Path) -> tuple[str, TrainingState] | None:
    """The current stage, and the state of its last checkpoint."""
    states = [(stage, read_state(run / "checkpoints", stage)) for stage in STAGES]
    found = [(stage, state) for stage, state in states if state is not None]
    return found[-1] if found else None


def kill_within_a_stage(process: subprocess.Popen[str], run: Path, kills: dict[str, int], rng: random.Random) -> None:
    """SIGKILL some steps after the process has begun to train, at a random moment."""
    before, more = progress(run), rng.randrange(10, 60)
    while process.poll() is None:
        now = progress(run)
        if now is not None and kills.get(now[0], 0) > 0 and not now[1].done:
            came_from = before[1].steps if before is not None and before[0] == now[0] else 0
            if now[1].steps - came_from >= more:
                time.sleep(rng.uniform(0, 0.05))
                process.kill()
                kills[now[0]] -= 1
                break
        time.sleep(0.002)


def records(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what two equal runs differ in."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


def assert_the_same(run: Path, other: Path) -> None:
    for stage in STAGES:
        for file in (best_file, last_file):
            ours, theirs = (load_tensors(file(folder / "checkpoints", stage)) for folder in (run, other))
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs), (stage, file)
    ours, theirs = (load_tensors(folder / "model" / "model.safetensors") for folder in (run, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert records(run) == records(other)
    assert metrics_of(run) == metrics_of(other)


@pytest.fixture(scope="module")
def undisturbed(cli: Cli, shop: Path, features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    called = cli("run", shop, "--out", run, "--features", features, *OPTIONS)
    assert called.code == 0, called
    return run


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(
    undisturbed: Path, shop: Path, features: Path, tmp_path: Path
) -> None:
    run, kills, rng = tmp_path / "run", dict(KILLS), random.Random(0)
    said = ""
    while sum(kills.values()):
        before = dict(kills)
        process = start("run", shop, "--out", run, "--features", features, *OPTIONS, *OFTEN, "--resume")
        kill_within_a_stage(process, run, kills, rng)
        said += process.communicate()[0]
        assert kills != before, said
    process = start("run", shop, "--out", run, "--features", features, *OPTIONS, *OFTEN, "--resume")
    said += process.communicate()[0]
    assert process.returncode == 0, said
    assert said.count("resuming in epoch") >= sum(KILLS.values())
    assert "pretrain: already complete, " in said
    assert_the_same(run, undisturbed)


@pytest.fixture
def interrupted(undisturbed: Path, tmp_path: Path) -> Path:
    """The undisturbed run as it was when fine-tuning had not begun."""
    run = Path(shutil.copytree(undisturbed, tmp_path / "interrupted"))
    for file in (best_file, last_file):
        file(run / "checkpoints", "finetune").unlink()
    return run


def test_a_stage_without_a_checkpoint_starts(cli: Cli, interrupted: Path, undisturbed: Path) -> None:
    assert cli("finetune", interrupted, "--resume").code == 0
    assert cli("evaluate", interrupted).code == 0
    assert_the_same(interrupted, undisturbed)


def test_weights_of_an_incomplete_stage_are_used_with_a_warning(cli: Cli, interrupted: Path) -> None:
    file = last_file(interrupted / "checkpoints", "pretrain")
    about = read_about(file)
    about["state"]["done"] = False
    save_tensors(load_tensors(file), file, about)
    said = cli("finetune", interrupted).out
    assert re.search(r"pretrain was interrupted in epoch \d+; the weights of epoch \d+ are used \(", said)
    assert f"(`msm4sr pretrain {interrupted} --resume` completes it)" in said


def test_a_complete_stage_is_not_trained_again(cli: Cli, interrupted: Path, undisturbed: Path) -> None:
    before = last_file(interrupted / "checkpoints", "pretrain").read_bytes()
    called = cli("pretrain", interrupted, "--resume")
    assert called.code == 0
    assert "pretrain: already complete, 4 epochs" in called.out
    assert last_file(interrupted / "checkpoints", "pretrain").read_bytes() == before


@pytest.mark.parametrize(
    ("recorded", "chosen", "used"),
    [(2, "1", 2), (3, "1", 1), (0, "1", 1), (2, None, 1)],
    ids=["as before", "on fewer cores", "of an older version", "chosen by the user"],
)
def test_a_training_is_resumed_on_as_many_threads(
    cli: Cli, interrupted: Path, monkeypatch: pytest.MonkeyPatch, recorded: int, chosen: str | None, used: int
) -> None:
    file, threads = last_file(interrupted / "checkpoints", "pretrain"), torch.get_num_threads()
    about = read_about(file)
    assert about["state"]["threads"] == threads
    about["state"]["threads"] = recorded
    save_tensors(load_tensors(file), file, about)
    monkeypatch.setenv("MSM4SR_FREE_CORES", "1")
    if chosen is None:
        monkeypatch.delenv("MSM4SR_FREE_CORES")
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("msm4sr.experiments.machine.usable_cores", lambda: [[0], [1]])
    torch.set_num_threads(1)
    try:
        called = cli("pretrain", interrupted, "--resume")
        assert torch.get_num_threads() == used
    finally:
        torch.set_num_threads(threads)
    assert called.code == 0, called
    assert called.out.count("using 2 threads as before, so that results are bit-identical") == used - 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--set=finetune.epochs=5"], "finetune.epochs is 4 there and 5 now"),
        (["--seed=1"], "seed is 0 there and 1 now"),
        (["--set=model.dim=32"], "model.dim is 64 there and 32 now"),
        (["--overwrite"], "use one of them"),
    ],
    ids=["setting", "seed", "model", "overwrite"],
)
def test_a_run_is_not_resumed_with_other_options(
    refused: Callable[..., str], undisturbed: Path, shop: Path, features: Path, changed: list[str], said: str
) -> None:
    message = refused("run", shop, "--out", undisturbed, "--features", features, *OPTIONS, *changed, "--resume")
    assert said in message


def test_checkpoints_of_other_settings_or_items_are_refused_and_what_differs_is_said(
    refused: Callable[..., str], interrupted: Path, shop: Path, tmp_path: Path
) -> None:
    config = (interrupted / "config.yaml").read_text()
    (interrupted / "config.yaml").write_text(config.replace("temperature: 0.07", "temperature: 0.1"))
    said = "model.temperature is 0.07 there and 0.1 now"
    assert said in refused("pretrain", interrupted, "--resume")
    assert said in refused("finetune", interrupted)
    (interrupted / "config.yaml").write_text(config.replace(str(shop), str(tmp_path / "other")))
    other = Path(shutil.copytree(shop, tmp_path / "other"))
    rename_an_item(other)
    said = refused("finetune", interrupted)
    assert f"{other}: other data than {interrupted} was begun on: items is 60 (" in said


@pytest.mark.slow
def test_a_stage_is_not_resumed_with_other_texts(
    refused: Callable[..., str], interrupted: Path, tmp_path: Path
) -> None:
    """The items and the interactions are the same; what the items' texts say is not."""
    config = (interrupted / "config.yaml").read_text()
    shop = Path(yaml.safe_load(config)["data"])
    other = Path(shutil.copytree(shop, tmp_path / "other"))
    items = pl.read_parquet(other / "items.parquet")
    items.with_columns(pl.lit("Something else.").alias("text")).write_parquet(other / "items.parquet")
    changed = yaml.safe_load(config) | {"data": str(other), "features_folder": str(tmp_path / "features")}
    (interrupted / "config.yaml").write_text(yaml.safe_dump(changed))
    assert "inputs.features.text is " in refused("pretrain", interrupted, "--resume")


def rename_an_item(shop: Path) -> None:
    for table in ("items", "interactions"):
        file = shop / f"{table}.parquet"
        pl.read_parquet(file).with_columns(pl.col("item_id").replace("toy-0001", "toy-X")).write_parquet(file)


def test_a_full_disk_is_reported_and_the_last_good_checkpoint_is_resumed(
    cli: Cli, interrupted: Path, undisturbed: Path
) -> None:
    """The disk becomes full in the middle of fine-tuning; later there is space again."""
    code = (
        "import resource, sys\n"
        "from msm4sr.training import checkpoint\n"
        "from msm4sr.cli import app\n"
        "save, saved = checkpoint.save_tensors, []\n"
        "def until_full(weights, file, about=None):\n"
        "    saved.append(file)\n"
        "    if len(saved) == 12: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "    save(weights, file, about)\n"
        "checkpoint.save_tensors = until_full\n"
        "app()\n"
    )
    config = (interrupted / "config.yaml").read_text().replace("checkpoint_every: 60.0", "checkpoint_every: 0.0")
    (interrupted / "config.yaml").write_text(config)
    done = subprocess.run([sys.executable, "-c", code, "finetune", interrupted], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "could not be written" in done.stderr
    assert "the earlier one is kept" in done.stderr
    assert not list(interrupted.rglob("*.unfinished"))
    called = cli("finetune", interrupted, "--resume")
    assert called.code == 0, called
    assert "finetune: resuming in epoch" in called.out
    assert cli("evaluate", interrupted).code == 0
    assert_the_same(interrupted, undisturbed)
