"""Locks, and workers that share the cells of a grid by them: one worker per cell, also when workers are killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Sequence
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from msm4sr.errors import InputError
from msm4sr.experiments import compare
from msm4sr.experiments.grid import Cell, Data, Row
from msm4sr.experiments.run import write_metrics
from msm4sr.locks import is_locked, try_lock, unlock

SPAWN = multiprocessing.get_context("spawn")


def test_a_lock_is_held_once_until_it_is_released(tmp_path: Path) -> None:
    file = tmp_path / "cell" / ".lock"
    assert not is_locked(file)
    first = try_lock(file)
    assert first is not None
    assert try_lock(file) is None
    assert is_locked(file)
    first.release()
    assert not is_locked(file)
    second = try_lock(file)
    assert second is not None
    unlock(second)
    assert not file.exists()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cell").touch()
    with pytest.raises(InputError, match="cell: cannot be written"):
        try_lock(tmp_path / "cell" / ".lock")


def race(files: list[Path], start: Barrier, won: Queue[Path]) -> None:
    locks = []
    for file in files:
        start.wait()
        locks.append(try_lock(file))
        if locks[-1] is not None:
            won.put(file)
    start.wait()


def test_of_many_that_lock_at_once_one_does(tmp_path: Path) -> None:
    racers, rounds = 6, 60
    files = [tmp_path / str(n) / ".lock" for n in range(rounds)]
    for file in files[::2]:  # every other file exists
        file.parent.mkdir()
        file.touch()
    start, won = SPAWN.Barrier(racers), SPAWN.Queue()
    processes = [SPAWN.Process(target=race, args=(files, start, won)) for _ in range(racers)]
    for process in processes:
        process.start()
    winners = [won.get() for _ in files]
    for process in processes:
        process.join()
    assert won.empty()
    assert sorted(winners) == sorted(files)


def pretend(cell: Cell, *arguments: Any, **options: Any) -> None:
    """Take a moment; leave `clash` in the folder if a living process does it already, or if it is done."""
    busy = cell.folder / "busy"
    if cell.finished or (busy.exists() and alive(int(busy.read_text() or 0))):
        (cell.folder / "clash").touch()
    busy.write_text(str(os.getpid()))
    time.sleep(random.uniform(0.02, 0.1))
    busy.unlink()
    write_metrics(cell.folder, {"test": dict.fromkeys(compare.SHOWN, 0.0)})


def work(cells: Sequence[Cell]) -> None:
    compare.run_cell = pretend  # type: ignore[assignment]
    compare.run_cells(cells, compare.CompareOptions(Path("features")))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_that_are_killed_leave_no_cell_undone_and_none_is_done_twice(tmp_path: Path) -> None:
    data, row = Data(name="shop", folder=tmp_path / "shop"), Row(name="sasrec", label="SASRec", model="sasrec")
    cells = [Cell(data, row, n, tmp_path / f"{n:02}") for n in range(60)]
    rng = random.Random(0)
    workers = [SPAWN.Process(target=work, args=(cells,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    killed = 0
    for victim in workers[:2]:
        while victim.is_alive():
            if any(read(cell.folder / "busy") == str(victim.pid) for cell in cells):
                time.sleep(rng.uniform(0, 0.02))
                os.kill(victim.pid or 0, signal.SIGKILL)
                killed += 1
                break
            time.sleep(0.001)
    for worker in workers:
        worker.join()
    assert killed == 2
    assert not [cell for cell in cells if (cell.folder / "clash").exists()]
    assert all(cell.finished for cell in cells)
    assert not [cell for cell in cells if cell.lock_file.exists()]


def read(file: Path) -> str:
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""
