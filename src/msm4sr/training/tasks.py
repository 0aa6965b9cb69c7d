"""Which model is trained for what, in which stage. A model with a task of its own gets an entry here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msm4sr.models.base import Model, ProductModel
from msm4sr.models.baselines.s3rec import S3Rec
from msm4sr.models.graph import GraphModel
from msm4sr.models.msm4sr import MSM4SR
from msm4sr.training.bpr import BPRTask
from msm4sr.training.finetune import FinetuneTask
from msm4sr.training.loop import StageSettings
from msm4sr.training.pretrain import PretrainTask
from msm4sr.training.s3rec import S3RecTask
from msm4sr.training.stage import Task

TASKS: Mapping[str, Mapping[type[Any], Callable[[Any, Any], Task]]] = {
    "pretrain": {MSM4SR: PretrainTask, S3Rec: S3RecTask},
    "finetune": {ProductModel: FinetuneTask, GraphModel: BPRTask},
}
STAGES = tuple(TASKS)


def task_of(stage: str, model: Model, settings: StageSettings) -> Task | None:
    """The task of a model in a stage: that of its class, or of the nearest class above. None: it has no such stage."""
    if settings.epochs == 0 or not any(weight.requires_grad for weight in model.parameters()):
        return None
    tasks = TASKS[stage]
    return next((tasks[kind](model, settings) for kind in type(model).__mro__ if kind in tasks), None)
