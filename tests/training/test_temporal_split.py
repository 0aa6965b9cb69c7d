"""With a temporal split no interaction after a cut-off influences training: another future, the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from builders import tiny_config, training_inputs
from temporal import DAY, LOG, Event, load, with_other_future

from msm4sr.data.dataset import Dataset
from msm4sr.evaluation.evaluate import evaluate
from msm4sr.models.base import Model
from msm4sr.models.registry import MODELS, build
from msm4sr.training.device import Device
from msm4sr.training.settings import FinetuneSettings, PretrainSettings
from msm4sr.training.stages import finetune, pretrain
from msm4sr.training.trainer import TrainerOptions

VALIDATION, TEST = 5 * DAY, 7 * DAY
OPTIONS = TrainerOptions(device=Device(accelerator="cpu"))


def trained(name: str, dataset: Dataset, epochs: int) -> tuple[Model, list[dict[str, Any]]]:
    """A model after all of its stages, and the lines of their epochs without seconds."""
    model = build(tiny_config(name), training_inputs(dataset), seed=0)
    records = []
    if "pretrain" in model.tasks:
        records += pretrain(model, dataset, PretrainSettings(epochs=epochs, batch_pairs=16), OPTIONS)
    if "finetune" in model.tasks:
        records += finetune(model, dataset, FinetuneSettings(epochs=epochs, batch_pairs=16), OPTIONS)
    return model, [{"loss": record.loss, "stage": record.stage, **record.validation} for record in records]


def same_state(one: Model, other: Model) -> bool:
    """Equal weights, and all else that the models keep: popularity counts, graph edges, nearest neighbours."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def datasets(tmp_path: Path) -> Any:
    def both(log: list[Event], begin: int) -> list[Dataset]:
        logs = {"true": log, "other": with_other_future(log, begin)}
        return [load(rows, tmp_path / name, targets="all") for name, rows in logs.items()]

    return both


@pytest.mark.parametrize("name", MODELS)
def test_permuting_the_test_part_changes_no_weight_and_no_choice(name: str, datasets: Any) -> None:
    dataset, other = datasets(LOG, TEST)
    (model, epochs), (same, same_epochs) = trained(name, dataset, 3), trained(name, other, 3)
    assert epochs == same_epochs, "loss and validation of every epoch"
    assert same_state(model, same)
    assert evaluate(model, dataset, "test") != evaluate(same, other, "test"), "else nothing was permuted"


@pytest.mark.parametrize("name", MODELS)
def test_users_who_come_after_training_change_no_loss(name: str, tmp_path: Path) -> None:
    later = [(f"later-{user}", f"i{user}", TEST + DAY) for user in range(5)]
    losses = []
    for folder, log in (("without", LOG), ("with", LOG + later)):
        _, epochs = trained(name, load(log, tmp_path / folder, targets="all"), 2)
        losses.append([epoch["loss"] for epoch in epochs])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", MODELS)
def test_permuting_validation_and_test_changes_no_step(name: str, datasets: Any) -> None:
    """With one epoch a stage there is nothing for validation to select."""
    dataset, other = datasets(LOG, VALIDATION)
    (model, epochs), (same, same_epochs) = trained(name, dataset, 1), trained(name, other, 1)
    assert [epoch["loss"] for epoch in epochs] == [epoch["loss"] for epoch in same_epochs]
    assert same_state(model, same)
    assert evaluate(model, dataset, "validation") != evaluate(same, other, "validation")
