"""The environment of a run: software versions, hardware, threads, and the memory of this process."""

from __future__ import annotations

import logging
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import torch

from msm4sr.threads import count_of, usable_cores, were_chosen
from msm4sr.training.checkpoint import read_state
from msm4sr.training.stages import STAGES

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).resolve().parents[3]  # the root of a checkout; unrelated to an installed package


def versions() -> dict[str, str]:
    """Name to version of the software that affects results; `commit` if the package runs from a checkout."""
    found = {"msm4sr": version("msm4sr"), "python": platform.python_version()}
    found |= {name: version(name) for name in ("torch", "numpy", "polars")}
    return found | ({"commit": commit} if (commit := _commit()) else {})


def _commit() -> str | None:
    """The commit of the checkout, with `-dirty` if files differ from it."""
    if not (SOURCE / ".git").exists():
        return None
    command = ["git", "-C", str(SOURCE), "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git here, or not a repository that it may read
        return None


def hardware(device: torch.device) -> str:
    """The processor and the threads in use, or the GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {count_of(torch.get_num_threads(), 'thread')}"


def processor() -> str:
    names = [line for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def memory_peak() -> float:
    """The peak of this process's resident memory, in MiB, since `reset_memory_peak` if the system supports it."""
    # `ru_maxrss` is the last resort: a child process starts with that of its parent.
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return memory_status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def reset_memory_peak() -> None:
    """Measure `memory_peak` and the peak of a GPU from now on. No effect if the system does not support it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def memory_status(key: str) -> float:
    """A line of /proc/self/status in MiB; 0 if there is no such line."""
    found = [line for line in _lines(Path("/proc/self/status")) if line.startswith(f"{key}:")]
    return int(found[0].split()[1]) / 1024 if found else 0.0


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def use_threads_of(checkpoints: Path, stages: Sequence[str] = STAGES) -> None:
    """Use as many threads as the interrupted training of the last of these stages, if this machine has as many cores.

    Call it before features are whitened: that depends on the number of threads too.
    """
    states = [read_state(checkpoints, stage) for stage in stages] if were_chosen() else []
    threads = next((state.threads for state in reversed(states) if state is not None), 0)
    if threads != torch.get_num_threads() and 0 < threads <= len(usable_cores()):
        logger.info("using %s as before, so that results are bit-identical", count_of(threads, "thread"))
        torch.set_num_threads(threads)
