from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Timer

import numpy as np
import polars as pl
import pytest

from msm4sr.errors import InputError
from msm4sr.features import store
from msm4sr.features.store import (
    MISSING,
    Features,
    StoreTables,
    find_stores,
    load_features,
    locked_store,
    read_contents,
    read_manifest,
    read_missing,
    read_rows,
    recover,
    write_store,
)

IDS = ["a", "b", "ü"]
VECTORS = np.arange(12, dtype=np.float32).reshape(3, 4)
NOTHING_MISSING = pl.DataFrame(schema=MISSING)
ROWS = pl.DataFrame({"image": ["1.png", "2.png", "3.png"], "words": [["x", "y"], ["z"], ["ü"]]})


def write(folder: Path, rows: pl.DataFrame | None = None, **manifest: object) -> None:
    """Three items, the second without a row; in two blocks."""
    missing = pl.DataFrame([(1, "b", None, "no image")], schema=MISSING, orient="row")
    tables = StoreTables(IDS, ["h1", "h2", "h3"], np.array([2, 0, 1]), missing, rows)
    write_store(folder, manifest, tables, [VECTORS[:1], VECTORS[1:]], dim=4)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "text"
    write(folder, ROWS, settings={"n": 1})
    loaded = load_features(folder)
    assert np.array_equal(loaded.values, VECTORS)
    assert loaded.offsets.tolist() == [0, 2, 2, 3]
    assert (loaded.item_ids, read_contents(folder)) == (IDS, ["h1", "h2", "h3"])
    rows = read_rows(folder)
    assert rows is not None
    assert rows.equals(ROWS)
    assert read_missing(folder).rows() == [(1, "b", None, "no image")]
    manifest = read_manifest(folder)
    assert manifest is not None
    assert (manifest["settings"], manifest["rows"], manifest["items_with_rows"]) == ({"n": 1}, 3, 2)
    assert (manifest["missing"], manifest["broken"]) == ({"no image": 1}, {})
    assert find_stores(tmp_path / "out") == [folder]


def test_vectors_stay_on_disk(tmp_path: Path) -> None:
    write(tmp_path / "text")
    vectors = load_features(tmp_path / "text").values
    assert isinstance(vectors, np.memmap)
    assert vectors.ctypes.data % 64 == 0  # as memory that torch makes


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    write(tmp_path / "text")
    loaded = load_file(tmp_path / "text" / "vectors.safetensors")
    assert np.array_equal(loaded["vectors"], VECTORS)
    assert loaded["offsets"].tolist() == [0, 2, 2, 3]


def test_no_rows_at_all_can_be_stored(tmp_path: Path) -> None:
    write_store(tmp_path / "visual", {}, StoreTables(["a", "b"], ["", ""], np.zeros(2, np.int64), NOTHING_MISSING), [])
    assert load_features(tmp_path / "visual").values.shape == (0, 0)


def test_writing_again_replaces_everything_and_leaves_nothing_behind(tmp_path: Path) -> None:
    write(tmp_path / "text", ROWS)
    write(tmp_path / "text")
    assert read_rows(tmp_path / "text") is None
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


@pytest.mark.parametrize("target", ["elsewhere", "nothing"])
def test_a_link_in_place_of_a_store_is_replaced_and_its_target_kept(tmp_path: Path, target: str) -> None:
    (tmp_path / "features").mkdir()
    write(tmp_path / "elsewhere", ROWS)
    (tmp_path / "features" / "text").symlink_to(tmp_path / target)
    write(tmp_path / "features" / "text")
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["text"]
    assert read_rows(tmp_path / "features" / "text") is None
    assert read_rows(tmp_path / "elsewhere") is not None


def test_a_new_store_is_on_disk_before_the_old_one_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, synced = tmp_path / "text", []
    write(folder, settings=1)

    def fsync(descriptor: int) -> None:
        manifest = read_manifest(folder)
        beside = sorted(path.name for path in tmp_path.iterdir())
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), manifest and manifest["settings"], beside))

    monkeypatch.setattr(os, "fsync", fsync)
    write(folder, settings=2)
    assert synced[-1] == (str(tmp_path), 2, [".text.old", "text"])


def test_a_write_that_fails_leaves_the_old_store_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "text", version="old")

    def full_disk(path: Path, value: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(store, "write_json", full_disk)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path / "text", version="new")
    manifest = read_manifest(tmp_path / "text")
    assert manifest is not None
    assert manifest["version"] == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_an_interrupted_replacement_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one moment without a store at its place: killed between two renames."""
    folder = tmp_path / "text"
    write(folder, version="old")
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if target == folder:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write(folder, version="new")
    monkeypatch.undo()
    assert not folder.exists()
    recover(folder)
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest["version"] == "old"
    recover(folder)
    write(folder, version="new")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


@pytest.mark.parametrize("blocks", [[VECTORS[:2]], [VECTORS, VECTORS], [VECTORS[:, :3]]])
def test_blocks_that_do_not_fit_are_refused(tmp_path: Path, blocks: list[np.ndarray]) -> None:
    tables = StoreTables(IDS, IDS, np.ones(3, np.int64), NOTHING_MISSING)
    with pytest.raises(ValueError, match=r"rows|4-d"):
        write_store(tmp_path / "x", {}, tables, blocks, dim=4)
    assert list(tmp_path.iterdir()) == []


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
        ("items.parquet", b"{"),
        ("items.parquet", None),
    ):
        write(folder)
        if content is None:
            complete = (folder / name).read_bytes()
            (folder / name).write_bytes(complete[:-4])
        else:
            (folder / name).write_bytes(content)
        with pytest.raises(InputError, match="extract again") as caught:
            load_features(folder)
        assert str(folder) in str(caught.value)
    for name, read in (
        ("rows.parquet", read_rows),
        ("missing.parquet", read_missing),
        ("items.parquet", read_contents),
    ):
        write(folder, ROWS)
        (folder / name).write_bytes(b"PAR1")
        with pytest.raises(InputError, match="extract again"):
            read(folder)


@pytest.mark.parametrize("offsets", [[0, 2], [0, 2, 2, 4], [1, 2, 2, 3], [0, 2, 1, 3]])
def test_offsets_that_do_not_fit_are_refused(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="offsets"):
        Features(np.zeros((3, 4), np.float32), np.array(offsets), ["a", "b", "c"])


def test_the_manifest_is_json_and_the_ids_are_in_row_order(tmp_path: Path) -> None:
    write(tmp_path / "text")
    assert json.loads((tmp_path / "text" / "manifest.json").read_text())["items"] == 3
    assert pl.read_parquet(tmp_path / "text" / "items.parquet")["item_id"].to_list() == IDS


def test_a_lock_keeps_others_out_and_dies_with_its_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    code = (
        "import sys, time; from pathlib import Path; from msm4sr.features.store import locked_store\n"
        "with locked_store(Path(sys.argv[1])): print('in', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path / "text"], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "in\n"
    caplog.set_level(logging.INFO, "msm4sr")
    Timer(0.5, holder.kill).start()
    with locked_store(tmp_path / "text"):
        assert holder.wait() == -signal.SIGKILL
        assert caplog.messages == [f"{tmp_path / 'text'}: another process is writing it; waiting"]
    with locked_store(tmp_path / "text"):
        assert len(caplog.messages) == 1


def test_the_store_needs_none_of_the_heavy_packages() -> None:
    code = (
        "import sys, msm4sr.features.store, msm4sr.features.extract;"
        "heavy = ('torch', 'transformers', 'sentence_transformers', 'sklearn');"
        "print([m for m in heavy if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
