"""What extraction says while it works: lines, and a bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress

Advance = Callable[[float], None]
"""Is told how many more are done."""


def say(progress: Progress | None, line: str) -> None:
    """A line above the bar; on stderr where there is no bar."""
    console = Console(stderr=True) if progress is None else progress.console
    console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def task(progress: Progress | None, title: str, total: int | None, unit: str = "") -> Iterator[Advance]:
    """A line of `progress` for the time of a `with` block; yields what to call with the number done.

    With a `unit`, the line shows the speed: `120 items/s`.
    """
    if progress is None:
        yield lambda n: None
        return
    row = progress.add_task(title, total=total)
    start, done = time.monotonic(), 0.0

    def advance(n: float) -> None:
        nonlocal done
        done += n
        speed = done / max(time.monotonic() - start, 1e-9)
        progress.update(row, advance=n, status=f"{speed:.0f} {unit}/s" if unit else "")

    try:
        yield advance
    finally:
        progress.update(row, total=total or 1, completed=total or 1)
