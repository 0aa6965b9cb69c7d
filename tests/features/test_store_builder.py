"""The store built chunk by chunk, with an encoder whose rounding depends on the batch, as that of real ones does."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm4sr.digests import json_digest
from msm4sr.errors import InputError
from msm4sr.features import store_builder
from msm4sr.features.extract import Extractor
from msm4sr.features.store import Features, StoreTables, load_features, read_contents, read_missing, read_rows
from msm4sr.features.store_builder import Chunk, Missing, Shard, StoreBuilder, chunk_ranges, no_vectors
from msm4sr.progress import Advance

Catalogue = dict[str, str]
"""Item id to content: a letter per row, `-` for a row that is broken."""
DIM = 3


@pytest.fixture(scope="module", autouse=True)
def short_chunks() -> Iterator[None]:
    """Of 32 items, so that a small catalogue has several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_builder, "MIN_ITEMS", 32)
        yield


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "msm4sr")
    return caplog


def vector(letter: str) -> np.ndarray:
    return np.random.default_rng(ord(letter)).random(DIM, np.float32)


class Letters(Extractor):
    """Encodes the letters of a catalogue; records which items it hashes and encodes."""

    title = "encoding"

    def __init__(self, folder: Path, catalogue: Catalogue, encoded: list[str] | None = None, **manifest: str) -> None:
        self.folder, self.item_ids, self.texts = folder, list(catalogue), list(catalogue.values())
        self.manifest = {"modality": "visual", "encoder": "stub", **manifest}
        self.extra, self.rows, self.missing = {}, None, None
        self.encoded: list[str] = [] if encoded is None else encoded
        self.hashed: list[int] = []

    def content_hashes(self, items: range) -> list[str]:
        self.hashed.extend(items)
        return [json_digest(self.texts[item]) for item in items]

    def encode(self, items: Sequence[int], advance: Advance) -> Chunk:
        self.encoded.extend(self.item_ids[item] for item in items)
        texts = [self.texts[item] for item in items]
        letters = [letter for text in texts for letter in text if letter != "-"]
        rounding = np.float32(1e-6 * digest_number(texts))
        missing: list[Missing] = []
        for place, (item, text) in enumerate(zip(items, texts, strict=True)):
            missing += [(place, f"{self.item_ids[item]}.png", "broken")] * text.count("-")
            missing += [(place, None, "nothing")] * (not text)
        return Chunk(
            np.array([len(text.replace("-", "")) for text in texts], np.int64),
            np.stack([vector(letter) + rounding for letter in letters]) if letters else no_vectors(),
            [f"{letter}.png" for letter in letters],
            missing,
        )


class Interrupted(Letters):
    """Stops after `after` chunks, as Ctrl-C does."""

    after = 0

    def encode(self, items: Sequence[int], advance: Advance) -> Chunk:
        if self.after == 0:
            raise KeyboardInterrupt
        self.after -= 1
        return super().encode(items, advance)


class Refusing(Letters):
    def check(self, chunk: Chunk, items: Sequence[int]) -> None:
        if chunk.missing and items[0] >= 64:
            raise InputError(f"item {items[0]} and more")


def build(
    folder: Path, catalogue: Catalogue, encoded: list[str] | None = None, merge: bool = False, **manifest: str
) -> Features:
    return StoreBuilder(Letters(folder, catalogue, encoded, **manifest)).build(merge)


def build_shard(
    folder: Path, catalogue: Catalogue, number: int, count: int, encoded: list[str] | None = None
) -> Letters:
    extractor = Letters(folder, catalogue, encoded)
    StoreBuilder(extractor).build_shard(Shard(number, count))
    return extractor


def interrupt(folder: Path, catalogue: Catalogue, after: int) -> None:
    extractor = Interrupted(folder, catalogue)
    extractor.after = after
    with pytest.raises(KeyboardInterrupt):
        StoreBuilder(extractor).build()


def digest_number(value: object) -> float:
    return int(json_digest(value)[:4], 16) / 16**4


def big(n: int = 500) -> Catalogue:
    """One to three letters, and now and then nothing, or something broken."""
    texts = [f"{i}".translate(str.maketrans("0123456789", "abcdefghij")) for i in range(n)]
    return {f"i{i}": text * (i % 40 > 0) + "-" * (i % 7 == 3) for i, text in enumerate(texts)}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_holds(features: Features, catalogue: Catalogue, folder: Path) -> None:
    """The store says of every item what a plain loop over the catalogue says."""
    assert list(features.item_ids) == list(catalogue)
    texts = list(catalogue.values())
    assert np.diff(features.offsets).tolist() == [len(text.replace("-", "")) for text in texts]
    letters = [letter for text in texts for letter in text if letter != "-"]
    if letters:
        assert np.allclose(features.values, [vector(letter) for letter in letters], atol=1e-5)
    table = read_rows(folder)
    assert (table["image"].to_list() if table is not None else []) == [f"{letter}.png" for letter in letters]
    expected = [
        (item, item_id)
        for item, (item_id, text) in enumerate(catalogue.items())
        for _ in range(text.count("-") + (not text))
    ]
    assert read_missing(folder).select("item", "item_id").rows() == expected
    assert read_contents(folder) == [json_digest(text) for text in texts]


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 5000, 20_000])
def test_chunks_are_the_catalogue_in_order(n: int) -> None:
    cut = chunk_ranges(n)
    assert [item for items in cut for item in items] == list(range(n))
    assert all(len(items) == len(cut[0]) for items in cut[:-1])
    assert all(len(items) <= 512 for items in cut)


def test_a_first_extraction_holds_what_was_encoded(tmp_path: Path) -> None:
    assert_holds(build(tmp_path / "v", big()), big(), tmp_path / "v")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".v.lock", "v"]  # chunks are removed once joined


def test_only_what_is_new_or_changed_is_encoded(tmp_path: Path) -> None:
    before = big()
    build(tmp_path / "v", before)
    changed = {**before, "i7": "xyz", "new": "abq-"}
    encoded: list[str] = []
    assert_holds(build(tmp_path / "v", changed, encoded), changed, tmp_path / "v")
    assert encoded == ["i7", "new"]


def test_items_removed_or_in_another_order_need_no_encoder(tmp_path: Path) -> None:
    before = big()
    build(tmp_path / "v", before)
    items = list(before.items())[50:]
    random.Random(0).shuffle(items)
    encoded: list[str] = []
    assert_holds(build(tmp_path / "v", dict(items), encoded), dict(items), tmp_path / "v")
    renamed = {f"renamed {name}": text for name, text in items}
    build(tmp_path / "v", renamed, encoded)
    assert list(load_features(tmp_path / "v").item_ids) == list(renamed)
    assert encoded == []


def test_what_has_not_changed_is_not_written_again(tmp_path: Path) -> None:
    build(tmp_path / "v", big())
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "v").iterdir()}
    encoded: list[str] = []
    build(tmp_path / "v", big(), encoded)
    assert encoded == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "v").iterdir()} == times


catalogues = st.dictionaries(
    st.text("pqrs", min_size=1, max_size=3), st.text("abc-", max_size=3), min_size=1, max_size=80
)


@given(st.lists(catalogues, min_size=2, max_size=4))
def test_after_any_changes_the_store_is_that_of_the_last_catalogue(
    tmp_path_factory: pytest.TempPathFactory, history: list[Catalogue]
) -> None:
    folder = tmp_path_factory.mktemp("store") / "v"
    known: set[str] = set()
    for catalogue in history:
        encoded: list[str] = []
        assert_holds(build(folder, catalogue, encoded), catalogue, folder)
        assert not known & {catalogue[name] for name in encoded}
        known = set(catalogue.values())


@pytest.mark.parametrize("about", [{"encoder": "other"}, {"settings": "other"}])
def test_a_store_of_another_encoder_or_other_settings_is_never_used(
    tmp_path: Path, log: pytest.LogCaptureFixture, about: dict[str, str]
) -> None:
    build(tmp_path / "v", big(), settings="these")
    encoded: list[str] = []
    build(tmp_path / "v", big(), encoded, **{"settings": "these", **about})
    assert len(encoded) == 500
    assert f"{next(iter(about))} changed since this was extracted; extracting again" in log.text


@pytest.mark.parametrize("after", [0, 1, 7, 15])
def test_an_interrupted_extraction_resumes_and_gives_the_same_bytes(
    tmp_path: Path, log: pytest.LogCaptureFixture, after: int
) -> None:
    build(tmp_path / "undisturbed", big())
    interrupt(tmp_path / "v", big(), after)
    assert f"v: {after} of 16 chunks are finished and kept" in log.text
    assert len(list((tmp_path / "v.chunks").glob("*.safetensors")) if after else []) == after
    encoded: list[str] = []
    build(tmp_path / "v", big(), encoded)
    assert len(encoded) == 500 - 32 * after
    assert files(tmp_path / "v") == files(tmp_path / "undisturbed")


def test_a_damaged_chunk_is_encoded_again(tmp_path: Path) -> None:
    build(tmp_path / "undisturbed", big())
    interrupt(tmp_path / "v", big(), 3)
    first, second, third = sorted((tmp_path / "v.chunks").glob("*.safetensors"))
    first.write_bytes(b"")
    second.write_bytes(second.read_bytes()[:-1])
    third.write_bytes(b"\xff" * 100)
    encoded: list[str] = []
    build(tmp_path / "v", big(), encoded)
    assert len(encoded) == 500
    assert files(tmp_path / "v") == files(tmp_path / "undisturbed")


def test_chunks_that_have_exchanged_their_names_are_not_joined(tmp_path: Path) -> None:
    build(tmp_path / "undisturbed", big())
    build_shard(tmp_path / "v", big(), 1, 1)
    first, second, *_ = (tmp_path / "v.chunks").glob("*.safetensors")
    (tmp_path / "other").write_bytes(first.read_bytes())
    second.replace(first)
    (tmp_path / "other").replace(second)
    with pytest.raises(InputError, match="missing: 1"):
        build(tmp_path / "v", big(), merge=True)
    build_shard(tmp_path / "v", big(), 1, 1)
    build(tmp_path / "v", big(), merge=True)
    assert files(tmp_path / "v") == files(tmp_path / "undisturbed")


def test_what_a_kill_left_beside_a_finished_store_is_removed(tmp_path: Path) -> None:
    build(tmp_path / "v", big())
    before = files(tmp_path / "v")
    for left in ("v.chunks", ".v.old", ".v.new"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "file").touch()
        encoded: list[str] = []
        build(tmp_path / "v", big(), encoded)
        assert encoded == []
        assert sorted(path.name for path in tmp_path.iterdir()) == [".v.lock", "v"]
        assert files(tmp_path / "v") == before


def test_chunks_of_other_settings_or_content_are_ignored(tmp_path: Path) -> None:
    interrupt(tmp_path / "v", big(), 7)
    encoded: list[str] = []
    changed = {**big(), "i5": "xyz"}
    assert_holds(build(tmp_path / "v", changed, encoded, settings="others"), changed, tmp_path / "v")
    assert len(encoded) == 500


def test_shards_in_any_order_give_the_store_of_one_process_byte_for_byte(tmp_path: Path) -> None:
    build(tmp_path / "alone", big())
    encoded: list[str] = []
    for number in (3, 1, 2):
        build_shard(tmp_path / "v", big(), number, 3, encoded)
    assert sorted(encoded) == sorted(big())
    build(tmp_path / "v", big(), encoded, merge=True)
    assert len(encoded) == 500
    assert files(tmp_path / "v") == files(tmp_path / "alone")


def test_a_shard_reads_the_content_of_its_own_items_alone(tmp_path: Path) -> None:
    extractor = build_shard(tmp_path / "v", big(), 2, 4)
    assert extractor.hashed == [item for items in chunk_ranges(500)[1::4] for item in items]


def test_each_chunk_is_hashed_once_and_just_before_it_is_encoded(tmp_path: Path) -> None:
    """So that an extractor can read a file once for both."""
    build(tmp_path / "v", big())
    seen: list[tuple[int, int]] = []

    class Watched(Letters):
        def encode(self, items: Sequence[int], advance: Advance) -> Chunk:
            seen.append((items[0], self.hashed[-1]))
            return super().encode(items, advance)

    for manifest in ({}, {"settings": "others"}):  # two items have changed; all are encoded
        extractor = Watched(tmp_path / "v", {**big(), "i100": "xyz", "i300": "zyx"}, **manifest)
        StoreBuilder(extractor).build()
        assert extractor.hashed == list(range(500))
    assert [last // 32 for _, last in seen[2:]] == [first // 32 for first, _ in seen[2:]]
    assert [(first, last // 32) for first, last in seen[:2]] == [(100, 3), (300, 9)]


def test_shards_of_several_machines_are_copied_together(tmp_path: Path) -> None:
    build(tmp_path / "alone", big())
    for number in (1, 2):
        build_shard(tmp_path / str(number) / "v", big(), number, 2)
        shutil.copytree(tmp_path / str(number), tmp_path / "all", dirs_exist_ok=True)
    build(tmp_path / "all" / "v", big(), merge=True)
    assert files(tmp_path / "all" / "v") == files(tmp_path / "alone")


def test_missing_shards_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are no shards here"):
        build(tmp_path / "v", big(), merge=True)
    for number in (1, 3):
        build_shard(tmp_path / "v", big(), number, 4)
    with pytest.raises(InputError, match=r"of 4 shards these are missing: 2, 4; `msm4sr extract \.\.\. --shard 2/4`"):
        build(tmp_path / "v", big(), merge=True)
    build_shard(tmp_path / "v", big(), 2, 4)
    build_shard(tmp_path / "v", big(), 4, 4)
    with pytest.raises(InputError, match=r"these are missing: 1 \(1 of other items or settings\)"):
        build(tmp_path / "v", {**big(), "i1": "changed"}, merge=True)
    assert_holds(build(tmp_path / "v", big(), merge=True), big(), tmp_path / "v")


def test_a_shard_without_items_counts_as_one(tmp_path: Path) -> None:
    small = big(40)  # two chunks
    for number in (1, 2):
        build_shard(tmp_path / "v", small, number, 3)
    with pytest.raises(InputError, match="these are missing: 3"):
        build(tmp_path / "v", small, merge=True)
    build_shard(tmp_path / "v", small, 3, 3)
    build(tmp_path / "v", small, merge=True)


def test_shards_of_a_store_that_is_there_encode_what_is_new(tmp_path: Path) -> None:
    build(tmp_path / "v", big())
    shutil.copytree(tmp_path / "v", tmp_path / "alone")
    changed = {**big(), "i3": "xy", "i400": "z", "new": "a"}
    build(tmp_path / "alone", changed)
    encoded: list[str] = []
    for number in (1, 2):
        build_shard(tmp_path / "v", changed, number, 2, encoded)
    assert sorted(encoded) == ["i3", "i400", "new"]
    build(tmp_path / "v", changed, merge=True)
    assert files(tmp_path / "v") == files(tmp_path / "alone")


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "a/b", "-1/3", "1/2/3", ""])
def test_an_invalid_shard_is_an_error(text: str) -> None:
    with pytest.raises(InputError, match="from 1/16 to 16/16"):
        Shard.parse(text)
    assert Shard.parse("3/16") == Shard(3, 16)


def test_a_check_may_stop_the_work_and_what_was_encoded_stays(tmp_path: Path) -> None:
    builder = StoreBuilder(Refusing(tmp_path / "v", big()))
    with pytest.raises(InputError, match="item 64"):
        builder.build()
    assert len(list(builder.chunk_folder.glob("*.safetensors"))) == 3
    encoded: list[str] = []
    build(tmp_path / "v", big(), encoded)
    assert len(encoded) == 500 - 3 * 32


def test_memory_holds_one_chunk_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are written one by one, each of one chunk, and the copied ones are mapped again each time."""
    sizes: list[int] = []
    write_store = store_builder.write_store

    def measured(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        for block in blocks:
            sizes.append(len(block))
            yield block

    def watched(
        folder: Path, manifest: dict[str, object], tables: StoreTables, blocks: Iterator[np.ndarray], dim: int
    ) -> None:
        write_store(folder, manifest, tables, measured(blocks), dim)

    monkeypatch.setattr(store_builder, "write_store", watched)
    one_each = {f"i{i}": chr(97 + i % 26) for i in range(2000)}
    build(tmp_path / "v", one_each)
    build(tmp_path / "v", {**one_each, "i9": "xyz"})
    longest = max(map(len, chunk_ranges(2000)))
    assert len(sizes) == 2 * len(chunk_ranges(2000))
    assert max(sizes) <= longest + 2
