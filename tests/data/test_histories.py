"""Histories in files: mapped by every process, made again when the tables change, and the same by every way."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm4sr.data import schema
from msm4sr.data.dataset import DataSettings, load_dataset, test_targets, training_histories, validation_targets
from msm4sr.errors import InputError

Event = tuple[str, str, int]
LOG: list[Event] = [("u", item, time) for time, item in enumerate("abca")] + [
    ("v", item, time) for time, item in enumerate("cbd")
]
RECORDED = ["record.json", "complete_offsets.npy", "complete.npy", "before_validation.npy", "users.parquet"]
EVENTS = st.tuples(st.sampled_from("uvwx"), st.sampled_from("abcde"), st.integers(0, 5))


def write(folder: Path, log: list[Event]) -> Path:
    folder.mkdir(exist_ok=True)
    table = pl.DataFrame(log, ["user_id", "item_id", "timestamp"], orient="row")
    table.write_parquet(folder / "interactions.parquet")
    pl.DataFrame({"item_id": list("edcba")}).write_parquet(folder / "items.parquet")
    return folder


def slow_histories(log: list[Event], user_core: int, item_core: int) -> dict[str, str]:
    """The rules of `dataset`, with lists and counters."""
    log = sorted(dict.fromkeys(log), key=lambda event: event[2])
    users = list(dict.fromkeys(user for user, _, _ in log))
    while True:
        of_user, of_item = Counter(user for user, _, _ in log), Counter(item for _, item, _ in log)
        kept = [e for e in log if of_user[e[0]] >= max(3, user_core) and of_item[e[1]] >= item_core]
        if kept == log:
            return {user: "".join(i for u, i, _ in log if u == user) for user in users if of_user[user]}
        log = kept


def histories(folder: Path, settings: DataSettings = DataSettings()) -> dict[str, str]:
    dataset = load_dataset(folder, settings)
    rows = zip(dataset.user_ids, dataset.histories, strict=True)
    return {user: "".join(dataset.item_ids[item] for item in items) for user, items in rows}


@given(st.lists(EVENTS, min_size=1, max_size=60), st.integers(0, 4), st.integers(0, 4))
def test_histories_are_what_a_slow_reference_gives(
    tmp_path_factory: pytest.TempPathFactory, log: list[Event], user_core: int, item_core: int
) -> None:
    folder = write(tmp_path_factory.mktemp("data"), log)
    chosen, expected = DataSettings(user_core=user_core, item_core=item_core), slow_histories(log, user_core, item_core)
    if not expected:
        with pytest.raises(InputError, match="nothing left"):
            load_dataset(folder, chosen)
        return
    assert histories(folder, chosen) == histories(folder, chosen) == expected, "made, and read again"
    dataset = load_dataset(folder, chosen)
    full = list(dataset.histories)
    for row, history in enumerate(full):
        assert training_histories(dataset)[row].tolist() == history[:-2].tolist()
        assert validation_targets(dataset).targets[row] == history[-2]
        assert test_targets(dataset).histories[row].tolist() == history[:-1].tolist()


def test_the_order_of_a_log_with_many_blocks_is_kept(tmp_path: Path) -> None:
    """DuckDB reads and writes 122,880 rows at a time, in parallel and in any order unless it is asked for one."""
    rng, rows = np.random.default_rng(0), 500_000
    users, items, times = rng.integers(0, 1_000, rows), rng.integers(0, 5, rows), rng.permutation(rows)
    table = {"user_id": [f"u{n}" for n in users], "item_id": [f"{'edcba'[n]}" for n in items], "timestamp": times}
    pl.DataFrame(table).write_parquet(tmp_path / "interactions.parquet")
    pl.DataFrame({"item_id": list("edcba")}).write_parquet(tmp_path / "items.parquet")
    order = np.argsort(times)
    dataset = load_dataset(tmp_path)
    for user in (0, 500, 999):
        expected = items[order][users[order] == user]
        row = dataset.user_ids.index(f"u{user}")
        np.testing.assert_array_equal(dataset.histories[row], expected)
        np.testing.assert_array_equal(training_histories(dataset)[row], expected[:-2])


def test_histories_and_splits_are_mapped_files(tmp_path: Path) -> None:
    dataset = load_dataset(write(tmp_path / "data", LOG))
    for rows in (dataset.histories, training_histories(dataset), test_targets(dataset).histories):
        values = rows.values
        while values.base is not None and not isinstance(values, np.memmap):
            values = values.base
        assert isinstance(values, np.memmap)
        assert rows.values.flags.writeable, "torch warns about other arrays"
        rows.values[:] = 0  # changes this process only
    assert histories(tmp_path / "data") == {"u": "abca", "v": "cbd"}


def test_files_are_made_once_for_each_set_of_rules_and_again_for_changed_tables(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", LOG)
    load_dataset(folder)
    [stored] = (folder / ".histories").iterdir()
    before = stored.stat().st_ino
    load_dataset(folder)
    assert [path.stat().st_ino for path in (folder / ".histories").iterdir()] == [before]
    load_dataset(folder, DataSettings(hold_out_items=0.2))
    load_dataset(folder, DataSettings(user_core=4))
    assert len(list((folder / ".histories").iterdir())) == 2
    write(folder, [*LOG, ("v", "e", 9)])
    os.utime(folder / "interactions.parquet", (1, 1))
    assert histories(folder) == {"u": "abca", "v": "cbde"}
    assert len(list((folder / ".histories").iterdir())) == 1, "those of the earlier tables are removed"


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_damaged_files_are_made_again(tmp_path: Path, name: str, damage: str) -> None:
    folder = write(tmp_path / "data", LOG)
    load_dataset(folder)
    [file] = (folder / ".histories").glob(f"*/{name}")
    file.unlink() if damage == "gone" else os.truncate(file, file.stat().st_size - 3 if damage == "cut" else 0)
    assert histories(folder) == histories(folder) == {"u": "abca", "v": "cbd"}


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A prepared folder on a disk that cannot be written."""
    disk, source = tmp_path / "disk", write(tmp_path / "source", LOG)
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a disk")
    shutil.copytree(source, disk / "data")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    yield disk / "data"
    subprocess.run(["umount", disk], check=True)


def test_a_read_only_folder_is_read_into_memory_and_logged(read_only: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert histories(read_only) == {"u": "abca", "v": "cbd"}
    assert f"{read_only}: cannot be written (Read-only file system); its histories are read into memory" in caplog.text


def test_several_processes_can_make_them_at_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", LOG)
    code = "import sys; from msm4sr.data.dataset import load_dataset; print(load_dataset(sys.argv[1]).identity)"
    command = [sys.executable, "-c", code, str(folder)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert len(outputs) == 1
    assert len(list((folder / ".histories").iterdir())) == 1


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", LOG)
    old, young = (folder / ".histories" / f".{name}.unfinished" for name in ("old", "young"))
    for left in (old, young):
        (left / "work").mkdir(parents=True)
    os.utime(old, (0, 0))
    load_dataset(folder)
    assert young.exists()
    assert not old.exists()


def test_a_wrong_value_after_the_first_block_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "BLOCK", 2)
    folder = write(tmp_path / "data", [*LOG, ("", "a", 1)])
    with pytest.raises(InputError, match="column 'user_id', row 8: empty"):
        load_dataset(folder)
