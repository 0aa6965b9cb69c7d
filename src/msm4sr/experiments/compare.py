"""Run the cells of a grid: skip finished ones, resume interrupted ones, record failures.

Any number of processes, on any machines that see the grid and the data under the same paths, can work on one grid.
"""

from __future__ import annotations

import _thread
import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from msm4sr.data.dataset import load_dataset
from msm4sr.errors import InputError
from msm4sr.experiments.grid import Cell, features_folder
from msm4sr.experiments.metrics import evaluate_stage
from msm4sr.experiments.run import begin_run, plan_run, resume_run
from msm4sr.experiments.stages import build_model, extract_stage, train_stage
from msm4sr.files import write_json
from msm4sr.locks import try_lock, unlock
from msm4sr.progress import NoProgress, Progress
from msm4sr.threads import shared_cores
from msm4sr.training.callbacks import Callback
from msm4sr.training.stages import STAGES

logger = logging.getLogger(__name__)

INTERRUPTED = 130  # exit code of an interrupted process: 128 + SIGINT
SHOWN = ("ndcg@10", "recall@10")  # metrics of a finished cell
POLL = 1.0  # seconds between two checks of the cells of other workers


@dataclass(frozen=True)
class CompareOptions:
    """How cells are run; no effect on their results."""

    features: Path  # with a features folder for each data set
    retry_before: float = 0.0  # a cell that failed before this time (of the file system) is run again, from scratch


def run_cell(
    cell: Cell,
    features: Path,
    *,
    from_scratch: bool = False,
    progress: Progress = NoProgress(),
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Run one cell and return its metrics; an existing run is resumed, or replaced (`from_scratch`)."""
    settings = cell.settings
    precomputed = cell.row.precomputed_files(cell.data.name, cell.seed)
    dataset = load_dataset(cell.data.folder, settings.dataset)
    begun = not from_scratch and (cell.folder / "config.yaml").exists()
    if begun:
        run = resume_run(cell.data.folder, cell.folder, settings, features, precomputed)
    else:
        run = plan_run(cell.data.folder, cell.folder, settings, cell.row.preset, features, True, precomputed)
    model = build_model(settings, dataset, extract_stage(run, dataset, progress))
    if not begun:
        begin_run(run)
    for stage in STAGES:
        train_stage(run, stage, dataset, model, callbacks, resume=True)
    return evaluate_stage(run, dataset, model)


def is_open(cell: Cell, retry_before: float = 0.0) -> bool:
    """Whether a cell is to be run: it is not finished, and has not failed since `retry_before`."""
    if cell.finished:
        return False
    try:
        return cell.failed_file.stat().st_mtime < retry_before
    except FileNotFoundError:
        return True


class CellLog:
    """Logs every cell that ends, in this or another process, once."""

    def __init__(self, cells: Sequence[Cell], options: CompareOptions) -> None:
        self._cells, self._options = cells, options
        self._waits = False
        self._logged: set[Path] = {cell.folder for cell in cells if cell.finished}
        if self._logged:
            logger.info("%d of %d cells are already finished", len(self._logged), len(cells))

    def check(self) -> None:
        """Log the cells that have ended since the last call."""
        for cell in self._cells:
            if cell.folder in self._logged or is_open(cell, self._options.retry_before):
                continue
            metrics, failure = cell.metrics(), cell.failure()
            if metrics is not None:
                result = "  ".join(f"{name} {metrics['test'][name]:.4f}" for name in SHOWN)
                self._log(logging.INFO, cell, result)
            elif failure is not None:
                self._log(logging.WARNING, cell, f"failed: {failure['reason']}")

    def wait(self, count: int) -> None:
        """Log once that other workers hold all remaining cells."""
        if not self._waits:
            self._waits = True
            logger.info("other workers run the remaining cells (%d); waiting", count)

    def _log(self, level: int, cell: Cell, result: str) -> None:
        self._logged.add(cell.folder)
        logger.log(level, "%d/%d  %s  %s", len(self._logged), len(self._cells), cell.title, result)


def run_cells(
    cells: Sequence[Cell],
    options: CompareOptions,
    progress: Progress = NoProgress(),
    callbacks: Sequence[Callback] = (),
) -> None:
    """Run all cells in this process, next to any other workers, until none is open."""
    log = CellLog(cells, options)
    while remaining := [cell for cell in cells if is_open(cell, options.retry_before)]:
        if not any(_run_if_free(cell, options, progress, callbacks) for cell in remaining):
            log.wait(len(remaining))
            time.sleep(POLL)
        log.check()
    log.check()


def _run_if_free(cell: Cell, options: CompareOptions, progress: Progress, callbacks: Sequence[Callback]) -> bool:
    """Run a cell, and record a failure; False if another worker runs it."""
    lock = try_lock(cell.lock_file)
    if lock is None:
        return False
    try:
        if is_open(cell, options.retry_before):  # still: another worker may have finished it before it was locked
            logger.info("%s", cell.title)
            failed = cell.failed_file.exists()
            cell.failed_file.unlink(missing_ok=True)
            features = features_folder(options.features, cell)
            run_cell(cell, features, from_scratch=failed, progress=progress, callbacks=callbacks)
    except Exception as error:
        _write_failure(cell, error)
    finally:
        if cell.finished:
            unlock(lock)
        else:
            lock.release()
    return True


def _write_failure(cell: Cell, error: Exception) -> None:
    known = isinstance(error, InputError)
    reason = " ".join(str(error).split())
    record: dict[str, Any] = {
        "reason": reason if known else f"{type(error).__name__}: {reason}",
        "traceback": None if known else "".join(traceback.format_exception(error)),
        "data": str(cell.data.folder),
        "settings": cell.settings.model_dump(mode="json"),
        "host": socket.gethostname(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_json(cell.failed_file, record)


def file_time(folder: Path) -> float:
    """The time of the folder's file system, whose clock all machines share."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        return os.fstat(probe.fileno()).st_mtime


def run_in_processes(cells: Sequence[Cell], options: CompareOptions, jobs: int) -> int:
    """`run_cells` in `jobs` processes, which share the free cores unless the user set OMP_NUM_THREADS.

    Returns:
        The number of processes that died for another reason than a failed cell, such as a lack of memory.
    """
    log = CellLog(cells, options)
    jobs = min(jobs, sum(is_open(cell, options.retry_before) for cell in cells))
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    workers = [context.Process(target=_worker, args=(list(cells), options, stop)) for _ in range(jobs)]
    # A worker inherits that Ctrl-C is ignored: it could arrive during its imports. `stop` interrupts it in its turn.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with shared_cores(max(1, jobs)):
        for worker in workers:
            worker.start()
    signal.signal(signal.SIGINT, handler)
    try:
        while alive := [worker.sentinel for worker in workers if worker.is_alive()]:
            wait(alive, POLL)
            log.check()
    except KeyboardInterrupt:
        stop.set()
        for worker in workers:
            worker.join()
        raise
    log.check()
    if any(worker.exitcode == INTERRUPTED for worker in workers):
        raise KeyboardInterrupt
    return sum(worker.exitcode != 0 for worker in workers)


def _worker(cells: list[Cell], options: CompareOptions, stop: Event) -> None:
    """The main function of a process of `run_in_processes`; it logs nothing and ends when the first process does."""
    logging.disable()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        threading.Thread(target=_follow, args=(stop,), daemon=True).start()  # may interrupt at once
        run_cells(cells, options)
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


def _follow(stop: Event) -> None:
    """Interrupt this process when the first process asks for it or has ended."""
    parent = multiprocessing.parent_process()  # of the start: it may have ended meanwhile
    while parent is not None and parent.is_alive() and not stop.wait(POLL):
        pass
    _thread.interrupt_main(signal.SIGTERM)
