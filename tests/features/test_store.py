from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from msm4sr.errors import InputError
from msm4sr.features import store
from msm4sr.features.store import Features, load_features, read_manifest, save_features


def example(words: bool = False) -> Features:
    return Features(
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.array([0, 2, 2, 3]),
        ["a", "b", "ü"],
        [[["x", "y"], ["z"]], [], [["ü"]]] if words else None,
    )


@pytest.mark.parametrize("words", [False, True])
def test_what_is_saved_is_loaded(tmp_path: Path, words: bool) -> None:
    features = example(words)
    save_features(features, tmp_path / "out" / "text", {"settings": {"n": 1}})
    loaded = load_features(tmp_path / "out" / "text")
    assert np.array_equal(loaded.vectors, features.vectors)
    assert np.array_equal(loaded.offsets, features.offsets)
    assert (loaded.item_ids, loaded.words) == (features.item_ids, features.words)
    manifest = read_manifest(tmp_path / "out" / "text")
    assert manifest is not None
    assert (manifest["settings"], manifest["rows"], manifest["items_with_rows"]) == ({"n": 1}, 3, 2)


def test_vectors_stay_on_disk(tmp_path: Path) -> None:
    save_features(example(), tmp_path / "text")
    assert isinstance(load_features(tmp_path / "text").vectors, np.memmap)


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    save_features(example(), tmp_path / "text")
    assert np.array_equal(load_file(tmp_path / "text" / "vectors.safetensors")["vectors"], example().vectors)


def test_no_rows_at_all_can_be_stored(tmp_path: Path) -> None:
    save_features(Features(np.zeros((0, 0), np.float32), np.zeros(3, np.int64), ["a", "b"]), tmp_path / "visual")
    assert load_features(tmp_path / "visual").vectors.shape == (0, 0)


def test_saving_again_replaces_everything_and_leaves_nothing_behind(tmp_path: Path) -> None:
    save_features(example(words=True), tmp_path / "text")
    save_features(example(), tmp_path / "text")
    assert load_features(tmp_path / "text").words is None
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_a_write_that_fails_leaves_the_old_features_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_features(example(), tmp_path / "text", {"version": "old"})

    def full_disk(path: Path, value: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(store, "_write_json", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_features(example(), tmp_path / "text", {"version": "new"})
    manifest = read_manifest(tmp_path / "text")
    assert manifest is not None
    assert manifest["version"] == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_damage_is_an_input_error_that_names_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    with pytest.raises(InputError, match="no extracted features"):
        load_features(folder)
    for name, content in (
        ("vectors.safetensors", None),
        ("vectors.safetensors", b""),
        ("vectors.safetensors", b"\xff" * 50),
        ("vectors.safetensors", (8).to_bytes(8, "little") + b"{}      "),
        ("manifest.json", b"{"),
        ("manifest.json", b'{"format": 99}'),
        ("words.json", b"{"),
    ):
        save_features(example(words=True), folder)
        if content is None:
            whole = (folder / name).read_bytes()
            (folder / name).write_bytes(whole[:-4])
        else:
            (folder / name).write_bytes(content)
        with pytest.raises(InputError, match="extract again") as caught:
            load_features(folder)
        assert str(folder) in str(caught.value)


@pytest.mark.parametrize("offsets", [[0, 2], [0, 2, 2, 4], [1, 2, 2, 3], [0, 2, 1, 3]])
def test_offsets_that_do_not_fit_are_refused(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="offsets"):
        Features(np.zeros((3, 4), np.float32), np.array(offsets), ["a", "b", "c"])


def test_manifest_is_readable_json_with_the_ids_in_row_order(tmp_path: Path) -> None:
    save_features(example(), tmp_path / "text")
    assert json.loads((tmp_path / "text" / "manifest.json").read_text())["item_ids"] == ["a", "b", "ü"]


def test_the_store_needs_none_of_the_heavy_packages() -> None:
    code = (
        "import sys, msm4sr.features.store, msm4sr.features.extract;"
        "heavy = ('torch', 'transformers', 'sentence_transformers', 'sklearn');"
        "print([m for m in heavy if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
