"""One malloc arena for all threads, as glibc reports it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys, threading
from msm4sr.cli.serve import use_one_arena

if sys.argv[1] == "one":
    use_one_arena()
inside, go = threading.Barrier(9), threading.Event()

def allocate():
    ctypes.create_string_buffer(1000)
    inside.wait()
    go.wait()

for _ in range(8):
    threading.Thread(target=allocate).start()
inside.wait()
sys.stderr.flush()
ctypes.CDLL("libc.so.6").malloc_stats()
go.set()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_threads_share_an_arena_on_request() -> None:
    arenas = {}
    clean = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}  # other tests may set it
    for mode in ("one", "default"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, mode], env=clean, capture_output=True, text=True, check=True
        )
        arenas[mode] = done.stderr.count("Arena ")
    assert arenas["one"] == 1
    assert arenas["default"] > 1
