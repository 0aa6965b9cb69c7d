"""One heap for all threads, told by glibc itself."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys, threading
from msm4sr.serving.memory import keep_one_heap

if sys.argv[1] == "one":
    keep_one_heap()
inside, go = threading.Barrier(9), threading.Event()

def take():
    ctypes.create_string_buffer(1000)
    inside.wait()
    go.wait()

for _ in range(8):
    threading.Thread(target=take).start()
inside.wait()
sys.stderr.flush()
ctypes.CDLL("libc.so.6").malloc_stats()
go.set()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_threads_share_a_heap_once_asked() -> None:
    heaps = {}
    for mode in ("one", "own"):
        told = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
        heaps[mode] = told.stderr.count("Arena ")
    assert heaps["one"] == 1
    assert heaps["own"] > 1
