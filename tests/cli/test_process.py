"""The command as a process of its own: exit codes, what goes to which stream, Ctrl-C, and how fast help comes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
import typer
import yaml
from calling import Cli

from msm4sr.cli.console import handle_errors
from msm4sr.tensor_files import load_tensors

MSM4SR = Path(sys.executable).with_name("msm4sr")
ENDLESS = ("epochs=100000", "patience=100000")


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [MSM4SR, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # even where a shell ignores it
    )


def interrupt_after(process: subprocess.Popen[str], sign: str) -> tuple[str, str]:
    """Ctrl-C when a line with `sign` is out; the lines until then, and what came on stderr."""
    assert process.stdout is not None
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if sign in line:
                process.send_signal(signal.SIGINT)
                break
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert lines, err
    assert sign in lines[-1], err
    return "".join(lines), err


def assert_nothing_half_written(run: Path) -> None:
    assert not [file for file in run.rglob("*") if file.name.endswith((".part", ".tmp"))]
    for line in (run / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line)["stage"]


def test_wrong_input_is_one_line_on_stderr_and_exit_code_2(tmp_path: Path) -> None:
    process = start("run", tmp_path / "nowhere", "--out", tmp_path / "run")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert out == "1 thread (OMP_NUM_THREADS)\n"
    assert err.count("\n") == 1
    assert err.startswith(f"error: {tmp_path}/nowhere: no such folder")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [(MSM4SR,), (sys.executable, "-m", "msm4sr"), (sys.executable, "-m", "msm4sr.cli")])
def test_every_way_to_call_the_command_prints_its_version(command: tuple[str, ...]) -> None:
    answer = subprocess.run([*command, "--version"], capture_output=True, text=True)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, f"msm4sr {version('msm4sr')}\n", "")


def test_ctrl_c_while_modules_are_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished = ModuleType("msm4sr.training.device")
    unfinished.__spec__ = ModuleSpec("msm4sr.training.device", None)
    unfinished.__spec__._initializing = True  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "msm4sr.training.device", unfinished)
    with pytest.raises(typer.Exit), handle_errors("stopped"):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "\nstopped\n"


def test_help_comes_without_loading_what_is_heavy() -> None:
    loaded = "import sys, msm4sr.cli; print({'torch', 'polars', 'transformers'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert answer.stdout == "set()\n"


def test_ctrl_c_in_pretraining_keeps_the_best_epoch_and_finetuning_starts_from_it(
    cli: Cli, trained: object, shop: Path, features: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    changes = [f"--set=pretrain.{change}" for change in ENDLESS]
    options = ("--out", run, "--preset", "seed", "--features", features, *changes, "--set", "finetune.epochs=1")
    process = start("run", shop, *options)
    _, err = interrupt_after(process, "best so far")
    assert process.returncode == 130
    assert err.strip().startswith(
        f"interrupted; finished work is kept in {run}. Rerun the command with --resume to continue"
    )
    assert_nothing_half_written(run)
    assert load_tensors(run / "checkpoints" / "pretrain.safetensors")
    assert not (run / "checkpoints" / "finetune.safetensors").exists()
    for stage in ("finetune", "evaluate"):
        called = cli(stage, run)
        assert called.code == 0, called
    assert (run / "report.html").exists()


def test_ctrl_c_in_finetuning_keeps_the_best_epoch_and_evaluation_measures_it(cli: Cli, copy_of_run: Path) -> None:
    config = yaml.safe_load((copy_of_run / "config.yaml").read_text())
    config["finetune"] |= yaml.safe_load("\n".join(ENDLESS).replace("=", ": "))
    (copy_of_run / "config.yaml").write_text(yaml.safe_dump(config))
    process = start("finetune", copy_of_run, "--overwrite")
    _, err = interrupt_after(process, "best so far")
    assert process.returncode == 130
    assert err.strip().startswith(f"interrupted. Run `msm4sr finetune {copy_of_run} --resume` to continue")
    assert f"msm4sr evaluate {copy_of_run}" in err
    assert_nothing_half_written(copy_of_run)
    called = cli("evaluate", copy_of_run)
    assert called.code == 0, called
    rows = [json.loads(line) for line in (copy_of_run / "metrics.jsonl").read_text().splitlines()]
    best = max(row["recall@20"] for row in rows if row["stage"] == "finetune")
    assert json.loads((copy_of_run / "metrics.json").read_text())["validation"]["recall@20"] == best


@pytest.mark.slow
def test_ctrl_c_in_the_extraction_loses_no_finished_chunk(cli: Cli, shop: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    changes = ("--set", "features.visual.kind=pooled", "--set", "pretrain.epochs=1")
    process = start("extract", shop, "--out", run, *changes)
    _, err = interrupt_after(process, "text-minilm extracted")  # images come next
    assert process.returncode == 130
    assert err.strip() == f"interrupted; finished chunks are kept in {run}. Rerun the command to continue."
    called = cli("extract", shop, "--out", run, *changes)
    assert called.code == 0, called
    assert "text-minilm extracted" not in called.out
    assert "visual: 58 of 60 items" in called.out
