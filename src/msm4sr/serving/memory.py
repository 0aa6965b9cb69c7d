"""The memory of a process that answers requests in several threads for weeks."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

M_ARENA_MAX = -8  # of glibc's malloc.h


def use_one_arena() -> None:
    """Make all threads allocate from one malloc arena, here and in processes that are started from here.

    Call it before threads are started, since existing arenas stay in use. It has no effect without glibc.

    glibc gives each thread an arena, and an arena keeps the memory of the largest answers of its thread, so
    that memory grew for as long as it was measured. With one arena it is constant (docs/serving.md,
    `benchmarks/soak.py`).
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return  # the user has decided
    os.environ["MALLOC_ARENA_MAX"] = "1"  # glibc reads it when a process starts
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(M_ARENA_MAX, 1)
