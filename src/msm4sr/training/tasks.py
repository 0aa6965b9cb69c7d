"""Which model is trained for what, in which stage. A model with a task of its own gets an entry here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from msm4sr.errors import InputError
from msm4sr.models.base import FactorizedModel, Model, Scorer
from msm4sr.models.baselines.s3rec import S3Rec
from msm4sr.models.graph_model import GraphModel
from msm4sr.models.msm4sr import MSM4SR
from msm4sr.training.bpr import BPRTask
from msm4sr.training.end_to_end import EndToEndTask
from msm4sr.training.finetune import FinetuneSettings, FinetuneTask
from msm4sr.training.pretrain import PretrainSettings, PretrainTask
from msm4sr.training.s3rec import S3RecTask
from msm4sr.training.stage import Task
from msm4sr.training.trainer import StageSettings

TASKS: Mapping[str, Mapping[type[Any], Callable[[Any, Any], Task]]] = {
    "pretrain": {MSM4SR: PretrainTask, S3Rec: S3RecTask},
    "finetune": {FactorizedModel: FinetuneTask, GraphModel: BPRTask},
}
STAGES = tuple(TASKS)


class Stages(Protocol):
    """The settings of all stages."""

    @property
    def pretrain(self) -> PretrainSettings: ...
    @property
    def finetune(self) -> FinetuneSettings: ...


def task_of(stage: str, model: Model, settings: Stages) -> Task | None:
    """The task of a model in a stage: that of its class, or of the nearest class above. None: it has no such stage."""
    own: StageSettings = getattr(settings, stage)
    tasks = TASKS[stage]
    kind = next((kind for kind in type(model).__mro__ if kind in tasks), None)
    if own.epochs == 0 or kind is None or not any(weight.requires_grad for weight in model.parameters()):
        return None
    if settings.pretrain.end_to_end:
        if isinstance(model, MSM4SR):
            return None if stage == "pretrain" else EndToEndTask(model, settings.finetune, settings.pretrain)
        if stage == "pretrain":
            raise InputError("pretrain.end_to_end is for msm4sr alone; leave the stage out with pretrain.epochs=0")
    return tasks[kind](model, own)


def scorer_of(model: Model, settings: Stages) -> Scorer:
    """Whom evaluation ranks by: the model; where it is not fine-tuned, what its pre-training is validated by."""
    if settings.finetune.epochs:
        return model
    if isinstance(model, MSM4SR):  # whose pre-trained weights may come from another run
        return model.pretrained_scorer()
    task = task_of("pretrain", model, settings)
    return model if task is None else task.scorer
