"""Compilation of the training step: one kernel for many on a GPU, where launching kernels takes most of the time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from msm4sr.errors import InputError
from msm4sr.models.located_items import Limits
from msm4sr.training.settings import StageSettings
from msm4sr.training.task import Task

logger = logging.getLogger(__name__)

SHAPES = 256  # a step of yet another shape is not compiled
PAIRS_UNIT = 64  # the number of pairs is padded to a multiple, as GPUs prefer


def limits_of(task: Task, settings: StageSettings) -> Limits | None:
    """Within what limits a task pads its steps, so that they have few shapes; None: it cannot be compiled."""
    if not task.can_pad:
        logger.info("device.compile: %s of %s is not compiled", settings.stage, type(task.model).__name__)
        return None
    longest = task.model.max_history  # rows are not split, so a batch has up to a row more
    return Limits(-(-(settings.batch_pairs + longest) // PAIRS_UNIT) * PAIRS_UNIT, longest)


@contextmanager
def compiling() -> Iterator[None]:
    """A step is compiled when it first has a shape. Raises InputError if that fails."""
    from torch._dynamo import config  # it takes seconds to import
    from torch._dynamo.exc import TorchDynamoException

    try:
        with config.patch(recompile_limit=SHAPES):
            yield
    except TorchDynamoException as error:
        reason = " ".join(str(error).split("\n")[:2])
        raise InputError(f"device.compile: cannot compile the training step ({reason}); use false") from error
