"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from msm4sr import files
from msm4sr.errors import InputError
from msm4sr.files import atomic_file, atomic_folder, write_json, write_text


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writing_a_text_replaces_the_old_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run" / "report.html"
    write_text(path, "old")
    write_text(path, "né")
    assert path.read_text(encoding="utf-8") == "né"
    assert names(path.parent) == ["report.html"]


def test_json_is_indented_and_keeps_letters(tmp_path: Path) -> None:
    write_json(tmp_path / "record.json", {"title": "Misérables"})
    text = (tmp_path / "record.json").read_text(encoding="utf-8")
    assert text == '{\n  "title": "Misérables"\n}\n'
    assert json.loads(text) == {"title": "Misérables"}


def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def interrupted() -> None:
        with atomic_file(path) as unfinished:
            unfinished.write_text("half")
            assert path.read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_file_is_synced_before_it_gets_its_name_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "file", []

    def fsync(descriptor: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}").endswith(".unfinished"), path.exists()))

    monkeypatch.setattr(files.os, "fsync", fsync)
    write_text(path, "text")
    assert synced == [(True, False), (False, True)]


def test_files_and_folders_have_the_modes_of_the_umask(tmp_path: Path, umask: None) -> None:
    write_text(tmp_path / "file", "text")
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "inside").touch()
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("file", "folder", "folder/inside")}
    assert modes == {"file": 0o640, "folder": 0o750, "folder/inside": 0o640}


def test_a_folder_appears_at_the_end_after_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, synced = tmp_path / "new" / "out", []
    monkeypatch.setattr(files.os, "sync", lambda: synced.append(out.exists()))
    with atomic_folder(out) as folder:
        (folder / "table").touch()
        assert not out.exists()
    assert (names(out), names(out.parent), synced) == (["table"], ["out"], [False])


def test_a_failure_removes_the_folder_and_keeps_an_empty_one_that_existed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()

    def interrupted() -> None:
        with atomic_folder(out) as folder:
            (folder / "table").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (names(tmp_path), names(out)) == (["out"], [])


def test_what_is_added_to_the_folder_in_the_meantime_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def overtaken() -> None:
        with atomic_folder(out):
            out.mkdir()
            (out / "precious").touch()

    with pytest.raises(OSError, match="not empty"):
        overtaken()
    assert (names(tmp_path), names(out)) == (["out"], ["precious"])


@pytest.mark.parametrize("existing", ["file", "folder"])
def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path, existing: str) -> None:
    out = tmp_path / "out"
    (out if existing == "file" else out / "content").parent.mkdir(exist_ok=True)
    (out if existing == "file" else out / "content").write_text("precious")
    with pytest.raises(InputError, match="out: exists already; name a new or an empty folder"), atomic_folder(out):
        pass
    assert names(tmp_path) == ["out"]


def test_a_folder_under_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made"), atomic_folder(tmp_path / "file" / "out"):
        pass
