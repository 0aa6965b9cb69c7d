"""The average of the weights over the last part of a training."""

from __future__ import annotations

import pytest
import torch
from builders import make_dataset, make_sasrec, random_sequences
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from msm4sr.training.averaging import ETA, UPDATES, WeightAverage
from msm4sr.training.callbacks import Callback, EpochRecord
from msm4sr.training.checkpoint import weights_of
from msm4sr.training.device import Device
from msm4sr.training.settings import FinetuneSettings
from msm4sr.training.stages import finetune
from msm4sr.training.trainer import TrainerOptions

CPU = Device(accelerator="cpu")
DATASET = make_dataset(random_sequences(30, 12, 8), 12)


def share_of(update: int, updates: int) -> float:
    """How much an update counts in the average of `updates`: its share when it is added, reduced by each later one."""
    share = (ETA + 1) / (update + ETA)
    for later in range(update + 1, updates + 1):
        share *= 1 - (ETA + 1) / (later + ETA)
    return share


@given(values=st.lists(st.floats(-5, 5), min_size=1, max_size=40), steps_per_epoch=st.integers(1, 35))
def test_the_average_is_over_some_steps_of_each_epoch_and_later_ones_count_more(
    values: list[float], steps_per_epoch: int
) -> None:
    module = nn.Linear(1, 1, bias=False)
    average = WeightAverage(module, steps_per_epoch)
    for step, value in enumerate(values, start=1):
        nn.init.constant_(module.weight, value)
        average.update(step)
    kept = values[:: max(1, steps_per_epoch // UPDATES)]
    expected = sum(share_of(number, len(kept)) * value for number, value in enumerate(kept, start=1))
    with average.in_use():
        assert float(module.weight.detach()) == pytest.approx(expected, abs=1e-4)
    assert float(module.weight.detach()) == pytest.approx(values[-1])


def test_the_shares_are_a_mean_of_about_the_last_ninth() -> None:
    shares = torch.tensor([share_of(update, 900) for update in range(1, 901)])
    assert float(shares.sum()) == pytest.approx(1)
    assert float((shares * torch.arange(1, 901)).sum()) == pytest.approx(900 * 0.9, rel=0.01)
    assert float(shares[:450].sum()) < 0.01


class Best(Callback):
    """The weights that were validated as the best so far."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.weights = model, list[dict[str, torch.Tensor]]()

    def on_best(self, record: EpochRecord) -> None:
        self.weights.append(weights_of(self.model))


def test_a_training_validates_and_keeps_the_average_but_continues_from_the_latest_weights() -> None:
    def trained(averaging: bool) -> tuple[nn.Module, list[EpochRecord], Best]:
        model = make_sasrec(12, dropout=0.0)
        best = Best(model)
        settings = FinetuneSettings(epochs=6, batch_pairs=20, patience=9, learning_rate=0.01, averaging=averaging)
        return model, finetune(model, DATASET, settings, TrainerOptions(device=CPU), [best]), best

    (_, plain, _), (model, averaged, best) = trained(False), trained(True)
    assert [row.loss for row in averaged] == [row.loss for row in plain]
    assert [row.validation for row in averaged] != [row.validation for row in plain]
    assert all(torch.equal(weight, best.weights[-1][name]) for name, weight in weights_of(model).items())
