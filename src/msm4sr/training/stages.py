"""The stages of training: which task a model has in each, and one call to train it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeGuard

from msm4sr.data.dataset import Dataset
from msm4sr.errors import InputError
from msm4sr.models.base import Model
from msm4sr.models.msm4sr import MSM4SR
from msm4sr.training.callbacks import Callback, EpochRecord
from msm4sr.training.settings import FinetuneSettings, PretrainSettings
from msm4sr.training.task import TASKS, Task
from msm4sr.training.tasks.end_to_end import EndToEndTask
from msm4sr.training.trainer import Trainer, TrainerOptions

STAGES = (PretrainSettings.stage, FinetuneSettings.stage)


class TrainingSettings(Protocol):
    """The settings of all stages."""

    @property
    def pretrain(self) -> PretrainSettings: ...
    @property
    def finetune(self) -> FinetuneSettings: ...


def has_stage(model: Model, stage: str, settings: TrainingSettings) -> bool:
    """Whether a model is trained in a stage by these settings."""
    if settings.pretrain.end_to_end and stage == "pretrain" and can_transfer(model):
        return False
    trained = any(weight.requires_grad for weight in model.parameters())
    return getattr(settings, stage).epochs > 0 and stage in model.tasks and trained


def can_transfer(model: Model) -> TypeGuard[MSM4SR]:
    """Whether pre-training uses content only, which transfers to other data and can be part of fine-tuning."""
    return model.tasks.get("pretrain") == EndToEndTask.pretraining_task


def task_for(model: Model, stage: str, settings: TrainingSettings) -> Task | None:
    """The task that a model is trained for in a stage; None if model or settings have no such stage.

    Raises:
        InputError: the settings do not fit the model.
    """
    if not has_stage(model, stage, settings):
        return None
    if settings.pretrain.end_to_end:
        if can_transfer(model):
            return EndToEndTask(model, settings.finetune, settings.pretrain)
        if stage == "pretrain":
            raise InputError("pretrain.end_to_end is for msm4sr only; skip the stage with pretrain.epochs=0")
    name = model.tasks[stage]
    return TASKS.find(name, f"{type(model).__name__}.tasks")(model, getattr(settings, stage))


def pretrain(
    model: Model,
    dataset: Dataset,
    settings: PretrainSettings = PretrainSettings(),
    options: TrainerOptions = TrainerOptions(),
    callbacks: Iterable[Callback] = (),
) -> list[EpochRecord]:
    """Pre-train a model on the training parts of the histories; the weights of the best epoch remain in it.

        pretrain(model, load_dataset("shop"), PretrainSettings(epochs=20))

    Args:
        model: changed in place.
        dataset: its training part is learned, its validation part selects the best epoch.
        settings: of the stage.
        options: seed, device, checkpoints.
        callbacks: are called at every epoch, such as `TrainingProgress`.

    Returns:
        A record of each epoch.

    Raises:
        InputError: the model has no pre-training; or as `Trainer.fit`.
    """
    return _train(model, dataset, "pretrain", _Settings(pretrain=settings), options, callbacks)


def finetune(
    model: Model,
    dataset: Dataset,
    settings: FinetuneSettings = FinetuneSettings(),
    options: TrainerOptions = TrainerOptions(),
    callbacks: Iterable[Callback] = (),
) -> list[EpochRecord]:
    """Fine-tune a model on the training parts of the histories; the weights of the best epoch remain in it.

        finetune(model, load_dataset("shop"), FinetuneSettings(epochs=20))

    Args:
        model: changed in place.
        dataset: its training part is learned, its validation part selects the best epoch.
        settings: of the stage.
        options: seed, device, checkpoints.
        callbacks: are called at every epoch, such as `TrainingProgress`.

    Returns:
        A record of each epoch.

    Raises:
        InputError: the model has nothing to train; or as `Trainer.fit`.
    """
    return _train(model, dataset, "finetune", _Settings(finetune=settings), options, callbacks)


@dataclass(frozen=True)
class _Settings:
    """`TrainingSettings` of which one stage is trained."""

    pretrain: PretrainSettings = PretrainSettings()
    finetune: FinetuneSettings = FinetuneSettings()


def _train(
    model: Model,
    dataset: Dataset,
    stage: str,
    settings: _Settings,
    options: TrainerOptions,
    callbacks: Iterable[Callback],
) -> list[EpochRecord]:
    task, of_stage = task_for(model, stage, settings), getattr(settings, stage)
    if task is not None:
        return Trainer(task, of_stage, options, callbacks).fit(dataset)
    if of_stage.epochs:
        raise InputError(f"{stage}: {type(model).__name__} has no such stage")
    return []
