"""How many threads a process uses, and how they wait for each other, beside whatever else runs on the machine.

A parallel operation ends when its last thread does. With more threads than free cores one of them waits for a core, and
the others, if they spin, take the time that it needs. OpenMP reads the choice when torch is first imported, so it is
made in the environment; this module imports nothing heavy. It is made once: another number of threads changes the last
bits of sums, and a later change would come at a moment that no second run repeats.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

THREADS, POLICY, SPINS = "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"  # a user's values are never changed
CHOSEN = "MSM4SR_FREE_CORES"  # set where the threads were chosen here and not by the user; the processes share these
BRIEFLY = "3000"  # spins before a thread sleeps: waking it at once is slow, and long spinning keeps others from running
LAUNCHERS = ("LOCAL_RANK", "TORCHELASTIC_RUN_ID", "SLURM_PROCID")  # their processes start together
SECONDS = 0.3  # of a measurement; the processor's counters advance 100 times a second
TRIES = 3  # the quietest counts, so that a moment's work of another program does not decide about a long run


@dataclass(frozen=True)
class Choice:
    """The threads of this process, and the variables for OpenMP and for the processes that are started here."""

    threads: int
    variables: dict[str, str]
    text: str

    def __str__(self) -> str:
        return f"{count_of(self.threads, 'thread')} ({self.text})"


def use_free_cores() -> Choice | None:
    """Choose the threads of this process. Call it before torch is imported.

    Returns:
        The choice; None if the process that started this one has made it, or if the system does not say how busy it is.
    """
    if were_chosen() or not Path("/proc/stat").exists():
        return None
    cores = usable_cores()
    decided = os.environ.get(THREADS) == "1" or (THREADS in os.environ and {POLICY, SPINS} & os.environ.keys())
    together = any(name in os.environ for name in LAUNCHERS)
    busy = None if decided or together else busy_cores(cores)
    choice = choose(len(cores), cpu_quota(), busy, os.environ)
    os.environ |= choice.variables
    if THREADS in choice.variables and "torch" in sys.modules:  # of a program that calls this one
        sys.modules["torch"].set_num_threads(choice.threads)
    return choice


def choose(cores: int, quota: float | None, busy: float | None, environment: Mapping[str, str]) -> Choice:
    """As many threads as there are free cores, at least one; on a shared machine they do not spin.

    Args:
        cores: those that this process may run on.
        quota: the processor time that a container may use, in cores; None: no limit.
        busy: cores that other processes use; None: unknown.
        environment: may have the user's choice.
    """
    allowed = max(1, min(cores, int(quota or cores)))
    free = min(allowed, max(0, cores - round(busy or 0)))
    variables: dict[str, str] = {}
    facts = []
    if given := environment.get(THREADS):
        threads = int(given) if given.isdecimal() else allowed
        facts.append(THREADS)
    else:
        threads = max(1, free)
        variables |= {THREADS: str(threads), CHOSEN: str(threads)}
    facts += [] if busy is None else [f"{free} of {allowed} cores free"]
    kept = [f"{name}={environment[name]}" for name in (POLICY, SPINS) if name in environment]
    if not kept:
        variables |= {POLICY: "passive"} if free < allowed else {SPINS: BRIEFLY}
        kept = ["waiting threads sleep" if free < allowed else "waiting threads spin briefly"]
    if threads > 1:
        facts += kept
    return Choice(threads, variables, "; ".join(facts) or f"of {count_of(allowed, 'core')}")


def spin_briefly() -> None:
    """Let waiting threads spin briefly, unless the user chose how they wait. Call it before torch is imported."""
    if POLICY not in os.environ:
        os.environ.setdefault(SPINS, BRIEFLY)


def were_chosen() -> bool:
    """Whether the number of threads was chosen here, or in the process that started this one, and not by the user."""
    return CHOSEN in os.environ


@contextmanager
def shared_cores(processes: int) -> Iterator[int | None]:
    """Processes that are started in this block share the free cores, unless the user chose the number of threads.

    Yields:
        The threads of each; None for the user's choice.
    """
    before = os.environ.get(THREADS)
    if before is not None and not were_chosen():
        yield None
        return
    threads = max(1, int(os.environ.get(CHOSEN, len(usable_cores()))) // processes)
    if processes > 1:
        logger.info("%s, %s each", count_of(processes, "process", "processes"), count_of(threads, "thread"))
    os.environ[THREADS] = str(threads)
    try:
        yield threads
    finally:
        del os.environ[THREADS]
        os.environ |= {} if before is None else {THREADS: before}


def usable_cores() -> list[list[int]]:
    """The cores that this process may run on; each is a list of its logical processors."""
    if not hasattr(os, "sched_getaffinity"):
        return [[number] for number in range(os.cpu_count() or 1)]
    cores: dict[str, list[int]] = {}
    for number in sorted(os.sched_getaffinity(0)):
        siblings = Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
        cores.setdefault(siblings.read_text() if siblings.exists() else str(number), []).append(number)
    return list(cores.values())


def cpu_quota(root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> float | None:
    """The processor time that the control groups (version 2) of this process may use, in cores; None: no limit."""
    lines = groups.read_text().splitlines() if groups.exists() else []
    (path,) = [line.removeprefix("0::/") for line in lines if line.startswith("0::/")] or [""]
    limits = []
    for folder in (root / path, *(root / path).parents):
        file = folder / "cpu.max"
        if folder.is_relative_to(root) and file.exists():
            quota, period = file.read_text().split()
            limits += [] if quota == "max" else [int(quota) / int(period)]
    return min(limits, default=None)


def busy_cores(cores: list[list[int]]) -> float:
    """How many of the cores other processes use now."""
    least = float(len(cores))
    for _ in range(TRIES):
        before, own = _processor_times(), time.process_time()
        time.sleep(SECONDS)
        after, own = _processor_times(), (time.process_time() - own) / SECONDS
        shares = {
            number: (busy - before[number][0]) / max(1, total - before[number][1])
            for number, (busy, total) in after.items()
            if number in before
        }
        used = sum(min(1.0, sum(shares.get(number, 0.0) for number in core)) for core in cores)
        least = min(least, max(0.0, used - own))
        if round(least) == 0:
            break
    return least


def _processor_times() -> dict[int, tuple[int, int]]:
    """The ticks in which each logical processor worked, for this or (if it is virtual) another machine, and all."""
    times = {}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *counts = line.split()
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, idle, waiting, *others = map(int, counts[:8])  # guests are counted in user and nice
            busy = user + nice + system + sum(others)
            times[int(name[3:])] = busy, busy + idle + waiting
    return times


def count_of(count: int, one: str, many: str | None = None) -> str:
    """The number with its noun."""
    return f"{count} {one if count == 1 else many or one + 's'}"
