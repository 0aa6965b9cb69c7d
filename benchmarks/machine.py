"""What the machine can do at this moment, and what this process has taken of it."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
SIZE = 2048  # of the square matrices: 48 MiB in float32, more than the caches hold


def describe() -> str:
    """The processor, its cores, the threads in use and how busy the machine is: one line."""
    names = [line for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    name = names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()
    load = f"{os.getloadavg()[0]:.2f}"
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"load of the last minute {load}"
    )


def matrix_peak(dtype: torch.dtype = torch.float32, size: int = SIZE, repeats: int = 10) -> float:
    """Floating-point operations a second of a product of two square matrices, the best of some: a multiplication and
    an addition for each of size^3 terms. It is what this process, with its threads, can get from the machine now."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    best = float("inf")
    for _ in range(repeats + 2):  # the first two warm up, and cannot be the best for long
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def memory_now() -> float:
    """Resident memory of this process: MiB."""
    return _status("VmRSS") or memory_peak()


def memory_peak() -> float:
    """The most that this process has had resident (since `forget_peak`, where the system can forget): MiB.

    Not `ru_maxrss` where it can be helped: a child starts with that of its parent.
    """
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def forget_peak() -> None:
    """Let `memory_peak` begin from what is resident now. Without effect where the system cannot do it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _status(key: str) -> float:
    """A line of /proc/self/status in MiB; 0 where there is none."""
    for line in _lines(STATUS):
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []
