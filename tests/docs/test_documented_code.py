"""The code of README.md, the tutorials and the how-to guides runs. See code_blocks.py for how a block is marked.

The log of a test session (blocks found, executed, skipped and why) is in .pytest_cache/documented-code.txt.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from code_blocks import ROOT, begins_with, execute, is_slow, parse
from filelock import FileLock
from sybil import Example

PAGES = [
    page
    for pattern in ("README.md", "docs/index.md", "docs/tutorials/*.md", "docs/how-to/*.md", "docs/contributing.md")
    for page in sorted(ROOT.glob(pattern))
]
LOG = ROOT / ".pytest_cache" / "documented-code.txt"
PORT = Path(tempfile.gettempdir()) / "msm4sr-documented-port.lock"  # pages serve at 8000, one at a time


@dataclass
class Log:
    """What happened to each block."""

    pages: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def log() -> Iterator[Log]:
    """Written to a file when the last page is done."""
    log = Log()
    yield log
    kinds = ", ".join(
        f"{sum(f', {kind}' in line for line in log.lines)} {kind}" for kind in ("executed", "skipped", "failed")
    )
    counts = f"{len(log.pages)} pages, {len(log.lines)} blocks: {kinds}"
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text("\n".join([counts, *log.lines, ""]), encoding="utf-8")


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders that a page may begin with, made by the commands of the README."""
    folders = {name: tmp_path_factory.mktemp("pages") / name for name in ("empty", "raw", "shop")}
    made = folders["raw"].with_name("make.md")
    made.write_text(
        "```bash\n"
        "mkdir empty\n"
        "msm4sr prepare toyshop raw --csv --users 200 --items 200\n"
        "cp -r raw shop && cd shop\n"
        "msm4sr prepare csv log.csv items.csv shop --images photos --user customer --item sku --time date\n"
        "msm4sr run shop --out runs/shop\n"
        "```\n"
    )
    parent = folders["empty"].parent
    execute(made, parent, [])
    return {name: parent / name for name in folders}


def test_there_are_pages() -> None:
    assert ROOT / "README.md" in PAGES


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=str(page.relative_to(ROOT)), marks=[pytest.mark.slow] * is_slow(page)) for page in PAGES],
)
def test_the_code_of_a_page_runs(
    page: Path, given: dict[str, Path], log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy(given[begins_with(page)], tmp_path / "page")
    monkeypatch.chdir(folder)
    log.pages.append(str(page))
    with FileLock(PORT):
        execute(page, folder, log.lines)


def copy(given: Path, folder: Path) -> Path:
    """A copy of a folder whose runs name the data in the copy."""
    shutil.copytree(given, folder)
    for config in folder.glob("runs/*/config.yaml"):
        config.write_text(config.read_text().replace(str(given), str(folder)))
    return folder


def write_page(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text)
    return page


def test_blocks_run_in_order_and_share_the_folder_and_the_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "# Page\n\n```bash\nprintf 1 > a\n```\n\n"
        "```python\nn = int(open('a').read()) + 1\n```\n\n```text\nnot run\n```\n"
        "- in a list\n\n    ```python\n    print(n + 1, file=open('b', 'w'))\n    ```\n\n"
        "<!-- skip: needs a GPU -->\n```bash\nfalse\n```\n\n<!-- fails -->\n```bash\nfalse\n```\n"
    )
    monkeypatch.chdir(tmp_path)
    lines: list[str] = []
    execute(write_page(tmp_path, text), tmp_path, lines)
    assert (tmp_path / "b").read_text() == "3\n"
    assert len(lines) == 5
    assert lines[3] == "page.md:21: bash, skipped: needs a GPU"


def test_a_background_block_runs_until_the_page_ends(tmp_path: Path) -> None:
    text = (
        "<!-- background: http://127.0.0.1:8000/ -->\n```bash\nexec python -m http.server 8000 --bind 127.0.0.1\n```\n"
        "```bash\npython -c 'import urllib.request as r; r.urlopen(\"http://127.0.0.1:8000/\")'\n```\n"
    )
    page = write_page(tmp_path, text)
    with FileLock(PORT):
        execute(page, tmp_path, [])
        with pytest.raises(AssertionError, match="exit status 1"):
            execute(write_page(tmp_path, text[text.index("```\n") + 4 :]), tmp_path, [])


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```bash\nfalse\n```\n", "page.md:1: exit status 1"),
        ("```bash\nfalse | true\n```\n", "exit status 1"),
        ("<!-- fails -->\n```bash\ntrue\n```\n", "exit status 0"),
        ("```python\nassert 1 == 2\n```\n", "1 == 2"),
        ("```\nmsm4sr run\n```\n", "page.md:1: a block of ''"),
        ("```sh\nmsm4sr run\n```\n", "a block of 'sh'"),
        ("<!-- skip -->\n```bash\ntrue\n```\n", "needs a reason"),
        ("<!-- background: http://127.0.0.1:1/ -->\n```bash\ntrue\n```\n", ""),
    ],
)
def test_what_does_not_run_fails(text: str, error: str, tmp_path: Path) -> None:
    page = write_page(tmp_path, text)
    with pytest.raises(AssertionError) as raised:
        execute(page, tmp_path, [])
    assert error in str(raised.value) or "1 == 2" in error


def test_every_fence_of_every_page_is_found() -> None:
    """A fence that the pattern of blocks misses would not be executed."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        examples: list[Example] = list(parse(page).examples())
        fences = [line.strip() for line in text.splitlines() if line.strip().startswith(("```bash", "```python"))]
        assert len(examples) == len(fences), page
