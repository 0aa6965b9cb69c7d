"""The cells of a grid, done: skipped where finished, gone on with where interrupted, told where they failed.

Any number of processes, on any machines that see the grid and the data under the same paths, may work on one grid.
"""

from __future__ import annotations

import _thread
import multiprocessing
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from rich.progress import Progress

from msm4sr.data.dataset import load_dataset
from msm4sr.errors import InputError
from msm4sr.experiments.claims import POLL, STALE_AFTER, Claim, ClaimLost, claims_of, work_through
from msm4sr.experiments.grid import Cell, Row, features_folder
from msm4sr.experiments.metrics import evaluate_stage
from msm4sr.experiments.run import Note, begin_run, plan_run, resume_run
from msm4sr.experiments.stages import build_model, extract_stage, train_stage
from msm4sr.files import write_json
from msm4sr.training.tasks import STAGES
from msm4sr.training.trainer import EpochRecord, Monitor, Silent

INTERRUPTED = 130  # exit code of a process that was: 128 + SIGINT


@dataclass(frozen=True)
class Options:
    """How cells are done, which decides nothing of what comes out.

    Attributes:
        features: the folder with a features folder for each data set.
        retry_before: a cell that failed before this time (of the file system) is done again, from its start.
        stale_after: seconds after which a worker that is no longer heard of is taken for dead.
    """

    features: Path
    retry_before: float = 0.0
    stale_after: float = STALE_AFTER


def run_cell(
    data: Path,
    row: Row,
    seed: int,
    folder: Path,
    features: Path | None = None,
    *,
    anew: bool = False,
    progress: Progress | None = None,
    monitor: Monitor = Silent(),
    note: Note = lambda line: None,
) -> dict[str, Any]:
    """One cell, which is a run in `folder`: what was begun there is gone on with. Its metrics.

    Args:
        features: the features folder; None: inside the run.
        anew: a run that stands there is replaced.

    Raises whatever the stages raise.
    """
    name = data.resolve().name
    settings, precomputed = row.resolve(name, seed), row.precomputed_files(name, seed)
    dataset = load_dataset(data, settings.dataset)
    begun = not anew and (folder / "config.yaml").exists()
    if begun:
        run = resume_run(data, folder, settings, features, precomputed)
    else:
        run = plan_run(data, folder, settings, row.preset, features, True, precomputed)
    model = build_model(settings, dataset, extract_stage(run, dataset, progress, note))
    if not begun:
        begin_run(run)
    for stage in STAGES:
        train_stage(run, stage, dataset, model, monitor, note, resume=True)
    return evaluate_stage(run, dataset, model)


def is_open(cell: Cell, retry_before: float = 0.0) -> bool:
    """Whether there is something to do: it is not finished, and has not failed since `retry_before`."""
    if cell.finished:
        return False
    try:
        return cell.failed_file.stat().st_mtime < retry_before
    except FileNotFoundError:
        return True


def do_cells(
    cells: Sequence[Cell],
    options: Options,
    *,
    watch: Callable[[], object] = lambda: None,
    progress: Progress | None = None,
    monitor: Callable[[], Monitor] = Silent,
    note: Note = lambda line: None,
    waiting: Callable[[Sequence[Path]], object] = lambda folders: None,
) -> None:
    """Do all cells in this process, beside whoever else is at them, until none is open.

    `watch` is called between them; `waiting` is told what is left when others hold it all.
    """
    by_folder = {cell.folder: cell for cell in cells}

    def do(folder: Path, claim: Claim) -> None:
        cell = by_folder[folder]
        note(f"[bold]{cell.title}[/bold]")
        _do(cell, claim, options, progress, monitor(), note)

    def still_open(folder: Path) -> bool:
        return is_open(by_folder[folder], options.retry_before)

    work_through(list(by_folder), still_open, do, options.stale_after, watch, waiting)


def _do(cell: Cell, claim: Claim, options: Options, progress: Progress | None, monitor: Monitor, note: Note) -> None:
    """One cell; what goes wrong in it is written to failed.json, and stops nothing else."""
    failed = cell.failed_file.exists()
    cell.failed_file.unlink(missing_ok=True)
    try:
        features = features_folder(options.features, cell)
        run_cell(
            cell.data.folder,
            cell.row,
            cell.seed,
            cell.folder,
            features,
            anew=failed,
            progress=progress,
            monitor=_Held(claim, monitor),
            note=note,
        )
    except ClaimLost:
        raise
    except Exception as error:
        claim.check()
        _write_failure(cell, error)
    for file in claims_of(cell.folder) if cell.finished else ():
        file.unlink(missing_ok=True)


def _write_failure(cell: Cell, error: Exception) -> None:
    known = isinstance(error, InputError)
    reason = " ".join(str(error).split())
    said: dict[str, Any] = {
        "reason": reason if known else f"{type(error).__name__}: {reason}",
        "traceback": None if known else "".join(traceback.format_exception(error)),
        "data": str(cell.data.folder),
        "settings": cell.settings.model_dump(mode="json"),
        "host": socket.gethostname(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_json(cell.failed_file, said)


class _Held:
    """Stops a training whose cell another worker has taken over, and passes all on."""

    def __init__(self, claim: Claim, monitor: Monitor) -> None:
        self._claim, self._monitor = claim, monitor

    def start(self, stage: str, epochs: int, steps: int, done: int) -> None:
        self._claim.check()
        self._monitor.start(stage, epochs, steps, done)

    def step(self, stage: str, epoch: int, loss: float, steps: int, pairs_per_second: float) -> None:
        self._claim.check()
        self._monitor.step(stage, epoch, loss, steps, pairs_per_second)

    def epoch(self, record: EpochRecord, best: bool) -> None:
        self._claim.check()
        self._monitor.epoch(record, best)

    def finish(self, stage: str) -> None:
        self._monitor.finish(stage)


# -- several processes -----------------------------------------------------------------------------------------------


def do_in_processes(
    cells: Sequence[Cell], options: Options, jobs: int, watch: Callable[[], object] = lambda: None
) -> int:
    """`do_cells` in `jobs` processes, which share the cores unless OMP_NUM_THREADS says else.

    Returns:
        How many of them died of something that was no failure of a cell, such as a lack of memory.
    """
    jobs = min(jobs, sum(is_open(cell, options.retry_before) for cell in cells))
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_worker, args=(list(cells), options)) for _ in range(jobs)]
    with _threads(max(1, (os.cpu_count() or 1) // max(1, jobs))):
        for worker in workers:
            worker.start()
    try:
        while alive := [worker.sentinel for worker in workers if worker.is_alive()]:
            wait(alive, POLL)
            watch()
    except KeyboardInterrupt:
        for worker in workers:  # Ctrl-C has reached them too; each lets its claim lapse
            worker.join()
        raise
    watch()
    if any(worker.exitcode == INTERRUPTED for worker in workers):
        raise KeyboardInterrupt
    return sum(worker.exitcode != 0 for worker in workers)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Processes that are started here compute with so many threads each, unless the user has said how many."""
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


def _worker(cells: list[Cell], options: Options) -> None:
    """The whole life of a process of `do_in_processes`: silent, and over when the first process is."""
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    try:
        do_cells(cells, options)
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL)
    _thread.interrupt_main()
