"""`--devices 2`: the work of one process, one voice, and an end for all when one of them ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from calling import Called, Cli

from msm4sr.tensor_files import load_tensors
from msm4sr.training.checkpoint import best_file, last_file, read_state

MSM4SR = Path(sys.executable).with_name("msm4sr")
STAGES = ("pretrain", "finetune")
# Without draws, which differ between the processes.
CALM = ("model.dropout=0", "model.attention_dropout=0", "pretrain.mixup=0")
OPTIONS = (
    "--preset=seed",
    *(f"--set={change}" for change in CALM),
    *(f"--set={stage}.{change}" for stage in STAGES for change in ("epochs=2", "batch_pairs=128")),
)
TWO = ("--devices=2",)


def start(*command: str | Path) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def finish(process: subprocess.Popen[str]) -> Called:
    """Waits for all processes: the others hold the same pipes."""
    out, err = process.communicate()
    return Called(process.returncode, " ".join(out.split()), err)


def test_two_processes_end_with_the_weights_of_one(cli: Cli, shop: Path, features: Path, tmp_path: Path) -> None:
    for name, options in (("one", ()), ("two", TWO)):
        command = ("run", shop, "--out", tmp_path / name, "--features", features, *OPTIONS, *options)
        called = cli(*command) if name == "one" else finish(start(MSM4SR, *command))
        assert called.code == 0, called
    assert called.err == ""
    assert called.out.count("finetune 2/2 loss") == called.out.count("report: ") == 1  # one voice
    for stage in STAGES:
        one, two = (load_tensors(last_file(tmp_path / name / "checkpoints", stage)) for name in ("one", "two"))
        assert one.keys() == two.keys()
        apart = torch.cat([(one[n] - two[n]).abs().flatten() for n in one if n.startswith("weights/")])
        # Where the true gradient is zero, Adam makes steps of the learning rate (1e-3) out of rounding noise.
        assert apart.mean() < 1e-5
        assert apart.max() < 5e-3
    one, two = ([json.loads(line) for line in (tmp_path / n / "metrics.jsonl").open()] for n in ("one", "two"))
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-4)


BROKEN = """
import sys
from msm4sr.cli import main
from msm4sr.errors import InputError
from msm4sr.training import checkpoint, trainer
from msm4sr.training.device import rank_here

full_loss, saving = trainer.shared_loss, checkpoint.save_tensors
steps = []

def shared_loss(*arguments):
    steps.append(1)
    if {case!r} == "bug" and rank_here() == 1 and len(steps) == 5:
        raise ValueError("something of process 1 alone")
    return full_loss(*arguments) * (float("nan") if {case!r} == "divergence" and len(steps) == 5 else 1.0)

def save_tensors(*arguments):
    if {case!r} == "disk":
        raise InputError("no space")
    saving(*arguments)

trainer.shared_loss, checkpoint.save_tensors = shared_loss, save_tensors
main()
"""


@pytest.mark.parametrize(
    ("case", "code", "said"),
    [
        ("divergence", 1, "error: finetune: the loss became nan in epoch 1"),
        pytest.param("disk", 2, "error: no space", marks=pytest.mark.slow),
        pytest.param("bug", 1, "ValueError: something of process 1 alone", marks=pytest.mark.slow),
    ],
)
def test_an_error_in_one_process_ends_all_and_is_reported_once(
    shop: Path, tmp_path: Path, case: str, code: int, said: str
) -> None:
    script = tmp_path / "broken.py"
    script.write_text(textwrap.dedent(BROKEN).format(case=case))
    options = ("--model=sasrec", "--set=finetune.batch_pairs=16", "--set=finetune.epochs=2", *TWO)
    called = finish(start(sys.executable, script, "run", shop, "--out", tmp_path / "run", *options))
    assert called.code in (code, -signal.SIGKILL if case == "bug" else code)
    assert called.err.count(said) == 1, called.err
    assert called.err.count("Traceback") == (1 if case == "bug" else 0), called.err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_two_processes_resume_after_an_interruption(shop: Path, tmp_path: Path, number: signal.Signals) -> None:
    """A signal to the first process only: the other one ends too, and both resume together."""
    changes = ("batch_pairs=8", "epochs=3", "checkpoint_every=0")
    options = ("--model=sasrec", *(f"--set=finetune.{change}" for change in changes), *TWO)
    undisturbed = finish(start(MSM4SR, "run", shop, "--out", tmp_path / "undisturbed", *options))
    assert undisturbed.code == 0, undisturbed
    run = tmp_path / "run"
    process = start(sys.executable, "-m", "msm4sr", "run", shop, "--out", run, *options)
    while (state := read_state(run / "checkpoints", "finetune")) is None or state.steps < 60:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    interrupted = finish(process)
    assert "Traceback" not in interrupted.err
    if number == signal.SIGINT:
        assert interrupted.code == 130
        assert interrupted.err.strip().endswith("with --resume to continue; results are bit-identical.")
    resumed = finish(start(MSM4SR, "run", shop, "--out", run, *options, "--resume"))
    assert resumed.code == 0, resumed
    assert "finetune: resuming in epoch" in resumed.out
    for file in (best_file, last_file):
        ours, theirs = (load_tensors(file(r / "checkpoints", "finetune")) for r in (run, tmp_path / "undisturbed"))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_a_run_resumes_with_another_number_of_processes(cli: Cli, shop: Path, tmp_path: Path) -> None:
    changes = ("batch_pairs=8", "epochs=3", "checkpoint_every=0")
    run, options = tmp_path / "run", ("--model=sasrec", *(f"--set=finetune.{change}" for change in changes))
    process = start(MSM4SR, "run", shop, "--out", run, *options)
    while (state := read_state(run / "checkpoints", "finetune")) is None or state.steps < 20:
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    finish(process)
    refused = cli("run", shop, "--out", run, *options, "--set=finetune.learning_rate=0.5", "--resume")
    assert refused.code == 2
    assert "finetune.learning_rate is 0.003 there and 0.5 now" in refused.err
    resumed = finish(start(MSM4SR, "run", shop, "--out", run, *options, *TWO, "--resume"))
    assert resumed.code == 0, resumed
    said = "finetune: resuming with 2 processes instead of 1; results are not bit-identical to a training without this"
    assert resumed.out.count(said) == 1
    assert (run / "metrics.json").exists()
