"""Locks: one process holds each."""

from __future__ import annotations

import multiprocessing
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from msm4sr.errors import InputError
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
