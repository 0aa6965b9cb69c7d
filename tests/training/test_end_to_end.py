"""Both losses at every step, on the same histories."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from builders import (
    finetune_loss,
    generator,
    make_dataset,
    make_model,
    make_msm4sr,
    pretrain_loss,
    ragged,
    random_sequences,
)

from msm4sr.errors import InputError
from msm4sr.training.checkpoint import weights_of
from msm4sr.training.device import Device
from msm4sr.training.settings import FinetuneSettings, PretrainSettings
from msm4sr.training.stages import task_for
from msm4sr.training.tasks.end_to_end import DoubleBatch, EndToEndTask
from msm4sr.training.trainer import Trainer, TrainerOptions

N_ITEMS = 12
SEQUENCES = random_sequences(30, N_ITEMS, longest=9)


@dataclass
class Stages:
    pretrain: PretrainSettings = field(default_factory=PretrainSettings)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)


TOGETHER = Stages(PretrainSettings(end_to_end=True, cmcl_weight=0.5, drop=0.6), FinetuneSettings(batch_pairs=20))


def the_batches(settings: Stages = TOGETHER) -> list[DoubleBatch]:
    task = task_for(make_msm4sr(), "finetune", settings)
    assert isinstance(task, EndToEndTask)
    return list(task.batches(ragged(SEQUENCES), settings.finetune, np.random.default_rng(3)))


def test_the_loss_is_the_sum_of_both() -> None:
    model = make_msm4sr()
    task = task_for(model, "finetune", TOGETHER)
    assert task is not None
    for batch in the_batches():
        loss = task(task.prepare([batch], 0, generator()))
        both = finetune_loss(model, batch.complete) + pretrain_loss(model, batch.kept, TOGETHER.pretrain, generator())
        torch.testing.assert_close(loss, both)


def test_the_kept_items_are_of_the_same_rows_and_the_complete_rows_have_all_items() -> None:
    batches = the_batches()
    assert len(batches) > 3
    pairs, dropped = 0, 0
    for batch in batches:
        pairs += int(batch.mask.sum())
        for row in range(len(batch.items)):
            complete = batch.items[row][batch.mask[row]].tolist()
            kept = batch.kept_items[row][batch.kept_mask[row]].tolist()
            rest = iter(complete)
            assert all(item in rest for item in kept), "the kept items are a subsequence"
            assert kept
            dropped += len(complete) - len(kept)
    assert pairs == sum(len(s) - 1 for s in SEQUENCES)
    assert dropped > 10


def test_every_weight_is_trained_in_one_stage_the_projections_and_the_ids_included() -> None:
    model = make_msm4sr()
    assert task_for(model, "pretrain", TOGETHER) is None
    before, task = weights_of(model), task_for(model, "finetune", TOGETHER)
    assert task is not None
    settings = FinetuneSettings(epochs=1, batch_pairs=20, select="mrr")
    dataset = make_dataset(SEQUENCES, N_ITEMS)
    records = Trainer(task, settings, TrainerOptions(device=Device(accelerator="cpu"))).fit(dataset)
    assert [record.stage for record in records] == ["finetune"]
    after = weights_of(model)
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert not still


def test_it_is_refused_without_a_loss_to_add() -> None:
    nothing = Stages(PretrainSettings(end_to_end=True, nip_weight=0, cmcl_weight=0))
    with pytest.raises(InputError, match="there is no other loss"):
        task_for(make_msm4sr(), "finetune", nothing)
    with pytest.raises(InputError, match="end_to_end is for msm4sr only"):
        task_for(make_model("s3rec"), "pretrain", TOGETHER)
