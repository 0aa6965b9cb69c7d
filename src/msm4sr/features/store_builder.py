"""Builds a feature store chunk by chunk: only what is new is encoded, a kill loses one chunk, machines share the work.

The items of a chunk whose content the store holds already are copied from it; the others are encoded together and kept
in one file, whose name hashes all that determines its vectors (encoder, settings, content of the items). A later run
finds it by that name, whichever machine wrote it. When all chunks are there they are joined into the new store.

Where a chunk begins depends on the number of items alone, so that its vectors are bit-identical in an undisturbed run,
in one that was killed and resumed, and on another machine.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from msm4sr.digests import json_digest
from msm4sr.errors import InputError
from msm4sr.executors import Executor, LocalExecutor
from msm4sr.features.store import (
    FORMAT,
    MISSING,
    Features,
    StoreTables,
    cut_short,
    discard,
    find_current,
    is_current,
    load_features,
    locked_store,
    mapped_arrays,
    read_contents,
    read_manifest,
    read_missing,
    read_rows,
    readable,
    recover,
    write_store,
)
from msm4sr.files import write_json
from msm4sr.progress import Advance, NoProgress, Progress
from msm4sr.ragged import Ragged

if TYPE_CHECKING:
    from msm4sr.features.extract import Extractor

logger = logging.getLogger(__name__)

MAX_ITEMS = 512  # per chunk: what a kill can lose, and what is in memory at a time
MIN_ITEMS = 128  # so that sentences of similar length can share a batch
MIN_CHUNKS = 32  # of a catalogue that has enough items, so that machines can share it

Missing = tuple[int, str | None, str]
"""The item's place in its chunk, the image (None: the item has nothing at all), the reason."""


def chunk_ranges(n_items: int) -> list[range]:
    """The rows of each chunk of a catalogue; all chunks but the last have the same size."""
    size = min(MAX_ITEMS, max(MIN_ITEMS, -(-n_items // MIN_CHUNKS)))
    return [range(start, min(start + size, n_items)) for start in range(0, n_items, size)]


def no_vectors() -> np.ndarray:
    """float32 [0, 0]."""
    return np.zeros((0, 0), np.float32)


@dataclass(frozen=True, eq=False)
class Chunk:
    """The features of some items, in order."""

    counts: np.ndarray  # int64 [items], the rows of each item
    vectors: np.ndarray  # float32 [rows, dim]
    images: list[str] | None = None  # the path of each row, where rows are images
    missing: list[Missing] = field(default_factory=list)  # what could not be encoded
    backend: str | None = None  # of the encoder; None if nothing was encoded

    @property
    def rows(self) -> Ragged:
        return Ragged.from_lengths(self.vectors, self.counts)

    @property
    def paths(self) -> Ragged:
        """The image path (or None) of each row of each item."""
        paths = [None] * len(self.vectors) if self.images is None else self.images
        return Ragged.from_lengths(np.array(paths, object), self.counts)

    def save(self, path: Path) -> None:
        """Write the chunk as safetensors, atomically."""
        import torch  # heavy, and a store is read without it

        from msm4sr.tensor_files import save_tensors

        arrays = {"counts": self.counts.astype(np.int64), "vectors": self.vectors.astype(np.float32)}
        about = {"name": path.name, "images": self.images, "missing": self.missing, "backend": self.backend}
        save_tensors({name: torch.from_numpy(array) for name, array in arrays.items()}, path, about)

    @classmethod
    def load(cls, path: Path) -> Chunk | None:
        """Read a chunk; None if there is none, or a damaged or renamed one."""
        from msm4sr.tensor_files import load_tensors, read_about

        try:
            arrays, about = load_tensors(path), read_about(path)
        except InputError:
            return None
        if about.get("name") != path.name:  # the name hashes what the chunk was made from
            return None
        missing = [(int(item), image, reason) for item, image, reason in about["missing"]]
        return cls(arrays["counts"].numpy(), arrays["vectors"].numpy(), about["images"], missing, about["backend"])


@dataclass(frozen=True)
class Shard:
    """The `number`-th of `count` shares of the work, from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `3/16`. Raises InputError for anything else."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError(f"--shard {text}: write it as NUMBER/COUNT, from 1/16 to 16/16 for sixteen shards")
        return cls(int(found[1]), int(found[2]))


@dataclass(frozen=True, eq=False)
class _Base:
    """What can be copied: the existing store, if its encoder and settings are the same, else nothing."""

    file: Path | None = None  # of the vectors
    dim: int = 0
    paths: Ragged = field(default_factory=lambda: Ragged(np.zeros(0, object), np.zeros(1, np.int64)))  # of images
    has_paths: bool = False
    items: dict[str, int] = field(default_factory=dict)  # content -> item
    backends: Sequence[str] = ()
    missing: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=MISSING))

    def vectors(self) -> Ragged:
        # Mapped again for each chunk: pages once read would otherwise count as memory of this process to the end.
        mapped = no_vectors() if self.file is None else mapped_arrays(self.file)["vectors"]
        return Ragged(mapped, self.paths.offsets)


@dataclass(frozen=True, eq=False)
class _Plan:
    """Where the items of a chunk come from."""

    items: range  # rows of the catalogue
    contents: list[str]  # the hash of each item
    source: np.ndarray  # int64 [items], the item of the base to copy, -1 for an item to encode
    file: Path | None  # of the items to encode; None if there are none

    @property
    def todo(self) -> list[int]:
        return [item for item, source in zip(self.items, self.source, strict=True) if source < 0]

    def load(self) -> Chunk:
        if self.file is None:
            return Chunk(np.zeros(0, np.int64), no_vectors())
        chunk = Chunk.load(self.file)
        if chunk is None:
            raise OSError(f"{self.file}: vanished or damaged before it was joined; run the same command again")
        return chunk

    def join(self, old: Ragged, new: Ragged) -> Ragged:
        """The rows of each item: from the base (`old`) for copied items, else the next of those encoded (`new`)."""
        copied = self.source >= 0
        kept = old.take(self.source[copied])
        order = np.empty(len(copied), np.int64)
        order[copied], order[~copied] = np.arange(len(kept)), len(kept) + np.arange(len(new))
        values = [rows.values for rows in (kept, new) if len(rows.values)] or [new.values]
        return Ragged.from_lengths(np.concatenate(values), np.append(kept.lengths, new.lengths)).take(order)


class StoreBuilder:
    """Builds or updates the feature store of an extractor."""

    def __init__(
        self, extractor: Extractor, progress: Progress = NoProgress(), executor: Executor = LocalExecutor()
    ) -> None:
        self.extractor, self.progress, self.executor = extractor, progress, executor
        self.folder = extractor.folder
        self.chunk_folder = self.folder.with_name(f"{self.folder.name}.chunks")
        self._ranges = chunk_ranges(len(extractor.item_ids))
        self._hashes: dict[range, list[str]] = {}

    def __reduce__(self) -> tuple[type[StoreBuilder], tuple[Extractor]]:
        return StoreBuilder, (self.extractor,)  # in a worker

    def build(self, merge: bool = False) -> Features:
        """The store as it is if nothing has changed, else updated.

        Each chunk is hashed just before it is encoded, so that the extractor can read a file once for both. With
        `merge` nothing is encoded: missing shards are an InputError.
        """
        if (found := self.unchanged()) is not None:
            return found
        if merge and not self.folder.exists() and not self.chunk_folder.exists():
            raise self._no_shards()  # before a lock file is made
        with locked_store(self.folder):
            recover(self.folder)
            base = self._open_base()
            plans = self._encode(self._ranges, base, merge)
            record = self._record()
            found = find_current(self.folder, record)  # another process may have made it meanwhile
            if found is None:
                if base.file is not None:
                    new = sum(len(plan.todo) for plan in plans)
                    n = len(self.extractor.item_ids)
                    logger.info("%s: %s of %s items are new or changed", self.folder.name, f"{new:,}", f"{n:,}")
                if merge:
                    self._require_all_shards(plans)
                self._join(base, plans, record)
                logger.info("%s extracted, kept in %s", self.folder.name, self.folder)
            discard(self.chunk_folder)
        return load_features(self.folder) if found is None else found

    def build_shard(self, shard: Shard) -> None:
        """Encode the chunks of one shard; `build(merge=True)` joins them when all shards are there."""
        mine = self._ranges[shard.number - 1 :: shard.count]
        with locked_store(self.folder):
            recover(self.folder)
            base = self._open_base()
        self._encode(mine, base)
        n = sum(map(len, mine))
        write_json(self.chunk_folder / f"shard-{shard.number}-of-{shard.count}.json", {"items": n})
        logger.info("%s: shard %s is done (%s items), kept in %s", self.folder.name, shard, f"{n:,}", self.chunk_folder)

    def _hash(self, items: range) -> list[str]:
        if items not in self._hashes:
            self._hashes[items] = self.extractor.content_hashes(items)
        return self._hashes[items]

    def _record(self) -> dict[str, Any]:
        """The entries of the manifest that a current store has."""
        contents = [content for items in self._ranges for content in self._hash(items)]
        extractor = self.extractor
        return {**extractor.manifest, **extractor.extra, "content": json_digest(list(extractor.item_ids), contents)}

    def unchanged(self) -> Features | None:
        """The store if it is current. Stops hashing at the first chunk that has changed."""
        if cut_short(self.folder) or self.chunk_folder.exists():
            return None
        if not is_current(self.folder, {**self.extractor.manifest, **self.extractor.extra}):
            return None
        with suppress(InputError):
            known = set(read_contents(self.folder))
            if all(known.issuperset(self._hash(items)) for items in self._ranges):
                return find_current(self.folder, self._record())
        return None

    def _open_base(self) -> _Base:
        """The existing store; the log says why items cannot be copied from it."""
        try:
            manifest = read_manifest(self.folder)
            if manifest is None:
                return _Base()
            with readable(self.folder):
                backends = list[str](manifest["backends"])
            changed = " and ".join(key for key, value in self.extractor.manifest.items() if manifest.get(key) != value)
            if changed:
                logger.info("%s: %s changed since this was extracted; extracting again", self.folder, changed)
                return _Base()
            features, rows = load_features(self.folder), read_rows(self.folder)
            paths = np.full(features.n_rows, None) if rows is None else rows["image"].to_numpy()
            items = {content: item for item, content in enumerate(read_contents(self.folder))}
            return _Base(
                self.folder / "vectors.safetensors",
                features.dim,
                Ragged(paths, np.array(features.offsets)),
                rows is not None,
                items,
                backends,
                read_missing(self.folder),
            )
        except InputError as error:
            logger.info("%s; extracting again", error)
            return _Base()

    def _encode(self, ranges: Sequence[range], base: _Base, merge: bool = False) -> list[_Plan]:
        """Hash each chunk and encode what is new in it; with `merge` nothing is encoded."""
        if not merge:
            done = 0
            try:
                with self.progress.task(self.extractor.title, sum(map(len, ranges)), "items") as advance:
                    for items, contents in self.executor.stream(ChunkEncoder(self, base), ranges, advance):
                        self._hashes[items] = contents
                        done += 1
            except KeyboardInterrupt:
                name, n = self.folder.name, f"{len(ranges):,}"
                logger.info("%s: %s of %s chunks are finished and kept", name, f"{done:,}", n)
                raise
        return [self._plan(items, base) for items in ranges]

    def _plan(self, items: range, base: _Base) -> _Plan:
        contents = self._hash(items)
        source = np.array([base.items.get(content, -1) for content in contents], np.int64)
        new = [content for content, found in zip(contents, source, strict=True) if found < 0]
        name = json_digest(FORMAT, dict(self.extractor.manifest), new)
        return _Plan(items, contents, source, self.chunk_folder / f"{name}.safetensors" if new else None)

    def encode_chunk(self, items: range, base: _Base, advance: Advance) -> list[str]:
        """Hash a chunk and encode what is new in it; the hashes of its items."""
        plan = self._plan(items, base)
        todo = plan.todo
        chunk = None if plan.file is None else Chunk.load(plan.file)
        advance(len(plan.items) if chunk else len(plan.items) - len(todo))
        if plan.file is not None:
            if chunk is None:
                chunk = self.extractor.encode(todo, advance)
                chunk.save(plan.file)
            self.extractor.check(chunk, todo)
        return plan.contents

    def _join(self, base: _Base, plans: Sequence[_Plan], record: Mapping[str, Any]) -> None:
        """First the tables of all chunks, then their vectors, with one chunk in memory at a time."""
        extractor = self.extractor
        paths: list[Ragged] = []
        missing: list[Missing] = []
        dim, backends, has_paths = 0, set(base.backends), base.has_paths
        for plan in plans:
            chunk, todo = plan.load(), plan.todo
            paths.append(plan.join(base.paths, chunk.paths))
            copies = paths[-1].lengths[plan.source >= 0].any()
            dim = max(dim, chunk.vectors.shape[1], base.dim if copies else 0)
            backends |= {chunk.backend} if chunk.backend else set()
            has_paths |= chunk.images is not None
            missing += [(todo[item], image, reason) for item, image, reason in chunk.missing]
        rows = extractor.rows
        if rows is None and has_paths:
            rows = pl.DataFrame({"image": [path for chunk in paths for path in chunk.values]}, {"image": pl.String})
        tables = StoreTables(
            extractor.item_ids,
            [content for plan in plans for content in plan.contents],
            np.concatenate([np.zeros(0, np.int64), *(chunk.lengths for chunk in paths)]),
            self._missing(base, plans, missing) if extractor.missing is None else extractor.missing,
            rows,
        )
        vectors = (plan.join(base.vectors(), plan.load().rows).values for plan in plans)
        write_store(self.folder, {**record, "backends": sorted(backends)}, tables, vectors, dim)

    def _missing(self, base: _Base, plans: Sequence[_Plan], found: list[Missing]) -> pl.DataFrame:
        """missing.parquet: the lines of the base for the items that are copied, and those `found` in the chunks."""
        columns = ("item", "image", "reason")
        table = pl.DataFrame(found, schema={name: MISSING[name] for name in columns}, orient="row")
        if not base.missing.is_empty():
            source = pl.DataFrame({"item": np.concatenate([plan.source for plan in plans])}).with_row_index("now")
            known = base.missing.join(source, on="item", maintain_order="left")  # several items may copy one
            known = known.select(pl.col("now").cast(pl.Int64).alias("item"), "image", "reason")
            table = pl.concat([known, table]).sort("item", maintain_order=True)
        ids = pl.Series("item_id", [self.extractor.item_ids[item] for item in table["item"]], pl.String)
        return table.with_columns(ids).select(*MISSING)

    def _no_shards(self) -> InputError:
        return InputError(f"{self.chunk_folder}: there are no shards here; `msm4sr extract ... --shard 1/N` makes one")

    def _require_all_shards(self, plans: Sequence[_Plan]) -> None:
        """Raise InputError that names the missing shards, unless all chunks are there."""
        absent = [place for place, plan in enumerate(plans) if plan.file is not None and Chunk.load(plan.file) is None]
        done: dict[int, set[int]] = {}
        for path in self.chunk_folder.glob("shard-*-of-*.json"):
            if found := re.fullmatch(r"shard-(\d+)-of-(\d+)", path.stem):
                done.setdefault(int(found[2]), set()).add(int(found[1]))
        if not absent and (not done or any(len(numbers) == count for count, numbers in done.items())):
            return
        if not done:
            raise self._no_shards()
        count = max(done, key=lambda count: (len(done[count]) / count, count))
        lacking = sorted((set(range(1, count + 1)) - done[count]) | {place % count + 1 for place in absent})
        stale = [number for number in lacking if number in done[count]]
        why = f" ({', '.join(map(str, stale))} of other items or settings)" if stale else ""
        raise InputError(
            f"{self.chunk_folder}: of {count} shards these are missing: {', '.join(map(str, lacking))}{why}; "
            f"`msm4sr extract ... --shard {lacking[0]}/{count}` makes the first of them"
        )


@dataclass(frozen=True, eq=False)
class ChunkEncoder:
    """Encodes chunks in a worker (`Executor.stream`)."""

    builder: StoreBuilder
    base: _Base

    def __call__(self, items: range, advance: Advance) -> list[str]:
        return self.builder.encode_chunk(items, self.base, advance)
