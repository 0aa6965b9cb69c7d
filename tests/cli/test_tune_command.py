"""`msm4sr tune` from the outside: killed, in several processes, and what its result is good for."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import polars as pl
import pytest
import yaml
from calling import Cli

import msm4sr

MSM4SR = Path(sys.executable).with_name("msm4sr")
SEARCH = """
model: sasrec
parameters:
  finetune.learning_rate: {kind: float, low: 1.0e-4, high: 1.0e-1, log: true}
  model.dropout: {kind: float, low: 0.0, high: 0.5}
"""
SMALL = ("model.dim=8", "finetune.epochs=6", "finetune.max_steps=0", "finetune.batch_pairs=16")
SMALL += ("finetune.validate_every=1", "finetune.patience=9")


@pytest.fixture
def command(shop: Path, tmp_path: Path) -> Callable[[str], list[str]]:
    """`tune` with three small trials at most, into the study of that name."""
    (tmp_path / "small.yaml").write_text(SEARCH)
    options = ["--model", "sasrec", "--search", str(tmp_path / "small.yaml"), "--trials", "3", "--seconds", "100000"]
    options += [f"--set={change}" for change in SMALL]
    return lambda name: ["tune", str(shop), *options, "--out", str(tmp_path / name)]


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [MSM4SR, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )


def trials(study: Path) -> list[optuna.trial.FrozenTrial]:
    if not (study / "study.db").exists():
        return []
    try:
        # Read only: while the study is being made, Optuna would make what is missing.
        with sqlite3.connect(f"file:{study}/study.db?mode=ro", uri=True) as database:
            database.execute("select 1 from studies, alembic_version").fetchall()
        loaded = optuna.load_study(study_name="study", storage=f"sqlite:///{study}/study.db")
    except (sqlite3.OperationalError, KeyError):
        return []
    return loaded.get_trials(deepcopy=False)


def values(study: Path) -> list[float]:
    """Of the trials that are no interrupted ones, in the order of what they tried."""
    retried = {trial.user_attrs.get("retries") for trial in trials(study)}
    counted = [trial for trial in trials(study) if trial.number not in retried]
    return [
        trial.params["finetune.learning_rate"] for trial in sorted(counted, key=lambda t: t.params["model.dropout"])
    ]


def test_a_study_that_is_killed_in_a_trial_ends_as_if_it_had_not_been(
    cli: Cli, command: Callable[[str], list[str]], tmp_path: Path
) -> None:
    process = start(command("killed"))
    while process.poll() is None:
        if any(trial.number > 0 and trial.state.name == "RUNNING" for trial in trials(tmp_path / "killed")):
            process.kill()
            break
        time.sleep(0.02)
    assert process.wait() == -9, process.communicate()[0]
    *ended, last = (trial.state for trial in trials(tmp_path / "killed"))
    assert ended
    assert all(state.is_finished() for state in ended)
    assert last.name == "RUNNING"
    called = cli(*command("killed"))
    assert called.code == 0, called
    assert "trial 0 " not in called.out.split("validation ndcg@10")[0]  # is kept, not made again
    assert cli(*command("undisturbed")).code == 0
    assert values(tmp_path / "killed") == values(tmp_path / "undisturbed")
    assert len(values(tmp_path / "killed")) == 3
    assert len(trials(tmp_path / "killed")) == 4
    killed, undisturbed = (
        yaml.safe_load((tmp_path / name / "best.yaml").read_text()) for name in ("killed", "undisturbed")
    )
    assert killed == undisturbed
    assert {file.name for file in (tmp_path / "killed").iterdir()} == {"study.db", "best.yaml", ".study.lock"}


def test_more_seconds_continue_a_study(cli: Cli, command: Callable[[str], list[str]], tmp_path: Path) -> None:
    short = cli(*command("study"), "--seconds", "0")
    assert short.code == 0, short
    assert [trial.number for trial in trials(tmp_path / "study")] == [0]
    assert re.search(r" all 1 \W+ [0-9]+ \W+ 1 finished, 0 pruned, 0 failed ", short.out)
    header = (tmp_path / "study" / "best.yaml").read_text()
    assert re.search(r"; trials: 1 finished, 0 pruned, 0 failed, in [0-9]+ seconds\.$", header, re.MULTILINE)
    assert "--seconds 0 --trials 3" in header
    longer = cli(*command("study"))
    assert longer.code == 0, longer
    assert re.search(r" all 3 \W+ [0-9]+ \W+ [0-9] finished, [0-9] pruned, 0 failed ", longer.out)
    assert [trial.number for trial in trials(tmp_path / "study")] == [0, 1, 2]
    assert cli(*command("at once")).code == 0
    assert values(tmp_path / "study") == values(tmp_path / "at once")


@pytest.mark.slow
def test_trials_run_side_by_side_in_one_study(
    cli: Cli, command: Callable[[str], list[str]], tmp_path: Path, refused: Callable[..., str]
) -> None:
    process = start([*command("shared"), "--jobs=2"])
    while process.poll() is None and not trials(tmp_path / "shared"):
        time.sleep(0.02)
    assert "another process runs this study; wait until it ends" in refused(*command("shared"))
    printed = process.communicate()[0]
    assert process.returncode == 0, printed
    assert sorted(re.findall(r"^trial +(\d+)  ", printed, re.MULTILINE)) == ["0", "1", "2"]
    assert cli(*command("alone")).code == 0
    assert values(tmp_path / "shared") == values(tmp_path / "alone")  # of the first trials, which are random


def test_its_result_is_what_run_takes(
    cli: Cli, refused: Callable[..., str], command: Callable[[str], list[str]], shop: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "configs" / "models" / "toyshop" / "sasrec.yaml"
    ids = pl.read_parquet(shop / "items.parquet")["item_id"]
    pl.DataFrame({"item_id": ids, "vector": [[1.0, 2.0]] * len(ids)}).write_parquet(tmp_path / "audio.parquet")
    features = ("--features", f"audio={tmp_path / 'audio.parquet'}")
    called = cli(*command("study"), "--save", saved, "--trials", "2", "--seed", "3", *features)
    assert called.code == 0, called
    assert f"--settings {saved} --features audio={tmp_path / 'audio.parquet'} --out RUN" in called.out
    assert "tune DATA/toyshop --model sasrec --search small --seconds 100000 --trials 2 --preset" in saved.read_text()
    assert " --features audio=audio.parquet --seed 3" in saved.read_text()
    assert saved.read_text() == (tmp_path / "study" / "best.yaml").read_text()
    assert str(tmp_path) not in saved.read_text()
    run = ["run", shop, "--settings", saved, "--out", tmp_path / "run", "--set", "finetune.epochs=1"]
    assert "settings of sasrec, but --model is msm4sr" in refused(*run)
    assert cli(*run, "--model", "sasrec").code == 0
    tuned, config = (yaml.safe_load(file.read_text()) for file in (saved, tmp_path / "run" / "config.yaml"))
    assert config["model"]["dropout"] == tuned["model"]["dropout"]
    assert config["model"]["dim"] == 8
    assert config["finetune"]["learning_rate"] == tuned["finetune"]["learning_rate"]
    assert config["finetune"]["patience"] == tuned["finetune"]["patience"] == 9
    assert cli(*run, "--model", "sasrec", "--resume").code == 0
    saved.write_text(saved.read_text().replace("dim: 8", "dim: 16"))
    assert "model.dim is 8 there and 16 now" in refused(*run, "--model", "sasrec", "--resume")


def test_the_package_alone_has_the_searches(shop: Path, tmp_path: Path) -> None:
    """As installed from a wheel: without the repository's folder `configs`."""
    package = Path(msm4sr.__file__).parent
    shutil.copytree(package, tmp_path / "site" / "msm4sr", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "msm4sr.cli", "tune", shop, "--model", "sasrec", "--out", tmp_path / "study"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    options = ["--trials", "1", "--set", "finetune.max_steps=5"]
    answer = subprocess.run([*command, *options], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "trial  0  finished" in answer.stdout


def test_what_is_wrong_leaves_nothing_behind(
    refused: Callable[..., str], command: Callable[[str], list[str]], shop: Path, tmp_path: Path
) -> None:
    out = ["--out", tmp_path / "study"]
    assert "neither a file nor a model; there are" in refused("tune", shop, "--search", "nonsense", *out)
    assert "a search for sasrec, but --model is sine" in refused(*command("study"), "--model", "sine")
    assert "devices" in refused(*command("study"), "--set", "device.devices=2")
    assert "outside the search range" in refused(*command("study"), "--set", "model.dropout=0.9")
    assert "no such folder" in refused("tune", tmp_path / "nowhere", "--model", "sasrec", *out)
    assert not (tmp_path / "study").exists()


def test_without_optuna_it_says_what_to_install(
    refused: Callable[..., str], command: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["msm4sr.cli.tune"], "find_spec", lambda name: None)
    assert "pip install 'msm4sr[tune]'" in refused(*command("study"))
