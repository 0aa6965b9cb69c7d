"""Long requests: none is computed for a caller that has disconnected, and only so many may wait."""

from __future__ import annotations

import threading
from collections.abc import Callable

import anyio
import anyio.to_thread
import pytest
from fastapi import Request

from msm4sr.serving import dependencies
from msm4sr.serving.dependencies import in_thread
from msm4sr.serving.problems import Refused


def request_of(disconnected: Callable[[], bool]) -> Request:
    async def receive() -> dict[str, object]:
        if not disconnected():
            await anyio.sleep_forever()
        return {"type": "http.disconnect"}

    return Request({"type": "http", "method": "POST", "path": "/explain", "headers": []}, receive)


def test_nothing_is_computed_for_callers_that_disconnect_while_they_wait() -> None:
    """Two threads, 100 callers: all disconnect while the first two are computed."""
    gone, computed, refused = threading.Event(), [], []

    def work() -> None:
        computed.append(1)
        gone.wait()

    async def call() -> None:
        try:
            await in_thread(request_of(gone.is_set), work)
        except Refused as error:
            refused.append(error.status)

    async def all_calls() -> None:
        limiter = anyio.to_thread.current_default_thread_limiter()
        limiter.total_tokens = 2
        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(call)
            while len(computed) < 2:
                await anyio.sleep(0.01)
            gone.set()

    anyio.run(all_calls)
    assert len(computed) == 2
    assert refused == [503] * 98


def test_at_most_so_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dependencies, "WAITING", 3)
    end, answers, refused = threading.Event(), [], []

    async def call() -> None:
        try:
            answers.append(await in_thread(request_of(lambda: False), lambda: end.wait() and 1))
        except Refused as error:
            refused.append((error.status, error.headers["Retry-After"].isdigit()))
            end.set()

    async def all_calls() -> None:
        anyio.to_thread.current_default_thread_limiter().total_tokens = 2
        async with anyio.create_task_group() as group:
            for _ in range(6):
                group.start_soon(call)
                await anyio.sleep(0.01)

    anyio.run(all_calls)
    assert (answers, refused) == ([1] * 5, [(503, True)])
