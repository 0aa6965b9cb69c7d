"""Files and folders that appear complete or not at all, and survive a power cut."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from msm4sr.errors import InputError


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; at the end of the block it is synced and replaces `path`, or is removed on failure."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.unfinished")
    try:
        yield unfinished
        _sync(unfinished)
        unfinished.replace(path)
        _sync(path.parent)
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
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: exists already; name a new or an empty folder")
    unfinished = out.parent / f".{out.name}.{secrets.token_hex(4)}.unfinished"
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made ({error})") from error
    try:
        yield unfinished
        os.sync()  # in one call: syncing each of many thousand images takes minutes
        if out.exists():
            out.rmdir()  # empty; otherwise the rename would lose what was added since
        unfinished.rename(out)
        _sync(out.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically; missing parent folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, record: Any) -> None:
    """Write `record` as indented JSON, atomically."""
    write_text(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def _sync(path: Path) -> None:
    """Flush a file or a folder to disk, so that a power cut cannot leave a new name on an empty file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
