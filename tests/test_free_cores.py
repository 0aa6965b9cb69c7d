"""The threads of a process on an idle and on a shared machine, as chosen and as OpenMP reports them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from msm4sr import threads
from msm4sr.cli import app
from msm4sr.threads import Choice, busy_cores, choose, cpu_quota, shared_cores, usable_cores
from msm4sr.training.checkpoint import read_state

NAMES = (threads.THREADS, threads.POLICY, threads.SPINS, threads.CHOSEN, *threads.LAUNCHERS)
LOOP = "import os; first = os.getppid()\nwhile os.getppid() == first: sum(range(10**5))"  # ends with this process
SPIN, SLEEP = {"GOMP_SPINCOUNT": "3000"}, {"OMP_WAIT_POLICY": "passive"}


@pytest.fixture
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of a user or of an earlier choice."""
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)


@pytest.fixture
def busy_machine() -> Iterator[None]:
    """Twice as many endless loops as cores, so that none is free."""
    loops = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(2 * len(usable_cores()))]
    yield
    for loop in loops:
        loop.kill()
        loop.wait()


# -- the choice ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "quota", "busy", "count", "waiting", "text"),
    [
        (2, None, 0.0, 2, SPIN, "2 threads (2 of 2 cores free; waiting threads spin briefly)"),
        (2, None, 0.4, 2, SPIN, "2 threads (2 of 2 cores free; waiting threads spin briefly)"),
        (2, None, 0.6, 1, SLEEP, "1 thread (1 of 2 cores free)"),
        (2, None, 2.0, 1, SLEEP, "1 thread (0 of 2 cores free)"),
        (1, None, 0.0, 1, SPIN, "1 thread (1 of 1 cores free)"),
        (16, None, 5.2, 11, SLEEP, "11 threads (11 of 16 cores free; waiting threads sleep)"),
        (16, None, 20.0, 1, SLEEP, "1 thread (0 of 16 cores free)"),
        (64, 4.0, 10.0, 4, SPIN, "4 threads (4 of 4 cores free; waiting threads spin briefly)"),
        (64, 4.0, 61.0, 3, SLEEP, "3 threads (3 of 4 cores free; waiting threads sleep)"),
        (64, 2.5, 0.0, 2, SPIN, "2 threads (2 of 2 cores free; waiting threads spin briefly)"),
        (64, 0.5, 0.0, 1, SPIN, "1 thread (1 of 1 cores free)"),
        (4, 99.0, 0.0, 4, SPIN, "4 threads (4 of 4 cores free; waiting threads spin briefly)"),
        (4, None, None, 4, SPIN, "4 threads (waiting threads spin briefly)"),
    ],
)
def test_there_are_as_many_threads_as_free_cores_and_they_sleep_on_a_shared_machine(
    cores: int, quota: float | None, busy: float | None, count: int, waiting: dict[str, str], text: str
) -> None:
    choice = choose(cores, quota, busy, {})
    chosen = {"OMP_NUM_THREADS": str(count), "MSM4SR_FREE_CORES": str(count)}
    assert choice == Choice(count, chosen | waiting, choice.text)
    assert str(choice) == text


@pytest.mark.parametrize(
    ("environment", "busy", "variables", "text"),
    [
        ({"OMP_NUM_THREADS": "3"}, 1.0, SLEEP, "3 threads (OMP_NUM_THREADS; 1 of 2 cores free; waiting threads sleep)"),
        ({"OMP_NUM_THREADS": "1"}, None, SPIN, "1 thread (OMP_NUM_THREADS)"),
        (
            {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "active"},
            None,
            {},
            "2 threads (OMP_NUM_THREADS; OMP_WAIT_POLICY=active)",
        ),
        (
            {"GOMP_SPINCOUNT": "7"},
            0.0,
            {"OMP_NUM_THREADS": "2", "MSM4SR_FREE_CORES": "2"},
            "2 threads (2 of 2 cores free; GOMP_SPINCOUNT=7)",
        ),
    ],
)
def test_what_the_user_set_is_kept(
    environment: dict[str, str], busy: float | None, variables: dict[str, str], text: str
) -> None:
    choice = choose(2, None, busy, environment)
    assert choice.variables == variables
    assert str(choice) == text


def test_the_quota_is_the_smallest_of_a_group_and_those_around_it(tmp_path: Path) -> None:
    groups, inner = tmp_path / "cgroup", tmp_path / "fs" / "outer" / "inner"
    groups.write_text("4:memory:/elsewhere\n0::/outer/inner\n")
    inner.mkdir(parents=True)
    assert cpu_quota(tmp_path / "fs", groups) is None
    (inner / "cpu.max").write_text("max 100000\n")
    assert cpu_quota(tmp_path / "fs", groups) is None
    (inner.parent / "cpu.max").write_text("250000 100000\n")
    assert cpu_quota(tmp_path / "fs", groups) == 2.5
    (inner / "cpu.max").write_text("150000 100000\n")
    assert cpu_quota(tmp_path / "fs", groups) == 1.5
    (tmp_path / "cpu.max").write_text("10000 100000\n")  # outside of the file system
    assert cpu_quota(tmp_path / "fs", groups) == 1.5
    assert cpu_quota(tmp_path / "nowhere", tmp_path / "no-file") is None


def test_logical_processors_of_one_core_are_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = [dict.fromkeys(range(4), (0, 0)), {0: (60, 100), 1: (70, 100), 2: (30, 100), 3: (0, 100)}]
    monkeypatch.setattr(threads, "_processor_times", lambda: ticks[0] if len(ticks) == 1 else ticks.pop(0))
    monkeypatch.setattr(threads, "TRIES", 1)
    assert busy_cores([[0, 1], [2, 3]]) == pytest.approx(1.3, abs=0.2)  # 1.3 of which one core cannot give


def test_a_moment_of_work_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quietest of three measurements does; the work of this process never does."""
    seen = iter([(0, 0), (90, 100), (90, 100), (180, 200), (180, 200), (185, 300)])
    monkeypatch.setattr(threads, "_processor_times", lambda: {0: next(seen)})
    monkeypatch.setattr(threads, "SECONDS", 0.01)
    monkeypatch.setattr(threads.time, "process_time", lambda: 0.0)
    assert busy_cores([[0]]) == pytest.approx(0.05)


def test_the_work_of_this_process_is_not_that_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, own = iter([(0, 0), (100, 100)]), iter([5.0, 5.3])
    monkeypatch.setattr(threads, "_processor_times", lambda: {0: next(seen)})
    monkeypatch.setattr(threads.time, "process_time", lambda: next(own))
    monkeypatch.setattr(threads.time, "sleep", lambda seconds: None)
    assert busy_cores([[0]]) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.usefixtures("busy_machine")
def test_a_busy_machine_has_no_free_core() -> None:
    cores = usable_cores()
    assert busy_cores(cores) > 0.8 * len(cores)


# -- several processes -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_chosen")
def test_processes_share_the_free_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSM4SR_FREE_CORES", "7")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    for processes, share in ((1, 7), (2, 3), (7, 1), (20, 1)):
        with shared_cores(processes) as count:
            assert (count, os.environ["OMP_NUM_THREADS"]) == (share, str(share))
        assert os.environ["OMP_NUM_THREADS"] == "7"


@pytest.mark.usefixtures("nothing_chosen")
def test_processes_share_all_cores_if_no_command_chose_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: [[0], [1], [2], [3]])
    with shared_cores(2):
        assert os.environ["OMP_NUM_THREADS"] == "2"
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.usefixtures("nothing_chosen")
def test_processes_have_the_number_of_threads_that_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with shared_cores(2) as count:
        assert count is None
        assert os.environ["OMP_NUM_THREADS"] == "5"


# -- the command -----------------------------------------------------------------------------------------------------


def command(*arguments: str | Path, **chosen: str) -> tuple[str, str]:
    """Both outputs of `msm4sr ARGUMENTS`, with what OpenMP reports when torch loads it."""
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    environment |= {"OMP_DISPLAY_ENV": "verbose", "COLUMNS": "200"} | chosen
    called = [sys.executable, "-m", "msm4sr", *map(str, arguments)]
    done = subprocess.run(called, capture_output=True, text=True, env=environment)
    return done.stdout, done.stderr


def reported(err: str, name: str) -> str:
    """A variable of OpenMP, which is the same wherever it is reported."""
    (value,) = set(re.findall(rf"\b{name} = '(\w+)'", err))
    return str(value)


@pytest.mark.slow
@pytest.mark.usefixtures("busy_machine")
def test_a_run_on_a_busy_machine_has_one_thread_that_would_not_spin(tmp_path: Path) -> None:
    out, err = command("run", tmp_path / "nowhere", "--out", tmp_path / "run")
    assert re.fullmatch(r"1 thread \([01] of \d+ cores free\)\n", out)
    assert (reported(err, "OMP_NUM_THREADS"), reported(err, "GOMP_SPINCOUNT")) == ("1", "0")


@pytest.mark.parametrize(
    ("chosen", "spins", "line"),
    [
        ({"GOMP_SPINCOUNT": "7"}, "7", "3 threads (OMP_NUM_THREADS; GOMP_SPINCOUNT=7)\n"),
        ({"OMP_WAIT_POLICY": "passive"}, "0", "3 threads (OMP_NUM_THREADS; OMP_WAIT_POLICY=passive)\n"),
    ],
)
def test_a_run_does_what_the_user_chose(tmp_path: Path, chosen: dict[str, str], spins: str, line: str) -> None:
    out, err = command("run", tmp_path / "nowhere", "--out", tmp_path / "run", OMP_NUM_THREADS="3", **chosen)
    assert out == line
    assert (reported(err, "OMP_NUM_THREADS"), reported(err, "GOMP_SPINCOUNT")) == ("3", spins)


def test_ctrl_c_during_the_measurement_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("msm4sr.cli.use_free_cores", interrupt)
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path)])
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "\ninterrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["LOCAL_RANK", "SLURM_PROCID"])
def test_only_the_first_of_several_processes_prints_the_choice(tmp_path: Path, rank: str) -> None:
    line = "1 thread (OMP_NUM_THREADS)\n"
    for number in ("0", "1"):
        out, _ = command("evaluate", tmp_path / "nowhere", **{rank: number}, OMP_NUM_THREADS="1")
        assert out == (line if number == "0" else "")


def test_commands_that_do_not_train_let_threads_spin_briefly(tmp_path: Path) -> None:
    out, err = command("recommend", tmp_path / "nowhere", "--user", "u1")
    assert out == ""
    assert reported(err, "GOMP_SPINCOUNT") == "3000"


CELLS = "rows: [{name: sasrec, model: sasrec}]"
FEW = ("--set=finetune.epochs=1", "--set=finetune.batch_pairs=16", "--set=model.dim=8")


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """User u interacts with the items u, u + 1, u + 2, ...; no texts, no images."""
    folder = tmp_path_factory.mktemp("data") / "ring"
    folder.mkdir()
    rows = [{"user_id": f"u{u}", "item_id": f"i{(u + t) % 30}", "timestamp": t} for u in range(20) for t in range(8)]
    pl.DataFrame(rows).write_parquet(folder / "interactions.parquet")
    return folder


def share_of_two(out: str) -> int:
    """The threads of each of two processes: half of the free cores, each printed once."""
    (chosen,) = re.findall(r"^(\d+) threads? \(\d+ of \d+ cores free", out, re.M)
    (each,) = re.findall(r"^2 processes, (\d+) threads? each$", out, re.M)
    assert int(each) == max(1, int(chosen) // 2)
    return int(each)


def test_processes_that_train_together_share_the_free_cores(ring: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    out, err = command("run", ring, "--out", run, "--model=sasrec", *FEW, "--devices=2")
    assert (run / "report.html").exists(), err
    state = read_state(run / "checkpoints", "finetune")
    assert state is not None
    assert state.threads == share_of_two(out)


@pytest.mark.slow
def test_processes_of_a_grid_share_the_free_cores(ring: Path, tmp_path: Path) -> None:
    config, grid = tmp_path / "one.yaml", tmp_path / "grid"
    config.write_text(CELLS)
    seeds = ("--seed=0", "--seed=1")
    out, err = command("compare", config, "--data", ring, "--out", grid, *FEW, *seeds, "--jobs=2")
    cells = [grid / "cells" / "ring" / "sasrec" / f"seed-{seed}" for seed in (0, 1)]
    states = [read_state(cell / "checkpoints", "finetune") for cell in cells]
    assert [state.threads for state in states if state is not None] == [share_of_two(out)] * 2, err


@pytest.mark.usefixtures("nothing_chosen")
def test_doctor_shows_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    doctor = import_module("msm4sr.cli.doctor")
    monkeypatch.setattr(doctor, "use_free_cores", lambda: choose(16, None, 5.0, {}))
    cpu = next(check for check in doctor.check_devices() if check.name == "cpu")
    assert ", 11 threads (11 of 16 cores free; waiting threads sleep)" in cpu.found
