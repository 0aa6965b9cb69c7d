"""Run the cells of a grid: skip finished ones, resume interrupted ones, record failures."""

from __future__ import annotations

import logging
import socket
import time
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from msm4sr.data.dataset import load_dataset
from msm4sr.errors import InputError, reason_of
from msm4sr.executors import Executor, Lost
from msm4sr.experiments.grid import Cell, check_settings, features_folder
from msm4sr.experiments.machine import use_threads_of
from msm4sr.experiments.metrics import evaluate_stage
from msm4sr.experiments.run import RunLocked, begin_run, locked_run, plan_run, resume_run
from msm4sr.experiments.stages import build_model, extract_stage, train_stage
from msm4sr.files import full_disk, make_folder, remove, write_json
from msm4sr.locks import locked
from msm4sr.models.registry import MODELS
from msm4sr.progress import NoProgress, Progress
from msm4sr.training.callbacks import TrainingProgress
from msm4sr.training.stages import STAGES

logger = logging.getLogger(__name__)

GRID_LOCK = ".compare.lock"
ENDING = 60.0  # seconds in which a process that was interrupted, or whose machine was lost, releases the lock of a cell
SHOWN = ("ndcg@10", "recall@10")  # metrics of a finished cell


def locked_grid(folder: Path) -> AbstractContextManager[None]:
    """Lock a grid during the block. Raises InputError if another process runs it."""
    advice = "wait until it ends. To run cells side by side, use --jobs or --ray"
    return locked(folder / GRID_LOCK, f"{folder}: another process runs this grid; {advice}")


def run_cells(
    cells: Sequence[Cell],
    features: Path,
    executor: Executor,
    progress: Progress = NoProgress(),
    *,
    retry_failed: bool = False,
) -> int:
    """Run the cells that are neither finished nor failed; with `retry_failed` failed ones as well.

    A failed cell is resumed or, for wrong input or with other settings now, begun again. A cell that fails is recorded
    in its folder and stops no other. The grid must be locked.

    Args:
        features: has a features folder for each data set.

    Returns:
        How many cells were lost: their processes died again and again, or another process works on them.
    """
    finished = [cell for cell in cells if cell.finished]
    failed = [cell for cell in cells if cell.failure()]
    if finished:
        logger.info("%d of %d cells are already finished", len(finished), len(cells))
    for cell in failed:
        if retry_failed:
            _forget_failure(cell)
        else:
            _log(cell, cells)
    kept = [*finished, *([] if retry_failed else failed)]
    lost = 0
    runner = CellRunner(features, any(MODELS[cell.settings.model.name].uses_features for cell in cells))
    for cell, result in executor.run(runner, [cell for cell in cells if cell not in kept], progress):
        if isinstance(result, Lost):
            lost += 1
            logger.warning("%s  %s", cell.title, result.reason)
        elif result.failure is None and not cell.finished:
            lost += 1
            elsewhere = f"it ended on {result.host}, but is not in {cell.folder} here"
            logger.warning("%s  %s", cell.title, result.locked or elsewhere)
        else:
            if result.failure is not None:
                make_folder(cell.folder)
                write_json(cell.failed_file, result.failure)
            _log(cell, cells)
    return lost


def _forget_failure(cell: Cell) -> None:
    """Let a failed cell be resumed or, for wrong input or with other settings now, begun again.

    Raises RunLocked if another process works on it.
    """
    with locked_run(cell.folder):
        failure = cell.failure() or {}
        try:
            check_settings(cell, None)
            resumes = failure.get("traceback") is not None
        except InputError:
            resumes = False
        remove(cell.failed_file if resumes else cell.folder)


def _log(cell: Cell, cells: Sequence[Cell]) -> None:
    """Log how a cell ended."""
    ended = sum(other.finished or other.failed_file.exists() for other in cells)
    metrics, failure = cell.metrics(), cell.failure()
    if metrics is not None:
        result = "  ".join(f"{name} {metrics['test'][name]:.4f}" for name in SHOWN)
        logger.info("%d/%d  %s  %s", ended, len(cells), cell.title, result)
    elif failure is not None:
        logger.warning("%d/%d  %s  failed: %s", ended, len(cells), cell.title, failure["reason"])


@dataclass(frozen=True)
class Ended:
    """How a cell ended in a worker."""

    host: str
    failure: dict[str, Any] | None = None  # the content of `failed.json`
    locked: str = ""  # that another process works on it


@dataclass(frozen=True)
class CellRunner:
    """The task of a worker: run a cell.

    The first process records a failure: a worker that is interrupted, since that one was, may raise anything. A full
    disk is no failure of the cell: it is raised, and the cell is resumed the next time.
    """

    features: Path  # with a features folder for each data set
    extract_content: bool  # in every cell, since a row of the grid needs the features: lists are compared by content

    def __call__(self, cell: Cell, progress: Progress) -> Ended:
        host = socket.gethostname()
        try:
            with locked_run(cell.folder, ENDING):
                if not cell.finished:
                    run_cell(cell, features_folder(self.features, cell), progress, self.extract_content)
        except RunLocked as error:
            return Ended(host, locked=str(error))
        except Exception as error:
            if (full := full_disk(error)) is not None:
                raise full from error
            return Ended(host, _failure(cell, error, host))
        return Ended(host)


def run_cell(
    cell: Cell, features: Path, progress: Progress = NoProgress(), extract_content: bool = False
) -> dict[str, Any]:
    """Run one cell and return its metrics; an existing run is resumed."""
    settings, threads = cell.settings, torch.get_num_threads()
    precomputed = cell.row.precomputed_files(cell.data.name, cell.seed)
    dataset = load_dataset(cell.data.folder, settings.dataset)
    begun = (cell.folder / "config.yaml").exists()
    if begun:
        run = resume_run(cell.data.folder, cell.folder, settings, features, precomputed)
        use_threads_of(run.checkpoints)
    else:
        run = plan_run(cell.data.folder, cell.folder, settings, cell.row.preset, features, True, precomputed)
    try:
        model = build_model(settings, dataset, extract_stage(run, dataset, progress))
        if not begun:
            begin_run(run, dataset.identity)
        for stage in STAGES:
            train_stage(run, stage, dataset, model, [TrainingProgress(progress, cell.title, lines=False)], resume=True)
        return evaluate_stage(run, dataset, model, extract_content=extract_content)
    finally:
        torch.set_num_threads(threads)  # those of an interrupted cell are not those of the next


def _failure(cell: Cell, error: Exception, host: str) -> dict[str, Any]:
    return {
        "reason": reason_of(error),
        "traceback": None if isinstance(error, InputError) else "".join(traceback.format_exception(error)),
        "data": str(cell.data.folder),
        "settings": cell.settings.model_dump(mode="json"),
        "host": host,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
