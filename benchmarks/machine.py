"""What the machine can do at this moment, and what this process has taken of it."""

from __future__ import annotations

import os
import time

import torch

from msm4sr.experiments.machine import memory_peak, memory_status, processor, reset_memory_peak

__all__ = ["describe", "matrix_peak", "memory_now", "memory_peak", "reset_memory_peak"]

SIZE = 2048  # of the square matrices: 48 MiB in float32, more than the caches hold


def describe() -> str:
    """The processor, its cores, the threads in use and how busy the machine is: one line."""
    load = f"{os.getloadavg()[0]:.2f}"
    return (
        f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, "
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
    return memory_status("VmRSS") or memory_peak()
