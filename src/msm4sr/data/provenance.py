"""Where a prepared folder comes from: hashes of its sources and of its content."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

PROVENANCE = "provenance.json"


def file_record(path: Path) -> dict[str, Any]:
    """Name, size and sha256 of a file; without its folder, which differs by machine."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest}


def result_record(folder: Path) -> dict[str, Any]:
    """Hashes of the content of a prepared folder: each table, all images together, and everything as `sha256`."""
    tables = [file_record(path) for path in sorted(folder.glob("*.parquet"))]
    names = sorted(entry.name for entry in os.scandir(folder / "images")) if (folder / "images").is_dir() else []
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name} {file_record(folder / 'images' / name)['sha256']}\n".encode())
    record = {"tables": tables, "images": {"files": len(names), "sha256": digest.hexdigest()}}
    return {**record, "sha256": hashlib.sha256(json.dumps(record).encode()).hexdigest()}
