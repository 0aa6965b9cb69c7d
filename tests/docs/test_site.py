"""The site builds without a warning and loads nothing from other hosts; the links of the README lead to files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
LOADED = re.compile(
    r"<(?:script|img|iframe)[^>]*\ssrc=[\"']?(https?:)?//|<link[^>]*rel=[\"']?stylesheet[^>]*https?://", re.I
)


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = {path.relative_to(tmp_path / "site").as_posix(): path for path in (tmp_path / "site").rglob("*.html")}
    assert pages.keys() >= {"index.html", "reference/settings.html", "reference/api/models.html", "changelog.html"}
    for name, page in pages.items():
        assert not LOADED.search(page.read_text(encoding="utf-8")), name


@pytest.mark.parametrize("tag", ['<script src="https://x.org/a.js">', "<link rel=stylesheet href=https://x.org/a.css>"])
def test_a_page_that_loads_from_another_host_is_found(tag: str) -> None:
    assert LOADED.search(f"<p>{tag}</p>")
    assert not LOADED.search('<a href="https://x.org"><img src="images/demo.png"></a><script src="assets/a.js">')


@pytest.mark.parametrize("page", ["README.md", "benchmarks/README.md"])
def test_every_link_of_a_page_outside_of_the_site_leads_to_a_file(page: str) -> None:
    links = LINK.findall((ROOT / page).read_text(encoding="utf-8"))
    assert len(links) > 1
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert not missing
