"""Chunks: the catalogue is encoded a few hundred items at a time, and each finished chunk is kept until all are there.

Where a chunk begins depends on the number of items alone, so that its vectors are bit-identical in an undisturbed run,
in one that was killed and resumed, and on another machine.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from msm4sr.features.store import map_tensors
from msm4sr.files import atomic_file
from msm4sr.ragged import Ragged

MAX_ITEMS = 512  # per chunk: what a kill can lose, and what is in memory at a time
MIN_ITEMS = 128  # so that sentences of similar length can share a batch
MIN_CHUNKS = 32  # of a catalogue that has enough items, so that machines can share it

Missing = tuple[int, str | None, str]
"""The item's place in its chunk, the image (None: the item has nothing at all), the reason."""


def chunk_ranges(n_items: int) -> list[range]:
    """The rows of each chunk of a catalogue; all chunks but the last have the same size."""
    size = min(MAX_ITEMS, max(MIN_ITEMS, -(-n_items // MIN_CHUNKS)))
    return [range(start, min(start + size, n_items)) for start in range(0, n_items, size)]


def digest(*values: object) -> str:
    """A hash of 32 letters of any values that JSON can represent."""
    text = json.dumps(values, ensure_ascii=True, sort_keys=True)  # ascii: lone surrogates cannot be encoded otherwise
    return hashlib.blake2b(text.encode("ascii"), digest_size=16).hexdigest()


@dataclass(frozen=True, eq=False)
class Chunk:
    """The features of some items, in order.

    Attributes:
        counts: int64 [items], the rows of each item.
        vectors: float32 [rows, dim].
        images: the path of each row, where rows are images.
        missing: what could not be encoded.
        backend: which backend the encoder ran on; None if nothing was encoded.
    """

    counts: np.ndarray
    vectors: np.ndarray
    images: list[str] | None = None
    missing: list[Missing] = field(default_factory=list)
    backend: str | None = None

    @classmethod
    def empty(cls) -> Chunk:
        return cls(np.zeros(0, np.int64), no_vectors())

    @property
    def rows(self) -> Ragged:
        """The vectors of each item."""
        return Ragged.from_lengths(self.vectors, self.counts)

    @property
    def paths(self) -> Ragged:
        """The image path (or None) of each row of each item."""
        paths = [None] * len(self.vectors) if self.images is None else self.images
        return Ragged.from_lengths(np.array(paths, object), self.counts)

    def save(self, path: Path) -> None:
        """Write the chunk as safetensors, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        counts = np.ascontiguousarray(self.counts, np.int64)
        vectors = np.ascontiguousarray(self.vectors, np.float32)
        entries = {"images": self.images, "missing": self.missing, "backend": self.backend}
        metadata = {name: json.dumps(value) for name, value in entries.items()}
        with atomic_file(path) as unfinished:
            save_file({"counts": counts, "vectors": vectors}, unfinished, metadata)

    @classmethod
    def load(cls, path: Path) -> Chunk | None:
        """Read a chunk; None if there is none, or a damaged one."""
        try:
            arrays, metadata = map_tensors(path)
            entries = {name: json.loads(metadata[name]) for name in ("images", "missing", "backend")}
            missing = [(int(item), image, reason) for item, image, reason in entries["missing"]]
            return cls(arrays["counts"], arrays["vectors"], entries["images"], missing, entries["backend"])
        except (OSError, ValueError, KeyError):
            return None


def no_vectors() -> np.ndarray:
    """float32 [0, 0]."""
    return np.zeros((0, 0), np.float32)
