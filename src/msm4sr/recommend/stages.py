"""When the stages of a recommendation began and ended, for the metrics and traces of a service."""

from __future__ import annotations

from contextvars import ContextVar
from time import perf_counter_ns
from typing import NamedTuple


class Interval(NamedTuple):
    """A stage, and its times in nanoseconds of `time.perf_counter_ns`."""

    stage: str
    began: int
    ended: int


# Where the stages of this context, and of threads that run work for it, are recorded; None: nowhere.
RECORD: ContextVar[list[Interval] | None] = ContextVar("record", default=None)


class stage:
    """`with stage("search"):` records when this began and ended. It costs a microsecond at most."""

    __slots__ = ("_began", "_name")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._began = perf_counter_ns()

    def __exit__(self, *error: object) -> None:
        record = RECORD.get()
        if record is not None:
            record.append(Interval(self._name, self._began, perf_counter_ns()))
