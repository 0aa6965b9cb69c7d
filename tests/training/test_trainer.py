"""The trainer on a model of one number: which weights are kept, when it stops, what it draws, what callbacks see."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest
import torch
from builders import make_dataset
from pydantic import ValidationError
from torch import Tensor, nn

from msm4sr.data.batches import Batch
from msm4sr.errors import InputError
from msm4sr.training.callbacks import Callback, EpochRecord, StepRecord, TrainingPlan
from msm4sr.training.device import Device
from msm4sr.training.settings import StageSettings
from msm4sr.training.task import Task
from msm4sr.training.trainer import Trainer, TrainerOptions, schedule_factor

CPU = Device(accelerator="cpu")
ONE_PAIR = Batch(torch.zeros(1, 1).long(), torch.zeros(1, 1).long(), torch.ones(1, 1).bool())
DATASET = make_dataset([[0, 1, 2, 3]], 4)


class Toy(StageSettings):
    stage: ClassVar[str] = "toy"


class Number(nn.Module):
    """The loss is `slope * weight`; with dropout, a random one. It records the weight of every step."""

    def __init__(self, slope: float = -1.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.slope = slope
        self.dropout = nn.Dropout(dropout)
        self.noise = False
        self.fail_at: tuple[int, BaseException | float] | None = None
        self.seen: list[float] = []

    def forward(self, draw: Tensor) -> Tensor:
        self.seen.append(float(self.weight.detach()))
        loss = (self.dropout(torch.ones(8)) * self.slope * self.weight).mean()
        if self.noise:
            loss = loss * draw
        if self.fail_at and len(self.seen) == self.fail_at[0]:
            if isinstance(self.fail_at[1], BaseException):
                raise self.fail_at[1]
            return loss * self.fail_at[1]
        return loss


class NumberTask(Task):
    """So many steps per epoch, of so many that are announced."""

    def __init__(self, model: Number, steps: int, announced: int | None = None) -> None:
        super().__init__(model)  # type: ignore[arg-type]
        self.steps, self.announced = steps, steps if announced is None else announced

    def prepare(self, parts: Sequence[Batch], rank: int, generator: torch.Generator) -> Tensor:
        return torch.rand((), generator=generator)

    def forward(self, step: Tensor) -> Tensor:
        return self.model(step)  # type: ignore[no-any-return]

    def batches(self, *arguments: Any) -> Iterator[Batch]:
        return iter([ONE_PAIR] * self.steps)

    def count_batches(self, *arguments: Any) -> int:
        return self.announced


class ToyTrainer(Trainer):
    """Validation gives these results, one after another."""

    def __init__(self, *arguments: Any, validation: list[float] | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.results = iter(validation if validation is not None else [0.0] * 1000)

    def validate(self) -> dict[str, float]:
        return {"mrr": next(self.results), "recall@5": 0.5}


class Recorder(Callback):
    """Records what it is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.best: list[int] = []

    def on_start(self, plan: TrainingPlan) -> None:
        self.calls.append(("start", plan.stage, plan.epochs, plan.steps_per_epoch))

    def on_step(self, record: StepRecord) -> None:
        self.calls.append(("step", record.epoch, record.steps))

    def on_best(self, record: EpochRecord) -> None:
        self.best.append(record.epoch)

    def on_epoch_end(self, record: EpochRecord, improved: bool) -> None:
        self.calls.append(("epoch", record.epoch, improved))

    def on_end(self, error: BaseException | None) -> None:
        self.calls.append(("end", type(error)))


def train(
    model: Number,
    validation: list[float] | None = None,
    steps: int = 3,
    seed: int = 0,
    callbacks: tuple[Callback, ...] = (),
    **settings: Any,
) -> list[EpochRecord]:
    """Train with these validation results, one after another."""
    chosen = Toy(**({"epochs": len(validation or [1, 2, 3]), "select": "mrr"} | settings))
    options = TrainerOptions(seed=seed, device=CPU)
    trainer = ToyTrainer(NumberTask(model, steps), chosen, options, callbacks, validation=validation)
    return trainer.fit(DATASET)


def weight_of(model: Number) -> float:
    return float(model.weight.detach())


# The best weights


def test_the_weights_of_the_best_epoch_are_left_in_the_model() -> None:
    model, recorder = Number(), Recorder()
    train(model, [0.1, 0.3, 0.2, 0.3, 0.0], callbacks=(recorder,))
    assert recorder.best == [1, 2]  # as good as the best is not better
    assert weight_of(model) == model.seen[2 * 3]  # what epoch 3 began with
    assert weight_of(model) < model.seen[-1]
    assert not model.training


def test_the_metric_that_chooses_is_the_one_of_the_settings() -> None:
    model = Number()
    train(model, [0.1, 0.2, 0.3], select="recall@5")  # the same in every epoch: the first is the best
    assert weight_of(model) == model.seen[3]


def test_each_epoch_has_a_record_with_loss_speed_and_validation() -> None:
    model = Number(slope=-2.0)
    records = train(model, [0.1, 0.2])
    assert [(r.stage, r.epoch, r.validation["mrr"]) for r in records] == [("toy", 1, 0.1), ("toy", 2, 0.2)]
    assert records[0].loss == pytest.approx(-2 * sum(model.seen[:3]) / 3, rel=1e-5)
    assert records[0].pairs_per_second > 0
    row = records[1].as_row()
    assert row["mrr"] == 0.2
    assert "validation" not in row
    assert {"stage", "epoch", "loss", "seconds", "pairs_per_second", "recall@5"} <= row.keys()


def test_no_epoch_leaves_the_model_as_it_was() -> None:
    model = Number()
    assert train(model, epochs=0) == []
    assert weight_of(model) == 0


# Stopping


def test_training_stops_after_so_many_validations_without_a_better_one() -> None:
    records = train(Number(), [0.1, 0.3, 0.2, 0.3, 0.2, 0.9], patience=3)
    assert [r.epoch for r in records] == [1, 2, 3, 4, 5]


def test_a_better_validation_resets_the_patience() -> None:
    records = train(Number(), [0.3, 0.2, 0.4, 0.3, 0.2, 0.9], patience=2)
    assert [r.epoch for r in records] == [1, 2, 3, 4, 5]


def test_validation_takes_place_every_so_many_epochs_and_at_the_last() -> None:
    records = train(Number(), [0.1, 0.2, 0.3], epochs=5, validate_every=2)
    assert [r.epoch for r in records if r.validation] == [2, 4, 5]


def test_a_bound_on_steps_is_kept_in_complete_epochs_and_allows_at_least_one() -> None:
    assert len(train(Number(), epochs=5, steps=3, max_steps=7)) == 2
    assert len(train(Number(), epochs=5, steps=3, max_steps=2)) == 1
    assert len(train(Number(), epochs=5, steps=3, max_steps=100)) == 5


def test_patience_counts_validations_not_epochs() -> None:
    records = train(Number(), [0.3, 0.2, 0.1, 0.0, 0.0, 0.0], epochs=12, validate_every=2, patience=2)
    assert len(records) == 6


# Interruptions and divergence


def test_an_interruption_keeps_the_best_weights_and_is_passed_on() -> None:
    model, recorder = Number(), Recorder()
    model.fail_at = (8, KeyboardInterrupt())  # in the middle of epoch 3
    with pytest.raises(KeyboardInterrupt):
        train(model, [0.2, 0.1, 0.3], callbacks=(recorder,))
    assert recorder.best == [1]
    assert weight_of(model) == model.seen[3]
    assert not model.training
    assert recorder.calls[-1] == ("end", KeyboardInterrupt)


def test_an_interruption_before_any_validation_gives_back_the_first_weights() -> None:
    model = Number()
    model.fail_at = (3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(model, [0.1])
    assert model.seen[-1] != 0
    assert weight_of(model) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("step", [1, 5, 12])
def test_a_loss_that_is_not_finite_is_an_error_that_says_what_to_try(value: float, step: int) -> None:
    model, recorder = Number(), Recorder()
    with torch.no_grad():
        model.weight.fill_(1.0)
    model.fail_at = (step, value)
    with pytest.raises(FloatingPointError, match=r"toy: the loss became .* epoch 1, .* lower toy\.learning_rate"):
        train(model, [0.1], steps=12, callbacks=(recorder,))
    assert math.isfinite(weight_of(model))
    assert recorder.calls[-1] == ("end", FloatingPointError)


def test_no_pair_to_train_on_is_an_input_error() -> None:
    with pytest.raises(InputError, match="no pair to train on"):
        train(Number(), [0.1], steps=0)


# What is drawn


def noisy(seed: int, disturb: int | None = None) -> list[float]:
    model = Number(dropout=0.5)
    model.noise = True
    if disturb is not None:
        torch.manual_seed(disturb)
    train(model, [0.1, 0.2, 0.3], seed=seed)
    return model.seen


def test_a_seed_makes_the_same_training_whatever_was_drawn_before() -> None:
    assert noisy(seed=5, disturb=1) == noisy(seed=5, disturb=2)
    assert noisy(seed=5) != noisy(seed=6)


def test_every_epoch_draws_other_numbers() -> None:
    model = Number(dropout=0.5)
    records = train(model, [0.1, 0.2, 0.3], learning_rate=1e-9)
    with torch.no_grad():
        model.weight.fill_(1.0)
    records = train(model, [0.1, 0.2, 0.3], learning_rate=1e-9)
    assert len({r.loss for r in records}) > 1


def test_the_random_state_of_the_caller_is_as_it_was_after_training() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    noisy(seed=5)
    assert torch.equal(torch.rand(4), expected)


# Steps


def steps_of(model: Number) -> list[float]:
    """How far the weight moved in each step but the last."""
    return [b - a for a, b in zip(model.seen, model.seen[1:], strict=False)]


def test_a_constant_rate_moves_the_same_way_every_step() -> None:
    model = Number()
    train(model, [0.1] * 4, learning_rate=0.01)
    assert steps_of(model) == pytest.approx([0.01] * 11, rel=1e-3)  # Adam with one slope: the rate itself


def test_the_cosine_schedule_of_a_short_training_warms_up_over_a_quarter_and_ends_near_zero() -> None:
    model = Number()
    train(model, [0.1] * 4, steps=5, learning_rate=0.01, schedule="cosine")
    moved = steps_of(model)
    assert moved[:5] == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.01], rel=1e-3)
    assert max(moved) == pytest.approx(0.01, rel=1e-3)
    assert moved[5:] == sorted(moved[5:], reverse=True)
    assert moved[12] > 0.005 > moved[13]  # half way
    assert moved[-1] < 5e-4


@pytest.mark.parametrize(("steps", "warmup"), [(300, 75), (1000, 100), (4000, 200)])
def test_the_cosine_schedule_warms_up_for_100_steps_or_a_twentieth(steps: int, warmup: int) -> None:
    factor = schedule_factor("cosine", steps)
    assert [factor(step) < factor(step + 1) for step in range(warmup + 1)] == [True] * (warmup - 1) + [False] * 2
    assert factor(warmup - 1) == 1


def test_more_steps_than_announced_do_not_raise_a_cosine_schedule_again() -> None:
    model = Number()
    settings = Toy(epochs=2, schedule="cosine", learning_rate=0.01, select="mrr")
    ToyTrainer(NumberTask(model, 30, announced=20), settings, TrainerOptions(device=CPU)).fit(DATASET)
    assert steps_of(model)[40:] == pytest.approx([0.0] * 19, abs=1e-6)


def test_long_gradients_are_scaled_down_to_the_norm_of_the_settings() -> None:
    norms = []
    model = Number(slope=-1000.0)
    model.register_forward_pre_hook(
        lambda *_: norms.append(None if model.weight.grad is None else float(model.weight.grad.norm()))
    )
    train(model, [0.1], steps=4, max_gradient_norm=2.0)
    assert norms[1:] == pytest.approx([2.0] * 3, rel=1e-4)
    short = Number(slope=-0.5)
    train(short, [0.1], steps=2, max_gradient_norm=2.0)
    assert short.weight.grad is not None
    assert float(short.weight.grad.norm()) == pytest.approx(0.5)


def test_weight_decay_pulls_a_weight_without_slope_to_zero() -> None:
    model = Number(slope=0.0)
    with torch.no_grad():
        model.weight.fill_(1.0)
    train(model, [0.1], weight_decay=0.1, learning_rate=0.01)
    assert weight_of(model) == pytest.approx(0.97, abs=1e-3)


# Callbacks


def test_callbacks_see_steps_and_epochs_in_order() -> None:
    recorder = Recorder()
    train(Number(), [0.2, 0.1], steps=20, callbacks=(recorder,))
    assert recorder.calls == [
        ("start", "toy", 2, 20),
        ("step", 1, 10),
        ("step", 1, 20),
        ("epoch", 1, True),
        ("step", 2, 30),
        ("step", 2, 40),
        ("epoch", 2, False),
        ("end", type(None)),
    ]


class Failing(Callback):
    def on_epoch_end(self, record: EpochRecord, improved: bool) -> None:
        raise RuntimeError("a callback fails")


def test_an_error_of_a_callback_ends_the_training_and_every_callback_gets_it() -> None:
    model, recorder = Number(), Recorder()
    with pytest.raises(RuntimeError, match="a callback fails"):
        train(model, [0.2, 0.1], callbacks=(Failing(), recorder))
    assert recorder.calls[-1] == ("end", RuntimeError)
    assert recorder.best == [1]
    assert weight_of(model) > model.seen[-1]


@pytest.mark.parametrize(
    "settings", [{"epochs": -1}, {"learning_rate": 0}, {"select": "recall@7"}, {"pairs": "some"}, {"lr": 1e-3}]
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Toy(**settings)
