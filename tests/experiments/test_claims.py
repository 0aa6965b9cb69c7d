"""One worker a folder, whatever dies and whoever hurries."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from msm4sr.experiments.claims import Claim, ClaimLost, Worker, claim_file, claims_of, take, work_through

SPAWN = multiprocessing.get_context("spawn")


def lapse(folder: Path) -> None:
    os.utime(claim_file(folder, len(claims_of(folder))), (0, 0))


def test_a_claimed_folder_has_no_second_claim_until_it_is_released(tmp_path: Path) -> None:
    first = take(tmp_path / "cell")
    assert first is not None
    with first:
        assert take(tmp_path / "cell") is None
    assert take(tmp_path / "cell") is not None
    assert take(tmp_path / "cell") is None


def test_a_claim_that_is_lost_is_noticed(tmp_path: Path) -> None:
    first = take(tmp_path)
    assert first is not None
    first.check()
    lapse(tmp_path)
    second = take(tmp_path)
    assert second is not None
    with pytest.raises(ClaimLost):
        first.check()
    with first:
        pass  # releasing a lost claim
    second.check()
    assert take(tmp_path) is None


def test_a_worker_that_lives_touches_its_claim(tmp_path: Path) -> None:
    claim = take(tmp_path, stale_after=0.3)
    assert claim is not None
    with claim:
        lapse(tmp_path)
        while claim_file(tmp_path, 1).stat().st_mtime == 0:
            time.sleep(0.01)
    assert claim_file(tmp_path, 1).stat().st_mtime == 0


def race(folders: list[Path], start: Barrier, won: Queue[Path]) -> None:
    for folder in folders:
        start.wait()
        if take(folder) is not None:
            won.put(folder)


def test_of_many_that_take_over_at_once_one_does(tmp_path: Path) -> None:
    racers, rounds = 6, 60
    folders = [tmp_path / str(n) for n in range(rounds)]
    for folder in folders[::2]:  # every other one has a claim that has lapsed, the others have none
        assert take(folder) is not None
        lapse(folder)
    start, won = SPAWN.Barrier(racers), SPAWN.Queue()
    processes = [SPAWN.Process(target=race, args=(folders, start, won)) for _ in range(racers)]
    for process in processes:
        process.start()
    winners = [won.get() for _ in folders]
    for process in processes:
        process.join()
    assert won.empty()
    assert sorted(winners) == sorted(folders)


STALE = 3.0


class Labour(Worker):
    """Works in every folder for a moment; leaves `clash` where a living process is already working."""

    def is_open(self, folder: Path) -> bool:
        return not (folder / "done").exists()

    def work(self, folder: Path, claim: Claim) -> None:
        busy = folder / "busy"
        if busy.exists() and alive(int(busy.read_text() or 0)):
            (folder / "clash").touch()
        busy.write_text(str(os.getpid()))
        time.sleep(random.uniform(0.02, 0.1))
        busy.unlink()
        with (folder / "done").open("a") as done:
            done.write(f"{os.getpid()}\n")


def labour(folders: list[Path]) -> None:
    work_through(folders, Labour(), STALE)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_that_are_killed_leave_no_folder_undone_and_none_is_done_twice(tmp_path: Path) -> None:
    folders = [tmp_path / f"{n:02}" for n in range(60)]
    rng = random.Random(0)
    workers = [SPAWN.Process(target=labour, args=(folders,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    killed = 0
    for victim in workers[:2]:
        while killed < 2 and victim.is_alive():
            busy = [folder for folder in folders if read(folder / "busy") == str(victim.pid)]
            if busy:
                time.sleep(rng.uniform(0, 0.02))
                os.kill(victim.pid or 0, signal.SIGKILL)
                killed += 1
                break
            time.sleep(0.001)
    for worker in workers:
        worker.join()
    assert killed == 2
    assert not [folder for folder in folders if (folder / "clash").exists()]
    assert all((folder / "done").read_text().count("\n") == 1 for folder in folders)


def read(file: Path) -> str:
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""
