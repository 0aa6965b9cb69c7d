"""The memory of a process that answers requests in several threads for weeks."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

M_ARENA_MAX = -8  # of glibc's malloc.h


def keep_one_heap() -> None:
    """Have all threads share one heap, here and in processes that are started from here; to be called before there are
    threads, since heaps that are there stay in use. Without effect where the C library is not glibc.

    glibc gives threads heaps of their own, and in each there is room for the largest answer that its threads ever made
    at once: memory crept up for as long as we watched. With one it is flat (docs/serving.md, `benchmarks/soak.py`).
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return  # whoever has started this process knows
    os.environ["MALLOC_ARENA_MAX"] = "1"  # glibc reads it when a process begins
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(M_ARENA_MAX, 1)
