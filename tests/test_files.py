"""Files that appear complete or not at all."""

from __future__ import annotations

from pathlib import Path

from msm4sr.files import write_text


def test_writing_a_text_replaces_the_old_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run" / "report.html"
    write_text(path, "old")
    write_text(path, "né")
    assert path.read_text(encoding="utf-8") == "né"
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
