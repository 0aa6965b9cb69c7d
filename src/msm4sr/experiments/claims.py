"""Claims to folders, for workers on one machine or on several that share a file system.

A claim is a file that exactly one worker can make: `cell.claim`, then `cell.claim.2`, and so on; the newest counts.
A thread of the worker touches it regularly. A claim that was not touched for a while has lapsed, and the worker that
makes the next one continues. No claim is deleted before the work is finished, so that a number never means two claims;
a worker that stops lets its claim lapse at once.

All times are those of the file system, whose clock all machines share.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from msm4sr.errors import InputError

CLAIM = "cell.claim"
STALE_AFTER = 120.0  # seconds; a network file system may show a touch after half a minute or more
BEATS = 6  # touches within this time
POLL = 1.0  # seconds between two checks of the claims of others


class ClaimLost(Exception):
    """Another worker has claimed the folder, because this one did not touch its claim for too long."""


class Claim:
    """Claim `number` of a folder, held by this process in a `with` block."""

    def __init__(self, folder: Path, number: int, stale_after: float) -> None:
        self._file, self._next = claim_file(folder, number), claim_file(folder, number + 1)
        self._every = stale_after / BEATS
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def check(self) -> None:
        """Raises ClaimLost if another worker has claimed the folder. To be called before anything is written."""
        if self._next.exists():
            raise ClaimLost

    def __enter__(self) -> Claim:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        with suppress(OSError):
            os.utime(self._file, (0, 0))  # lapsed

    def _beat(self) -> None:
        while not self._stop.wait(self._every):
            with suppress(OSError):  # the file system is unavailable for a moment
                os.utime(self._file)


def claim_file(folder: Path, number: int) -> Path:
    """The file of claim `number`, from 1, of a folder."""
    return folder / (CLAIM if number == 1 else f"{CLAIM}.{number}")


def take(folder: Path, stale_after: float = STALE_AFTER) -> Claim | None:
    """Claim a folder, which is made if it is missing; None while another worker holds a claim.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = 1
        while claim_file(folder, number + 1).exists():
            number += 1
        newest = claim_file(folder, number)
        if newest.exists():
            if file_time(newest.parent) - newest.stat().st_mtime <= stale_after:
                return None
            number += 1
        descriptor = os.open(claim_file(folder, number), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:  # another worker was faster
        return None
    except FileNotFoundError:  # another worker has finished, and removed the claims
        return None
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None
    about = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        json.dump(about, opened)
    return Claim(folder, number, stale_after)


def file_time(folder: Path) -> float:
    """The time of the folder's file system."""
    with tempfile.TemporaryFile(dir=folder, prefix=f"{CLAIM}.now-") as probe:
        return os.fstat(probe.fileno()).st_mtime


def claims_of(folder: Path) -> list[Path]:
    """All claims of a folder, in any order."""
    return [file for file in folder.glob(f"{CLAIM}*") if file.is_file()]


class Worker:
    """What `work_through` does in each folder."""

    def is_open(self, folder: Path) -> bool:
        """Whether there is work to do in a folder."""
        raise NotImplementedError

    def work(self, folder: Path, claim: Claim) -> None:
        """Do the work; afterwards the folder is no longer open. Raises ClaimLost when another worker continues it."""
        raise NotImplementedError

    def check(self) -> None:
        """Called between folders, while waiting, and at the end."""

    def wait(self, folders: Sequence[Path]) -> None:
        """Called while others hold all the folders that are still open."""


def work_through(folders: Sequence[Path], worker: Worker, stale_after: float = STALE_AFTER) -> None:
    """Work in every open folder, alongside other workers, until none is open.

    Folders that others hold are waited for; those whose claim has lapsed are continued.

    Args:
        folders: in the order in which they are begun.
        worker: does the work.
        stale_after: seconds after which an untouched claim has lapsed.

    Raises:
        Exception: whatever `worker.work` raises, except ClaimLost.
    """
    while remaining := [folder for folder in folders if worker.is_open(folder)]:
        if not _begin_one(remaining, worker, stale_after):
            worker.wait(remaining)
            time.sleep(min(POLL, stale_after / BEATS))
        worker.check()
    worker.check()


def _begin_one(folders: Iterable[Path], worker: Worker, stale_after: float) -> bool:
    """Work in the first folder that no other worker holds; False when there is none."""
    for folder in folders:
        claim = take(folder, stale_after)
        if claim is None:
            continue
        with claim, suppress(ClaimLost):
            if worker.is_open(folder):  # still: another may have finished it before it was claimed
                worker.work(folder, claim)
        return True
    return False
