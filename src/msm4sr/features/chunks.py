"""A store made part by part: only what is new is encoded, a kill loses one part at most, machines can share the work.

The catalogue is cut into stretches of some hundred items. Of each stretch, the items whose content the store has
already are taken over; the others are encoded together, and are a part: one file, written whole or not at all, under
a name that hashes all that decides its vectors (encoder, settings, the content of its items). A later run finds it by
that name, whoever wrote it. When all parts are there they are joined, a stretch at a time, into the new store.

Where a stretch begins depends on the number of items alone, so that a part is the same, bit for bit, in an
undisturbed run, in one that was killed and goes on, and on another machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from safetensors.numpy import save_file

from msm4sr.errors import InputError
from msm4sr.features.progress import Advance, say, task
from msm4sr.features.store import (
    FORMAT,
    MISSING,
    Features,
    cut_short,
    load_features,
    locked,
    map_tensors,
    read_contents,
    read_manifest,
    read_missing,
    read_rows,
    recover,
    write_store,
)

if TYPE_CHECKING:
    from rich.progress import Progress

MOST_ITEMS = 512  # of a stretch: what a kill can lose, and what is in memory at a time
FEWEST_ITEMS = 128  # so that sentences of like length can share a batch
STRETCHES = 32  # of a small catalogue, so that machines can share it


@dataclass(frozen=True, eq=False)
class Part:
    """What was made of some items, in order.

    counts: int64 [items], rows of each. vectors: float32 [rows, dim]. images: the picture of each row, if rows are
    pictures. missing: (item's place in this part, picture or None, reason). ran_on: which of its ways the encoder took.
    """

    counts: np.ndarray
    vectors: np.ndarray
    images: list[str] | None = None
    missing: list[tuple[int, str | None, str]] = field(default_factory=list)
    ran_on: str | None = None


@dataclass(frozen=True)
class Shard:
    """The `number`-th of `count` shares of the work, from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`3/16`. Raises InputError for anything else."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError(f"--shard {text}: write it as NUMBER/COUNT, from 1/16 to 16/16 for sixteen shards")
        return cls(int(found[1]), int(found[2]))


@dataclass(frozen=True)
class Work:
    """What a store is to hold, and how it is made.

    about: modality, kind, encoder, settings: with an item's content they decide its vectors.
    contents: the hashes of the content of the items of a stretch.
    encode: makes a part of the items with these row numbers; is told whom to tell how many are done.
    check: sees each part as it is made or found, with its items; may refuse it by an InputError.
    """

    folder: Path
    about: Mapping[str, Any]
    item_ids: Sequence[str]
    contents: Callable[[range], list[str]]
    encode: Callable[[Sequence[int], Advance], Part]
    title: str
    check: Callable[[Part, Sequence[int]], object] = lambda part, items: None

    @property
    def parts(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.parts")


@dataclass(frozen=True, eq=False)
class _Base:
    """The store that is there, made in the same way: what is unchanged is taken from it."""

    folder: Path
    offsets: np.ndarray
    dim: int
    places: dict[str, int]  # content -> item
    ran_on: list[str]
    images: pl.Series | None
    missing: pl.DataFrame


@dataclass(frozen=True, eq=False)
class _Plan:
    """A stretch: where each of its items comes from, and the file of its part, if there is something to encode."""

    stretch: range
    taken: np.ndarray  # int64 [items of the stretch]: item of the base, or -1
    todo: list[int]
    part: Path | None


def digest(*parts: object) -> str:
    """A hash, 32 letters, of anything that JSON can say."""
    # ascii, so that a lone surrogate is no obstacle
    text = json.dumps(parts, ensure_ascii=True, sort_keys=True)
    return hashlib.blake2b(text.encode("ascii"), digest_size=16).hexdigest()


def stretches(n_items: int) -> list[range]:
    """The catalogue cut into equal stretches (the last may be shorter)."""
    size = min(MOST_ITEMS, max(FEWEST_ITEMS, -(-n_items // STRETCHES)))
    return [range(start, min(start + size, n_items)) for start in range(0, n_items, size)]


def no_missing() -> pl.DataFrame:
    return pl.DataFrame(schema=MISSING)


def make_store(
    work: Work,
    progress: Progress | None = None,
    *,
    merge: bool = False,
    more: Mapping[str, Any] | None = None,
    rows: pl.DataFrame | None = None,
    missing: pl.DataFrame | None = None,
) -> Features:
    """The store that `work` describes: as it is, if nothing has changed; else with what is new encoded.

    merge: encode nothing; all parts must have come from shards, or an InputError names the missing ones.
    more: further entries of the manifest. rows, missing: these tables, where they do not come from the parts.
    """
    contents: list[str] = []
    for stretch in stretches(len(work.item_ids)):
        contents += work.contents(stretch)
    record = {**work.about, **(more or {}), "content": digest(list(work.item_ids), contents)}
    found = current(work.folder, record)
    if found is not None and not cut_short(work.folder) and not work.parts.exists():
        return found
    with locked(work.folder, lambda: say(progress, f"{work.folder}: another process is at it; waiting")):
        recover(work.folder)
        found = current(work.folder, record)  # made by the other process, say
        if found is None:
            base = _base(work, progress)
            plans = [_plan(work, base, stretch, contents) for stretch in stretches(len(contents))]
            if base is not None:
                new = sum(len(plan.todo) for plan in plans)
                say(progress, f"{work.folder.name}: {new:,} of {len(contents):,} items are new or changed")
            if merge:
                _complain_of_missing_shards(work, plans)
            _encode(work, plans, progress)
            _join(work, base, plans, contents, record, rows, missing)
        shutil.rmtree(work.parts, ignore_errors=True)
    if found is not None:
        return found
    say(progress, f"{work.folder.name} extracted, kept in {work.folder}")
    return load_features(work.folder)


def make_shard(work: Work, shard: Shard, progress: Progress | None = None) -> None:
    """The parts of one shard; `make_store(merge=True)` joins them when all shards are there."""
    cut = stretches(len(work.item_ids))
    mine = cut[shard.number - 1 :: shard.count]
    with locked(work.folder, lambda: say(progress, f"{work.folder}: another process is at it; waiting")):
        recover(work.folder)
        base = _base(work, progress)
    contents = [""] * len(work.item_ids)
    for stretch in mine:
        contents[stretch.start : stretch.stop] = work.contents(stretch)
    plans = [_plan(work, base, stretch, contents) for stretch in mine]
    _encode(work, plans, progress)
    work.parts.mkdir(parents=True, exist_ok=True)
    _whole(_marker(work, shard), lambda path: path.write_text(json.dumps({"items": sum(map(len, mine))}) + "\n"))
    say(progress, f"{work.folder.name}: shard {shard} is done ({sum(map(len, mine)):,} items), kept in {work.parts}")


def current(folder: Path, record: Mapping[str, Any]) -> Features | None:
    """What `folder` holds, if it is sound and its manifest says all that `record` says."""
    try:
        manifest = read_manifest(folder)
        if manifest is None or any(manifest.get(key) != value for key, value in record.items()):
            return None
        return load_features(folder)
    except InputError:
        return None


def _base(work: Work, progress: Progress | None) -> _Base | None:
    """What of the store that is there can be used; where it is of no use, a line says why."""
    try:
        manifest = read_manifest(work.folder)
        if manifest is None:
            return None
        changed = [key for key, value in work.about.items() if manifest.get(key) != value]
        if changed:
            say(progress, f"{work.folder}: {' and '.join(changed)} changed since this was extracted; extracting again")
            return None
        features = load_features(work.folder)
        rows = read_rows(work.folder)
        return _Base(
            work.folder,
            np.array(features.offsets),
            manifest["dim"],
            {content: item for item, content in enumerate(read_contents(work.folder))},
            manifest["ran_on"],
            None if rows is None else rows["image"],
            read_missing(work.folder),
        )
    except InputError as error:
        say(progress, f"{error}; extracting again")
        return None


def _plan(work: Work, base: _Base | None, stretch: range, contents: Sequence[str]) -> _Plan:
    places = {} if base is None else base.places
    taken = np.array([places.get(contents[item], -1) for item in stretch], np.int64)
    todo = [item for item, place in zip(stretch, taken, strict=True) if place < 0]
    if not todo:
        return _Plan(stretch, taken, todo, None)
    name = digest(FORMAT, dict(work.about), [contents[item] for item in todo])
    return _Plan(stretch, taken, todo, work.parts / f"{name}.safetensors")


# --- encoding


def _encode(work: Work, plans: Sequence[_Plan], progress: Progress | None) -> None:
    """Make the parts that are not there yet."""
    wanted = [plan for plan in plans if plan.part is not None]
    with task(progress, work.title, sum(len(plan.todo) for plan in wanted), "items") as advance:
        for number, plan in enumerate(wanted):
            try:
                work.check(_made(work, plan, advance), plan.todo)
            except KeyboardInterrupt:
                say(progress, f"{work.folder.name}: {number:,} of {len(wanted):,} parts are finished and kept")
                raise


def _made(work: Work, plan: _Plan, advance: Advance) -> Part:
    """The part of a stretch, as it lies there, or else encoded and kept."""
    assert plan.part is not None
    part, counted = _load_part(plan.part), 0.0

    def count(n: float) -> None:
        nonlocal counted
        counted += n
        advance(n)

    if part is None:
        part = work.encode(plan.todo, count)
        _save_part(part, plan.part)
    advance(len(plan.todo) - counted)
    return part


def _save_part(part: Part, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"counts": np.ascontiguousarray(part.counts, np.int64)}
    tensors["vectors"] = np.ascontiguousarray(part.vectors, np.float32)
    notes = {"images": json.dumps(part.images), "missing": json.dumps(part.missing), "ran_on": json.dumps(part.ran_on)}
    _whole(path, lambda temporary: save_file(tensors, temporary, notes))


def _load_part(path: Path) -> Part | None:
    """The part, or None where it is not there, or not whole after a failure of power."""
    try:
        arrays, notes = map_tensors(path)
        missing = [(int(item), image, reason) for item, image, reason in json.loads(notes["missing"])]
        images, ran_on = json.loads(notes["images"]), json.loads(notes["ran_on"])
        return Part(arrays["counts"], arrays["vectors"], images, missing, ran_on)
    except (OSError, ValueError, KeyError):
        return None


def _whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place, under a name of its own, and then rename it."""
    handle, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
    os.close(handle)
    try:
        write(Path(name))
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


# --- joining


def _join(
    work: Work,
    base: _Base | None,
    plans: Sequence[_Plan],
    contents: Sequence[str],
    record: Mapping[str, Any],
    rows: pl.DataFrame | None,
    missing: pl.DataFrame | None,
) -> None:
    """Counts and names of all stretches first, then their vectors, one stretch in memory at a time."""
    counts = np.zeros(len(contents), np.int64)
    images: list[pl.Series] = []
    broken: list[tuple[int, str | None, str]] = []
    dim = 0
    ran_on = set() if base is None else set(base.ran_on)
    for plan in plans:
        part = _part_of(plan)
        ran_on |= {part.ran_on} if part.ran_on else set()
        taken = plan.taken >= 0
        here = np.zeros(len(taken), np.int64)
        here[~taken] = part.counts
        if base is not None:
            here[taken] = np.diff(base.offsets)[plan.taken[taken]]
            dim = max(dim, base.dim if here[taken].any() else 0)
        dim = max(dim, part.vectors.shape[1])
        counts[plan.stretch.start : plan.stretch.stop] = here
        if rows is None and (part.images is not None or (base is not None and base.images is not None)):
            images.append(_images(plan, part, base, here))
        broken += [(plan.todo[item], image, reason) for item, image, reason in part.missing]
    if rows is None and images:
        rows = pl.DataFrame({"image": pl.concat(images)})
    if missing is None:
        missing = _missing(work, base, plans, broken)
    blocks = _blocks(plans, base, counts, dim)
    record = {**record, "ran_on": sorted(ran_on)}
    write_store(work.folder, record, work.item_ids, contents, counts, blocks, missing, rows, dim)


def _blocks(plans: Sequence[_Plan], base: _Base | None, counts: np.ndarray, dim: int) -> Iterator[np.ndarray]:
    """The vectors of each stretch, float32 [rows, dim]."""
    for plan in plans:
        part = _part_of(plan)
        if base is None or not (plan.taken >= 0).any():
            yield np.asarray(part.vectors)
            continue
        from_base, place = _sources(plan, part, base, counts[plan.stretch.start : plan.stretch.stop])
        block = np.empty((len(place), dim), np.float32)
        if from_base.any():
            # Mapped anew for each stretch: pages once read would else count as this process's memory to the end.
            block[from_base] = map_tensors(base.folder / "vectors.safetensors")[0]["vectors"][place[from_base]]
        if not from_base.all():
            block[~from_base] = part.vectors[place[~from_base]]
        yield block


def _sources(plan: _Plan, part: Part, base: _Base | None, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row of a stretch: whether it comes from the base, and its row there or in the part."""
    taken = plan.taken >= 0
    first = np.zeros(len(taken), np.int64)
    first[~taken] = np.cumsum(part.counts) - part.counts
    if base is not None:
        first[taken] = base.offsets[plan.taken[taken]]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(taken, counts), np.repeat(first, counts) + within


def _images(plan: _Plan, part: Part, base: _Base | None, counts: np.ndarray) -> pl.Series:
    from_base, place = _sources(plan, part, base, counts)
    own = part.images or []
    old = [] if base is None or base.images is None else base.images[place[from_base]].to_list()
    rest = iter(old)
    found = [next(rest) if taken else own[row] for taken, row in zip(from_base, place, strict=True)]
    return pl.Series("image", found, pl.String)


def _missing(
    work: Work, base: _Base | None, plans: Sequence[_Plan], found: list[tuple[int, str | None, str]]
) -> pl.DataFrame:
    """missing.parquet: what is known from the base of the items taken over, and what was `found` in the parts."""
    columns = ("item", "image", "reason")
    schema = {name: MISSING[name] for name in columns}
    table = pl.DataFrame(found, schema=schema, orient="row")
    if base is not None and not base.missing.is_empty():
        old = pl.DataFrame({"item": np.concatenate([plan.taken for plan in plans])}).with_row_index("now")
        known = base.missing.join(old, on="item", maintain_order="left")  # an item of the base may stand in for several
        known = known.select(pl.col("now").cast(pl.Int64).alias("item"), "image", "reason")
        table = pl.concat([known, table]).sort("item", maintain_order=True)
    ids = pl.Series("item_id", [work.item_ids[item] for item in table["item"]], pl.String)
    return table.with_columns(ids).select(*MISSING)


def _part_of(plan: _Plan) -> Part:
    if plan.part is None:
        return Part(np.zeros(0, np.int64), np.zeros((0, 0), np.float32))
    part = _load_part(plan.part)
    if part is None:
        raise OSError(f"{plan.part}: vanished or damaged while it was joined; run the same command again")
    return part


# --- shards


def _marker(work: Work, shard: Shard) -> Path:
    return work.parts / f"shard-{shard.number}-of-{shard.count}.json"


def _complain_of_missing_shards(work: Work, plans: Sequence[_Plan]) -> None:
    """InputError that names the shards whose parts are not there; nothing if all are."""
    absent = [place for place, plan in enumerate(plans) if plan.part is not None and _load_part(plan.part) is None]
    done: dict[int, set[int]] = {}
    for path in work.parts.glob("shard-*-of-*.json"):
        found = re.fullmatch(r"shard-(\d+)-of-(\d+)", path.stem)
        if found:
            done.setdefault(int(found[2]), set()).add(int(found[1]))
    if not absent and (not done or any(len(numbers) == count for count, numbers in done.items())):
        return
    if not done:
        raise InputError(f"{work.parts}: there are no shards here; `msm4sr extract ... --shard 1/N` makes one")
    count = max(done, key=lambda count: (len(done[count]) / count, count))
    lacking = sorted((set(range(1, count + 1)) - done[count]) | {place % count + 1 for place in absent})
    stale = [number for number in lacking if number in done[count]]
    why = f" ({', '.join(map(str, stale))} of other items or settings)" if stale else ""
    raise InputError(
        f"{work.parts}: of {count} shards these are missing: {', '.join(map(str, lacking))}{why}; "
        f"`msm4sr extract ... --shard {lacking[0]}/{count}` makes the first of them"
    )
