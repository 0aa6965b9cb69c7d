"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from builders import wrong_modes

from msm4sr import files
from msm4sr.errors import InputError
from msm4sr.files import atomic_file, atomic_folder, make_folder, remove, write_json, write_text


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


def private_writer(path: Path) -> None:
    """As safetensors writes: another file, of mode 0600, takes the name."""
    other = path.with_name("other")
    other.touch(0o600)
    other.replace(path)


def test_files_and_folders_have_the_modes_of_the_umask(tmp_path: Path, umask: None) -> None:
    write_text(tmp_path / "new" / "text", "text")
    with atomic_file(tmp_path / "private") as file:
        private_writer(file)
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "below").mkdir()
        private_writer(folder / "below" / "private")
        (folder / "text").touch()
    assert {str(path.relative_to(tmp_path)): oct(path.stat().st_mode & 0o777) for path in tmp_path.rglob("*")} == {
        "new": "0o775", "new/text": "0o664", "private": "0o664",
        "folder": "0o775", "folder/below": "0o775", "folder/below/private": "0o664", "folder/text": "0o664",
    }  # fmt: skip
    assert not wrong_modes(tmp_path)


def test_new_folders_are_synced_into_those_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    write_text(tmp_path / "a" / "b" / "text", "text")
    assert synced[:2] == [str(tmp_path), str(tmp_path / "a")]
    assert synced[-1] == str(tmp_path / "a" / "b")


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

    with pytest.raises(InputError, match="out: exists already; name a new or an empty folder"):
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


def test_an_error_of_writing_names_the_file_that_was_to_be_written(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")  # as `write` raises it, without a name
    for context in (atomic_file, atomic_folder):
        with pytest.raises(OSError, match="No space left") as caught, context(tmp_path / "out"):
            raise full
        assert caught.value.filename == str(tmp_path / "out")
        with pytest.raises(OSError, match="Permission") as caught, context(tmp_path / "out") as unfinished:
            raise PermissionError(errno.EACCES, "Permission denied", str(unfinished / "a"))
        assert caught.value.filename == str(tmp_path / "out" / "a")
        with pytest.raises(OSError, match="Permission") as caught, context(tmp_path / "out"):
            raise PermissionError(errno.EACCES, "Permission denied", "other")
        assert caught.value.filename == "other"
        full.filename = None


def test_a_link_is_removed_and_what_it_links_to_is_kept(tmp_path: Path) -> None:
    (tmp_path / "folder" / "below").mkdir(parents=True)
    for link in ("link", "dangling"):
        (tmp_path / link).symlink_to({"link": "folder", "dangling": "nothing"}[link])
    for name in ("link", "dangling", "not there"):
        remove(tmp_path / name)
    assert names(tmp_path) == ["folder"]
    remove(tmp_path / "folder")
    assert names(tmp_path) == []


def test_a_link_to_nothing_is_no_place_for_a_folder(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nothing")
    with pytest.raises(InputError, match="dangling: a link to nothing, which is no folder; make it or remove the link"):
        make_folder(tmp_path / "dangling" / "run")
