"""Progress of long work. The command line shows bars; library calls show nothing unless they are given a `Progress`,
such as `NotebookProgress`.
"""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

Advance = Callable[[float], None]  # called with how many more units are done


class Update(Protocol):
    """Changes a bar."""

    def __call__(self, done: float, status: str = "", title: str = "") -> None:
        """Advance by `done` more units; `status` replaces the speed, `title` the title."""


class Progress(Protocol):
    """Where long work reports how far it is: bars on a terminal, messages to another process, or nothing."""

    def task(
        self, title: str, total: float | None = None, unit: str = "", done: float = 0
    ) -> AbstractContextManager[Update]:
        """Show a task for the time of a `with` block; yields a function to call as it advances.

        Args:
            title: what is done.
            total: units of the complete task; None: unknown.
            unit: what is counted, for the speed ("items" shows "120 items/s"); empty: no speed is shown.
            done: units that are done already.
        """


class NoProgress:
    """Shows nothing."""

    @contextmanager
    def task(self, title: str, total: float | None = None, unit: str = "", done: float = 0) -> Iterator[Update]:
        yield lambda done, status="", title="": None


NOTEBOOK_EVERY = 0.2  # seconds between two updates of a bar: each is a message to the browser


@dataclass
class _NotebookBar:
    """A bar in the output of a cell: what it shows, and the handle that updates it."""

    title: str
    total: float | None
    unit: str
    done: float
    status: str = ""
    handle: Any = None
    start: float = field(default_factory=time.monotonic)
    shown: float = 0.0
    begun: float = 0.0

    def __post_init__(self) -> None:
        self.begun = self.done

    def update(self, done: float, status: str = "", title: str = "") -> None:
        """See `Update`."""
        speed = (self.done + done - self.begun) / max(time.monotonic() - self.start, 1e-9)
        self.done += done
        self.title, self.status = title or self.title, status or (f"{speed:,.0f} {self.unit}/s" if self.unit else "")
        if time.monotonic() - self.shown >= NOTEBOOK_EVERY:
            self.show()

    def show(self) -> None:
        """Display the bar, or what has changed of it."""
        from IPython.display import display  # every notebook has it

        self.shown = time.monotonic()
        count = f"{self.done:,.0f}" + ("" if self.total is None else f"/{self.total:,.0f}")
        words = "  ".join(part for part in (self.title, count, self.status, f"{self.shown - self.start:.0f} s") if part)
        share = "" if self.total is None else f' value="{self.done:g}" max="{max(self.total, 1):g}"'
        bar = f'<progress{share} style="width: 14em; vertical-align: middle"></progress> {html.escape(words)}'
        shown = {"text/plain": words, "text/html": f'<div style="white-space: pre-wrap">{bar}</div>'}
        if self.handle is None:
            self.handle = display(shown, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self.handle.update(shown, raw=True)


class NotebookProgress:
    """Shows a bar for each task in the output of a notebook cell, where it stays when the task has ended.

    progress = NotebookProgress()
    features = extract_features(dataset, "features", progress=progress)
    finetune(model, dataset, callbacks=[TrainingProgress(progress)])
    """

    @contextmanager
    def task(self, title: str, total: float | None = None, unit: str = "", done: float = 0) -> Iterator[Update]:
        """See `Progress.task`."""
        bar = _NotebookBar(title, total, unit, done)
        bar.show()
        try:
            yield bar.update
        finally:
            bar.show()
