"""Folders that appear whole or not at all, and what a folder says of where it came from."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msm4sr.errors import InputError

PROVENANCE = "provenance.json"


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill inside a `with` block; it becomes `out` at the end, or vanishes if the block fails.

    Raises InputError: `out` exists and is not an empty folder, or cannot be made.
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
        if out.exists():
            out.rmdir()  # empty, or the rename would lose what came since
        unfinished.rename(out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A path to write to inside a `with` block; it replaces `path` at the end, or vanishes if the block fails."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.unfinished")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def file_record(path: Path) -> dict[str, Any]:
    """Name, size and sha256 of a file, as provenance states it. The folder is left out: it differs by machine."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest}


def result_record(folder: Path) -> dict[str, Any]:
    """Hashes of what a prepared folder holds: each table, all pictures together, and all of it as `sha256`."""
    tables = [file_record(path) for path in sorted(folder.glob("*.parquet"))]
    pictures = sorted(entry.name for entry in os.scandir(folder / "images")) if (folder / "images").is_dir() else []
    images = hashlib.sha256()
    for name in pictures:
        images.update(f"{name} {file_record(folder / 'images' / name)['sha256']}\n".encode())
    record = {"tables": tables, "images": {"files": len(pictures), "sha256": images.hexdigest()}}
    return {**record, "sha256": hashlib.sha256(json.dumps(record).encode()).hexdigest()}


def write_json(path: Path, record: dict[str, Any]) -> None:
    with new_file(path) as unfinished:
        unfinished.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
