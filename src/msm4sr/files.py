"""Files and folders that appear complete or not at all, survive a power cut, and have the modes of the umask."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from msm4sr.errors import InputError


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield an empty file to write; at the end of the block it is synced and replaces `path`, or is removed on failure.

    Missing parent folders are made. The mode is that of the umask, whatever the writer does (safetensors makes 0600).
    """
    make_folder(path.parent)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.unfinished")
    try:
        unfinished.touch()
        mode = unfinished.stat().st_mode
        yield unfinished
        _set_mode(unfinished, mode)
        sync(unfinished)
        unfinished.replace(path)
        sync(path.parent)
    except OSError as error:
        _name(error, unfinished, path)
        raise
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yield a folder to fill; at the end of the block it is synced and becomes `out`, or is removed on failure.

    Raises:
        InputError: `out` exists and is not an empty folder, or cannot be made.
    """
    out = out.resolve()
    exists = InputError(f"{out}: exists already; name a new or an empty folder")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise exists
    unfinished = out.parent / f".{out.name}.{secrets.token_hex(4)}.unfinished"
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made ({error})") from error
    try:
        yield unfinished
        mode = unfinished.stat().st_mode & 0o666  # that of a new file
        for parent, _, names in os.walk(unfinished):
            for name in names:
                _set_mode(Path(parent, name), mode)
        os.sync()  # in one call: syncing each of many thousand images takes minutes
        try:
            if out.exists():
                out.rmdir()  # empty; otherwise the rename would lose what was added since
            unfinished.rename(out)
        except OSError as error:
            raise (exists if out.exists() else error) from None  # made by another process
        sync(out.parent)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, OSError):
            _name(error, unfinished, out)
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically; missing parent folders are made."""
    with atomic_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, record: Any) -> None:
    """Write `record` as indented JSON, atomically."""
    write_text(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, and sync the folders that have a new entry."""
    if not folder.is_dir():
        if folder.is_symlink():
            raise InputError(f"{folder}: a link to {folder.readlink()}, which is no folder; make it or remove the link")
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def remove(path: Path) -> None:
    """Remove a file, a link (not what it links to), or a folder with its content; nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _name(error: OSError, unfinished: Path, path: Path) -> None:
    """Make an error of writing name the file that was to be written. (That of a full disk names none.)"""
    error.strerror = error.strerror or str(error)  # that of polars has a text only
    named = str(path) if error.filename is None else str(error.filename)
    error.filename = named.replace(str(unfinished), str(path))


def _set_mode(path: Path, mode: int) -> None:
    if stat.S_IMODE(path.stat().st_mode) != stat.S_IMODE(mode):
        path.chmod(stat.S_IMODE(mode))


def sync(path: Path) -> None:
    """Flush a file or a folder to disk, so that a power cut cannot leave a new name on an empty file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def full_disk(error: BaseException | None) -> OSError | None:
    """The error of a full disk, or of a quota, that led to an exception; None if there is none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return error
        error = error.__cause__ or error.__context__
    return None
