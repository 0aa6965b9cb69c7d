"""Hashes of values, arrays and files, to detect changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from msm4sr.errors import InputError


def json_digest(*values: object) -> str:
    """A hash, 32 hexadecimal digits, of any values that JSON can represent."""
    text = json.dumps(values, ensure_ascii=True, sort_keys=True)  # ascii: lone surrogates cannot be encoded otherwise
    return hashlib.blake2b(text.encode("ascii"), digest_size=16).hexdigest()


def array_digest(*parts: bytes | np.ndarray) -> str:
    """A hash, 24 hexadecimal digits, of bytes and arrays; it depends on the boundaries between them."""
    plain = (np.frombuffer(p, np.uint8) if isinstance(p, bytes) else np.ascontiguousarray(p).reshape(-1) for p in parts)
    return chunked_digest((part.nbytes, [part.view(np.uint8).data]) for part in plain)


def chunked_digest(parts: Iterable[tuple[int, Iterable[bytes | memoryview]]]) -> str:
    """`array_digest` of parts that are not in memory: the number of bytes of each, and the bytes in chunks."""
    made = hashlib.blake2b(digest_size=12)
    for size, chunks in parts:
        made.update(size.to_bytes(8, "little"))
        for chunk in chunks:
            made.update(chunk)
    return made.hexdigest()


def file_digest(file: Path) -> str:
    """The SHA-256 of a file. Raises InputError if it cannot be read."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
