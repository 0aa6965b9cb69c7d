from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from msm4sr.errors import InputError
from msm4sr.features import store
from msm4sr.features.chunks import no_missing
from msm4sr.features.store import (
    MISSING,
    Features,
    find_stores,
    load_features,
    locked,
    read_contents,
    read_manifest,
    read_missing,
    read_rows,
    recover,
    write_store,
)

IDS = ["a", "b", "ü"]
VECTORS = np.arange(12, dtype=np.float32).reshape(3, 4)
ROWS = pl.DataFrame({"image": ["1.png", "2.png", "3.png"], "words": [["x", "y"], ["z"], ["ü"]]})


def write(folder: Path, rows: pl.DataFrame | None = None, **manifest: object) -> None:
    """Three items, the second without a row; in two blocks."""
    missing = pl.DataFrame([(1, "b", None, "no picture")], schema=MISSING, orient="row")
    counts = np.array([2, 0, 1])
    write_store(folder, manifest, IDS, ["h1", "h2", "h3"], counts, [VECTORS[:1], VECTORS[1:]], missing, rows, dim=4)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "text"
    write(folder, ROWS, settings={"n": 1})
    loaded = load_features(folder)
    assert np.array_equal(loaded.vectors, VECTORS)
    assert loaded.offsets.tolist() == [0, 2, 2, 3]
    assert (loaded.item_ids, read_contents(folder)) == (IDS, ["h1", "h2", "h3"])
    rows = read_rows(folder)
    assert rows is not None
    assert rows.equals(ROWS)
    assert read_missing(folder).rows() == [(1, "b", None, "no picture")]
    manifest = read_manifest(folder)
    assert manifest is not None
    assert (manifest["settings"], manifest["rows"], manifest["items_with_rows"]) == ({"n": 1}, 3, 2)
    assert (manifest["missing"], manifest["broken"]) == ({"no picture": 1}, {})
    assert find_stores(tmp_path / "out") == [folder]


def test_vectors_stay_on_disk(tmp_path: Path) -> None:
    write(tmp_path / "text")
    vectors = load_features(tmp_path / "text").vectors
    assert isinstance(vectors, np.memmap)
    assert vectors.ctypes.data % 64 == 0  # as memory that torch makes


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    write(tmp_path / "text")
    loaded = load_file(tmp_path / "text" / "vectors.safetensors")
    assert np.array_equal(loaded["vectors"], VECTORS)
    assert loaded["offsets"].tolist() == [0, 2, 2, 3]


def test_no_rows_at_all_can_be_stored(tmp_path: Path) -> None:
    write_store(tmp_path / "visual", {}, ["a", "b"], ["", ""], np.zeros(2, np.int64), [], no_missing())
    assert load_features(tmp_path / "visual").vectors.shape == (0, 0)


def test_writing_again_replaces_everything_and_leaves_nothing_behind(tmp_path: Path) -> None:
    write(tmp_path / "text", ROWS)
    write(tmp_path / "text")
    assert read_rows(tmp_path / "text") is None
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_a_write_that_fails_leaves_the_old_store_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "text", version="old")

    def full_disk(path: Path, value: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(store, "_write_json", full_disk)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path / "text", version="new")
    manifest = read_manifest(tmp_path / "text")
    assert manifest is not None
    assert manifest["version"] == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_a_replacement_that_was_cut_short_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one moment at which the store is not at its place: killed between two renames."""
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
    with pytest.raises(ValueError, match=r"rows|width"):
        write_store(tmp_path / "x", {}, IDS, IDS, np.ones(3, np.int64), blocks, no_missing(), dim=4)
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
            whole = (folder / name).read_bytes()
            (folder / name).write_bytes(whole[:-4])
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


def test_manifest_is_json_and_the_ids_stand_in_row_order_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "text")
    assert json.loads((tmp_path / "text" / "manifest.json").read_text())["items"] == 3
    assert pl.read_parquet(tmp_path / "text" / "items.parquet")["item_id"].to_list() == IDS


def test_a_lock_keeps_others_out_and_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from msm4sr.features.store import locked\n"
        "with locked(Path(sys.argv[1])): print('in', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path / "text"], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "in\n"
    waited: list[float] = []

    def kill_the_holder() -> None:
        waited.append(time.monotonic())
        holder.send_signal(signal.SIGKILL)

    with locked(tmp_path / "text", kill_the_holder):
        assert len(waited) == 1
    holder.wait()
    with locked(tmp_path / "text", kill_the_holder):
        assert len(waited) == 1


def test_the_store_needs_none_of_the_heavy_packages() -> None:
    code = (
        "import sys, msm4sr.features.store, msm4sr.features.extract;"
        "heavy = ('torch', 'transformers', 'sentence_transformers', 'sklearn');"
        "print([m for m in heavy if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
