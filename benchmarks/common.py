"""Options, measurements of the machine and plots that the benchmarks share."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer

from msm4sr.experiments.machine import memory_peak, memory_status, processor, reset_memory_peak

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["describe", "matrix_peak", "memory_now", "memory_peak", "reset_memory_peak"]

Data = Annotated[Path, typer.Option("--data", help="A prepared folder.", show_default=False)]
Preset = Annotated[str, typer.Option("--preset", help="seed, released or best.")]
Changes = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change any setting of the preset.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads of PyTorch.")]
Plot = Annotated[Path, typer.Option("--out", help="The file of the plot (needs matplotlib).")]

MATRIX_SIZE = 2048  # 48 MiB for three matrices in float32, more than the caches hold


def describe_preset(preset: str, changes: Sequence[str]) -> str:
    return ", ".join([f"preset {preset}", *changes])


def describe() -> str:
    """The processor, its cores, the threads in use and the load of the machine: one line."""
    load = f"{os.getloadavg()[0]:.2f}"
    return (
        f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"load of the last minute {load}"
    )


def matrix_peak(dtype: torch.dtype = torch.float32, size: int = MATRIX_SIZE, repeats: int = 10) -> float:
    """Floating-point operations per second of a product of two square matrices, the best of `repeats`.

    A multiplication and an addition for each of size^3 terms: what this process, with its threads, can reach now.
    """
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    best = float("inf")
    for _ in range(repeats + 2):  # two more to warm up
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def memory_now() -> float:
    """Resident memory of this process in MiB."""
    return memory_status("VmRSS") or memory_peak()


def new_figure(width: float, height: float) -> Figure:
    """An empty matplotlib figure (`pip install 'msm4sr[bench]'`)."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    print(f"\n{file}")
