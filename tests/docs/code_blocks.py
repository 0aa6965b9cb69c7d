"""The code blocks of a page, found by sybil and executed from top to bottom in one folder.

A comment on the line before a block (blank lines may be between) says how it is run:

    <!-- skip: REASON -->       is not run
    <!-- fails -->              a shell block that must exit with an error
    <!-- background: URL -->    a shell block that keeps running; the next block waits until URL answers

Comments anywhere on a page:

    <!-- slow -->               the page is run by `make test-all` only
    <!-- folder: raw -->        the page begins with log.csv, items.csv and photos/ only; `empty`: with nothing;
                                without the comment: also with the prepared folder shop/ and the finished run runs/shop
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sybil import Document, Example, Lexeme, Region, Sybil
from sybil.evaluators.python import PythonEvaluator

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r"^(?:(?P<comment><!-- (?:skip|fails|background)[^\n]*) *\n\n*)?"
    r"^(?P<indent> *)(?P<fence>```+)(?P<language>[^\n]*)\n(?P<source>.*?)^ *(?P=fence) *$",
    re.MULTILINE | re.DOTALL,
)
COMMENT = re.compile(r"<!-- (?P<kind>skip|fails|background)(?:: (?P<value>.+?))? -->")
COMMAND, PYTHON = "bash", "python"
SHOWN = {"text", "yaml", "json", "toml", "dockerfile", "ini", "http", "mermaid", "html", "csv", "promql", "nginx"}
"""Languages of blocks that are shown and not run."""


@dataclass(frozen=True)
class Block:
    """A block that is executed: its code, and how."""

    language: str
    source: Lexeme
    how: str  # "", "skip", "fails" or "background"
    value: str  # the reason of "skip", the URL of "background"


@dataclass
class Page:
    """A page while its blocks are executed: its folder, and the processes that it started."""

    folder: Path
    background: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def shell(self, example: Example) -> None:
        """Run a shell block. Its output goes to a file, which processes in the background may keep open."""
        block: Block = example.parsed
        output = self.folder.parent / f"output-{example.line}.txt"
        with output.open("wb") as file:
            process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", str(block.source)],
                cwd=self.folder,
                env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.background.append(process)
        if block.how == "background":
            wait_for(block.value, process, output)
            return
        code = process.wait()
        text = output.read_text(errors="replace")
        assert (code != 0) == (block.how == "fails"), f"{place(example)}: exit status {code}\n{block.source}\n{text}"
        assert "Traceback (most recent call last)" not in text, f"{place(example)}\n{block.source}\n{text}"

    def python(self, example: Example) -> None:
        """Run a Python block in the namespace of the page."""
        block: Block = example.parsed
        example.parsed = block.source
        PythonEvaluator()(example)

    def end(self) -> None:
        """End what still runs."""
        for process in self.background:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes], output: Path) -> None:
    """Return when `url` answers; fail when the process has ended."""
    while True:
        assert process.poll() is None, output.read_text(errors="replace")
        with suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(url).close()
            return
        time.sleep(0.1)


def place(example: Example) -> str:
    return f"{Path(example.path).name}:{example.line}"


def find_blocks(document: Document) -> Iterator[Region]:
    """The blocks to execute or to skip. An unknown or missing language is an error: such a block would never run."""
    text = document.text
    for found in BLOCK.finditer(text):
        language = found["language"].strip().split(" ")[0]
        line = text.count("\n", 0, found.start("fence")) + 1
        assert language in {COMMAND, PYTHON, *SHOWN}, (
            f"{document.path}:{line}: a block of {language!r}: use bash, python or one of {', '.join(sorted(SHOWN))}"
        )
        if language in SHOWN:
            continue
        comment = COMMENT.match(found["comment"] or "")
        how, value = (comment["kind"], comment["value"] or "") if comment else ("", "")
        assert comment or not found["comment"], f"{document.path}:{line}: {found['comment']}"
        assert (how in ("", "fails")) == (not value), f"{document.path}:{line}: {how} needs a reason or a URL"
        source = re.sub(f"^{found['indent']}", "", found["source"], flags=re.MULTILINE)
        block = Block(language, Lexeme(source, found.start("source"), 1), how, value)
        yield Region(found.start("fence"), found.end(), block)


def parse(path: Path) -> Document:
    """A page with its blocks."""
    return Sybil([find_blocks]).parse(path)


def is_slow(path: Path) -> bool:
    """Whether a page says that it takes more than a few seconds."""
    return "<!-- slow -->" in path.read_text(encoding="utf-8")


def begins_with(path: Path) -> str:
    """What the folder of a page has at its beginning: "shop", "raw" or "empty"."""
    found = re.search(r"<!-- folder: (\w+) -->", path.read_text(encoding="utf-8"))
    given = found[1] if found else "shop"
    assert given in ("shop", "raw", "empty"), f"{path}: <!-- folder: {given} -->"
    return given


def execute(path: Path, folder: Path, lines: list[str]) -> None:
    """Execute the blocks of a page in a folder, the working directory; add a line for each block to `lines`."""
    document, page = parse(path), Page(folder)
    document.namespace["__name__"] = "__main__"
    name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    try:
        for example in document.examples():
            block: Block = example.parsed
            start = time.monotonic()
            if block.how == "skip":
                lines.append(f"{name}:{example.line}: {block.language}, skipped: {block.value}")
                continue
            lines.append(f"{name}:{example.line}: {block.language}, failed")
            (page.shell if block.language == COMMAND else page.python)(example)
            lines[-1] = f"{name}:{example.line}: {block.language}, executed in {time.monotonic() - start:.1f} s"
    finally:
        page.end()
