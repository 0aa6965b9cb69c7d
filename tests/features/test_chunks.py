"""The store made part by part, with an encoder that gives other digits in other company, as real ones do."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msm4sr.errors import InputError
from msm4sr.features import chunks as parts
from msm4sr.features.chunks import Part, Shard, Work, digest, make_shard, make_store, stretches
from msm4sr.features.progress import Advance
from msm4sr.features.store import Features, load_features, read_contents, read_missing, read_rows

Catalogue = dict[str, str]
"""Item id to content: a letter a row, `-` a row that is broken."""
DIM = 3


@pytest.fixture(scope="module", autouse=True)
def short_stretches() -> Iterator[None]:
    """Of 32 items, so that a small catalogue has several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "FEWEST_ITEMS", 32)
        yield


def vector(letter: str) -> np.ndarray:
    return np.random.default_rng(ord(letter)).random(DIM, np.float32)


def work(folder: Path, catalogue: Catalogue, encoded: list[str] | None = None, **about: str) -> Work:
    """What is to be done for a catalogue; `encoded` hears which items go through the encoder."""
    ids, texts = list(catalogue), list(catalogue.values())

    def encode(items: Sequence[int], advance: Advance) -> Part:
        if encoded is not None:
            encoded.extend(ids[item] for item in items)
        rows = [(item, letter) for item in items for letter in texts[item] if letter != "-"]
        company = 1e-6 * digest_number([texts[item] for item in items])
        missing: list[tuple[int, str | None, str]] = []
        for place, item in enumerate(items):
            missing += [(place, f"{ids[item]}.png", "broken")] * texts[item].count("-")
            missing += [(place, None, "nothing")] * (not texts[item])
        return Part(
            np.array([len(texts[item].replace("-", "")) for item in items], np.int64),
            np.stack([vector(letter) + np.float32(company) for _, letter in rows]) if rows else np.zeros((0, 0)),
            [f"{letter}.png" for _, letter in rows],
            missing,
        )

    return Work(
        folder,
        {"modality": "visual", "encoder": "stub", **about},
        ids,
        lambda stretch: [digest(texts[item]) for item in stretch],
        encode,
        "encoding",
    )


def digest_number(value: object) -> float:
    return int(digest(value)[:4], 16) / 16**4


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
        assert np.allclose(features.vectors, [vector(letter) for letter in letters], atol=1e-5)
    table = read_rows(folder)
    assert (table["image"].to_list() if table is not None else []) == [f"{letter}.png" for letter in letters]
    expected = [
        (item, item_id)
        for item, (item_id, text) in enumerate(catalogue.items())
        for _ in range(text.count("-") + (not text))
    ]
    assert read_missing(folder).select("item", "item_id").rows() == expected
    assert read_contents(folder) == [digest(text) for text in texts]


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 5000, 20_000])
def test_stretches_are_the_catalogue_in_order(n: int) -> None:
    cut = stretches(n)
    assert [item for stretch in cut for item in stretch] == list(range(n))
    assert all(len(stretch) == len(cut[0]) for stretch in cut[:-1])
    assert all(len(stretch) <= 512 for stretch in cut)


def test_a_first_extraction_holds_what_was_encoded(tmp_path: Path) -> None:
    assert_holds(make_store(work(tmp_path / "v", big())), big(), tmp_path / "v")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".v.lock", "v"]  # parts are gone once joined


def test_only_what_is_new_or_changed_is_encoded(tmp_path: Path) -> None:
    before = big()
    make_store(work(tmp_path / "v", before))
    changed = {**before, "i7": "xyz", "new": "abq-"}
    encoded: list[str] = []
    assert_holds(make_store(work(tmp_path / "v", changed, encoded)), changed, tmp_path / "v")
    assert encoded == ["i7", "new"]


def test_items_taken_out_or_in_another_order_need_no_encoder(tmp_path: Path) -> None:
    before = big()
    make_store(work(tmp_path / "v", before))
    items = list(before.items())[50:]
    random.Random(0).shuffle(items)
    encoded: list[str] = []
    assert_holds(make_store(work(tmp_path / "v", dict(items), encoded)), dict(items), tmp_path / "v")
    renamed = {f"renamed {name}": text for name, text in items}
    make_store(work(tmp_path / "v", renamed, encoded))
    assert list(load_features(tmp_path / "v").item_ids) == list(renamed)
    assert encoded == []


def test_what_has_not_changed_is_not_written_again(tmp_path: Path) -> None:
    make_store(work(tmp_path / "v", big()))
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "v").iterdir()}
    encoded: list[str] = []
    make_store(work(tmp_path / "v", big(), encoded))
    assert encoded == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "v").iterdir()} == times


catalogues = st.dictionaries(
    st.text("pqrs", min_size=1, max_size=3), st.text("abc-", max_size=3), min_size=1, max_size=80
)


@settings(max_examples=25, deadline=None)
@given(st.lists(catalogues, min_size=2, max_size=4))
def test_after_any_changes_the_store_is_that_of_the_last_catalogue(
    tmp_path_factory: pytest.TempPathFactory, history: list[Catalogue]
) -> None:
    folder = tmp_path_factory.mktemp("store") / "v"
    known: set[str] = set()
    for catalogue in history:
        encoded: list[str] = []
        assert_holds(make_store(work(folder, catalogue, encoded)), catalogue, folder)
        assert not known & {catalogue[name] for name in encoded}
        known = set(catalogue.values())


@pytest.mark.parametrize("about", [{"encoder": "other"}, {"settings": "other"}])
def test_a_store_made_in_another_way_is_never_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], about: dict[str, str]
) -> None:
    make_store(work(tmp_path / "v", big(), settings="these"))
    encoded: list[str] = []
    make_store(work(tmp_path / "v", big(), encoded, **{"settings": "these", **about}))
    assert len(encoded) == 500
    assert f"{next(iter(about))} changed since this was extracted; extracting again" in capsys.readouterr().err


def interrupt(todo: Work, after: int) -> None:
    """Run until `after` parts are there, and stop as Ctrl-C does."""
    made = 0

    def encode(items: Sequence[int], advance: Advance) -> Part:
        nonlocal made
        if made == after:
            raise KeyboardInterrupt
        made += 1
        return todo.encode(items, advance)

    with pytest.raises(KeyboardInterrupt):
        make_store(Work(todo.folder, todo.about, todo.item_ids, todo.contents, encode, todo.title))


@pytest.mark.parametrize("after", [0, 1, 7, 15])
def test_an_interrupted_extraction_goes_on_and_gives_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], after: int
) -> None:
    make_store(work(tmp_path / "undisturbed", big()))
    interrupt(work(tmp_path / "v", big()), after)
    assert f"v: {after} of 16 parts are finished and kept" in capsys.readouterr().err
    assert len(list((tmp_path / "v.parts").glob("*.safetensors")) if after else []) == after
    encoded: list[str] = []
    make_store(work(tmp_path / "v", big(), encoded))
    assert len(encoded) == 500 - 32 * after
    assert files(tmp_path / "v") == files(tmp_path / "undisturbed")


def test_a_part_that_is_damaged_is_encoded_again(tmp_path: Path) -> None:
    make_store(work(tmp_path / "undisturbed", big()))
    interrupt(work(tmp_path / "v", big()), 3)
    first, second, third = sorted((tmp_path / "v.parts").glob("*.safetensors"))
    first.write_bytes(b"")
    second.write_bytes(second.read_bytes()[:-1])
    third.write_bytes(b"\xff" * 100)
    encoded: list[str] = []
    make_store(work(tmp_path / "v", big(), encoded))
    assert len(encoded) == 500
    assert files(tmp_path / "v") == files(tmp_path / "undisturbed")


def test_what_a_kill_left_beside_a_finished_store_is_removed(tmp_path: Path) -> None:
    make_store(work(tmp_path / "v", big()))
    before = files(tmp_path / "v")
    for left in ("v.parts", ".v.old", ".v.new"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "file").touch()
        encoded: list[str] = []
        make_store(work(tmp_path / "v", big(), encoded))
        assert encoded == []
        assert sorted(path.name for path in tmp_path.iterdir()) == [".v.lock", "v"]
        assert files(tmp_path / "v") == before


def test_parts_of_other_settings_or_content_are_left_alone(tmp_path: Path) -> None:
    interrupt(work(tmp_path / "v", big()), 7)
    encoded: list[str] = []
    changed = {**big(), "i5": "xyz"}
    assert_holds(make_store(work(tmp_path / "v", changed, encoded, settings="others")), changed, tmp_path / "v")
    assert len(encoded) == 500


def test_shards_in_any_order_give_the_store_of_one_process_byte_for_byte(tmp_path: Path) -> None:
    make_store(work(tmp_path / "alone", big()))
    encoded: list[str] = []
    for number in (3, 1, 2):
        make_shard(work(tmp_path / "v", big(), encoded), Shard(number, 3))
    assert sorted(encoded) == sorted(big())
    make_store(work(tmp_path / "v", big(), encoded), merge=True)
    assert len(encoded) == 500
    assert files(tmp_path / "v") == files(tmp_path / "alone")


def test_a_shard_reads_the_content_of_its_own_items_alone(tmp_path: Path) -> None:
    seen: list[int] = []
    todo = work(tmp_path / "v", big())

    def contents(stretch: range) -> list[str]:
        seen.extend(stretch)
        return todo.contents(stretch)

    make_shard(Work(todo.folder, todo.about, todo.item_ids, contents, todo.encode, todo.title), Shard(2, 4))
    assert seen == [item for stretch in stretches(500)[1::4] for item in stretch]


def test_shards_of_several_machines_are_copied_together(tmp_path: Path) -> None:
    make_store(work(tmp_path / "alone", big()))
    for number in (1, 2):
        make_shard(work(tmp_path / str(number) / "v", big()), Shard(number, 2))
        shutil.copytree(tmp_path / str(number), tmp_path / "all", dirs_exist_ok=True)
    make_store(work(tmp_path / "all" / "v", big()), merge=True)
    assert files(tmp_path / "all" / "v") == files(tmp_path / "alone")


def test_shards_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are no shards here"):
        make_store(work(tmp_path / "v", big()), merge=True)
    for number in (1, 3):
        make_shard(work(tmp_path / "v", big()), Shard(number, 4))
    with pytest.raises(InputError, match=r"of 4 shards these are missing: 2, 4; `msm4sr extract \.\.\. --shard 2/4`"):
        make_store(work(tmp_path / "v", big()), merge=True)
    make_shard(work(tmp_path / "v", big()), Shard(2, 4))
    make_shard(work(tmp_path / "v", big()), Shard(4, 4))
    with pytest.raises(InputError, match=r"these are missing: 1 \(1 of other items or settings\)"):
        make_store(work(tmp_path / "v", {**big(), "i1": "changed"}), merge=True)
    assert_holds(make_store(work(tmp_path / "v", big()), merge=True), big(), tmp_path / "v")


def test_a_shard_without_items_counts_as_one(tmp_path: Path) -> None:
    small = big(40)  # two stretches
    for number in (1, 2):
        make_shard(work(tmp_path / "v", small), Shard(number, 3))
    with pytest.raises(InputError, match="these are missing: 3"):
        make_store(work(tmp_path / "v", small), merge=True)
    make_shard(work(tmp_path / "v", small), Shard(3, 3))
    make_store(work(tmp_path / "v", small), merge=True)


def test_shards_of_a_store_that_is_there_encode_what_is_new(tmp_path: Path) -> None:
    make_store(work(tmp_path / "v", big()))
    shutil.copytree(tmp_path / "v", tmp_path / "alone")
    changed = {**big(), "i3": "xy", "i400": "z", "new": "a"}
    make_store(work(tmp_path / "alone", changed))
    encoded: list[str] = []
    for number in (1, 2):
        make_shard(work(tmp_path / "v", changed, encoded), Shard(number, 2))
    assert sorted(encoded) == ["i3", "i400", "new"]
    make_store(work(tmp_path / "v", changed), merge=True)
    assert files(tmp_path / "v") == files(tmp_path / "alone")


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "a/b", "-1/3", "1/2/3", ""])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="from 1/16 to 16/16"):
        Shard.parse(text)
    assert Shard.parse("3/16") == Shard(3, 16)


def test_a_check_may_stop_the_work_and_what_was_encoded_stays(tmp_path: Path) -> None:
    todo = work(tmp_path / "v", big())

    def refuse(part: Part, items: Sequence[int]) -> None:
        if part.missing and items[0] >= 64:
            raise InputError(f"item {items[0]} and more")

    with pytest.raises(InputError, match="item 64"):
        make_store(Work(todo.folder, todo.about, todo.item_ids, todo.contents, todo.encode, todo.title, refuse))
    assert len(list(todo.parts.glob("*.safetensors"))) == 3
    encoded: list[str] = []
    make_store(work(tmp_path / "v", big(), encoded))
    assert len(encoded) == 500 - 3 * 32


def test_memory_holds_one_stretch_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are asked for one by one, each of one stretch, and the taken-over ones are mapped anew each time."""
    sizes: list[int] = []
    write_store = parts.write_store

    def watched(*arguments: Any) -> None:
        *first, blocks, missing, rows, dim = arguments

        def measured() -> Iterator[np.ndarray]:
            for block in blocks:
                sizes.append(len(block))
                yield block

        write_store(*first, measured(), missing, rows, dim)

    monkeypatch.setattr(parts, "write_store", watched)
    one_each = {f"i{i}": chr(97 + i % 26) for i in range(2000)}
    make_store(work(tmp_path / "v", one_each))
    make_store(work(tmp_path / "v", {**one_each, "i9": "xyz"}))
    longest = max(map(len, stretches(2000)))
    assert len(sizes) == 2 * len(stretches(2000))
    assert max(sizes) <= longest + 2
