"""Hashes of values, arrays and files, to detect changes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from msm4sr.errors import InputError


def json_digest(*values: object) -> str:
    """A hash, 32 hexadecimal digits, of any values that JSON can represent."""
    text = json.dumps(values, ensure_ascii=True, sort_keys=True)  # ascii: lone surrogates cannot be encoded otherwise
    return hashlib.blake2b(text.encode("ascii"), digest_size=16).hexdigest()


def array_digest(*parts: bytes | np.ndarray) -> str:
    """A hash, 24 hexadecimal digits, of bytes and arrays; it depends on the boundaries between them."""
    made = hashlib.blake2b(digest_size=12)
    for part in parts:
        content = np.frombuffer(part, np.uint8) if isinstance(part, bytes) else np.ascontiguousarray(part).reshape(-1)
        made.update(content.nbytes.to_bytes(8, "little"))
        made.update(content.view(np.uint8).data)
    return made.hexdigest()


def file_digest(file: Path) -> str:
    """The SHA-256 of a file. Raises InputError if it cannot be read."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
