"""Progress of long work. The command line shows bars; library calls show nothing unless they are given a `Progress`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

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
