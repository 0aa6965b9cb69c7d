"""Who works on which folder, among processes of one machine or of several that share a file system.

A claim is a file that its worker alone could make: `cell.claim`, then `cell.claim.2`, and so on; the newest counts.
While its worker lives, a thread touches it; one that nobody has touched for a while has lapsed, and whoever makes the
next one works on. Of several that try, one makes it. None is deleted before the work is finished, so that a number
never means two claims; a worker that stops lets its own lapse at once.

Times are those of the file system alone, whose clock all machines share.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from msm4sr.errors import InputError

CLAIM = "cell.claim"
STALE_AFTER = 120.0  # seconds; file systems over a network may show a touch only after half a minute or more
BEATS = 6  # touches within that time
POLL = 1.0  # seconds between two looks at what others hold


class ClaimLost(Exception):
    """Another worker has taken the folder over, since this one was not heard of for too long."""


class Claim:
    """Number `number` of a folder, held by this process while in a `with`."""

    def __init__(self, folder: Path, number: int, stale_after: float) -> None:
        self._file, self._next = claim_file(folder, number), claim_file(folder, number + 1)
        self._every = stale_after / BEATS
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def check(self) -> None:
        """Raises ClaimLost where another worker has taken over; to be called before anything is written."""
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
            with suppress(OSError):  # a file system that is away for a moment
                os.utime(self._file)


def claim_file(folder: Path, number: int) -> Path:
    """Where claim `number`, from 1, of a folder stands."""
    return folder / (CLAIM if number == 1 else f"{CLAIM}.{number}")


def take(folder: Path, stale_after: float = STALE_AFTER) -> Claim | None:
    """A claim to the folder, which is made where it is not there; None while another worker holds one.

    InputError where nothing can be written.
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
    except FileExistsError:  # another one was quicker
        return None
    except FileNotFoundError:  # another one has finished the work, and removed its claims
        return None
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None
    about = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        json.dump(about, opened)
    return Claim(folder, number, stale_after)


def file_time(folder: Path) -> float:
    """What the clock of the folder's file system says."""
    with tempfile.TemporaryFile(dir=folder, prefix=f"{CLAIM}.now-") as probe:
        return os.fstat(probe.fileno()).st_mtime


def claims_of(folder: Path) -> list[Path]:
    """All that were made, in no order."""
    return [file for file in folder.glob(f"{CLAIM}*") if file.is_file()]


def work_through(
    folders: Sequence[Path],
    is_open: Callable[[Path], bool],
    work: Callable[[Path, Claim], object],
    stale_after: float = STALE_AFTER,
    watch: Callable[[], object] = lambda: None,
    waiting: Callable[[Sequence[Path]], object] = lambda folders: None,
) -> None:
    """Do `work` in every folder that is open, beside all others who do the same, until none is.

    What others hold is waited for, and taken over where they are no longer heard of.

    Args:
        folders: in the order in which they are begun.
        is_open: whether there is work to do in a folder.
        work: leaves the folder no longer open. What it raises is raised here; ClaimLost is not: the other goes on.
        watch: called now and then, and at the end.
        waiting: told, now and then, which folders are still open when others hold them all.
    """
    while remaining := [folder for folder in folders if is_open(folder)]:
        if not _begin_one(remaining, is_open, work, stale_after):
            waiting(remaining)
            time.sleep(min(POLL, stale_after / BEATS))
        watch()
    watch()


def _begin_one(
    folders: Iterable[Path],
    is_open: Callable[[Path], bool],
    work: Callable[[Path, Claim], object],
    stale_after: float,
) -> bool:
    """Work in the first folder that nobody holds; False: there is none."""
    for folder in folders:
        claim = take(folder, stale_after)
        if claim is None:
            continue
        with claim, suppress(ClaimLost):
            if is_open(folder):  # still: another may have finished it before it was claimed
                work(folder, claim)
        return True
    return False
