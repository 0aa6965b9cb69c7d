"""Locks of the operating system, which are released whenever their process ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from msm4sr.errors import InputError
from msm4sr.files import make_folder


def try_lock(file: Path, seconds: float = 0) -> FileLock | None:
    """Lock a file, made with its folder if it is missing; None if another process holds it, also after `seconds`."""
    lock = FileLock(file)
    try:
        make_folder(file.parent)
        lock.acquire(timeout=seconds)
    except Timeout:
        return None
    except OSError as error:
        raise InputError(f"{file.parent}: cannot be written ({error.strerror or error})") from None
    return lock


@contextmanager
def locked(file: Path, refusal: str) -> Iterator[None]:
    """Lock a file during the block. Raises InputError, with this message, if another process holds it."""
    lock = try_lock(file)
    if lock is None:
        raise InputError(refusal)
    try:
        yield
    finally:
        lock.release()


def unlock(lock: FileLock) -> None:
    """Release a lock and remove its file. Only for finished work: another process may have the file open."""
    lock.release()
    Path(lock.lock_file).unlink(missing_ok=True)


def is_locked(file: Path) -> bool:
    """Whether a process holds the lock."""
    if not file.exists():
        return False
    lock = try_lock(file)
    if lock is None:
        return True
    lock.release()
    return False
