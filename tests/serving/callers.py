"""Callers that ask a service without a pause, and waiting for what another process does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx2 as httpx


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def asking(make_client: Callable[[], httpx.Client], history: list[str]) -> Iterator[list[int]]:
    """Four callers ask during the block, each as fast as it is answered.

    Yields the statuses of the answers. A request without an answer raises at the end of the block.
    """
    stop, answers = threading.Event(), list[int]()

    def ask() -> None:
        with make_client() as client:
            while not stop.is_set():
                answers.append(client.post("/recommend", json={"history": history}).status_code)

    with ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(ask) for _ in range(4)]
        try:
            yield answers
        finally:
            stop.set()
    for caller in callers:
        caller.result()


def wait_for_more(answers: list[int], more: int) -> None:
    enough = len(answers) + more
    wait_until(lambda: len(answers) >= enough)
