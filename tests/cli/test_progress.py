"""What the console shows while a model trains: stage, epoch, time left, loss and speed."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from msm4sr.cli.console import progress_bar
from msm4sr.training.callbacks import EpochRecord, StepRecord, TrainingPlan, TrainingProgress


def screen(steps: int) -> str:
    """The bar after `steps` steps of epoch 2 of 4 (10 steps each)."""
    paper = io.StringIO()
    console = Console(file=paper, force_terminal=True, width=100, color_system=None)
    bar = progress_bar()
    bar.live.console = console
    bar.disable = True  # only what this test draws
    callback = TrainingProgress(bar)
    callback.on_start(TrainingPlan("pretrain", 4, 10))
    callback.on_epoch_end(EpochRecord("pretrain", 1, 3.5, 0.5, 12345.6, {"recall@10": 0.25, "ndcg@10": 0.125}), True)
    if steps:
        callback.on_step(StepRecord("pretrain", 2, 10 + steps, 2.75, 9876.5))
    console.print(bar.get_renderable())
    return paper.getvalue()


def test_the_bar_shows_stage_epoch_steps_time_loss_and_speed() -> None:
    bar = screen(5)
    assert "pretrain 2/4" in bar
    assert "15/40" in bar
    assert re.search(r" (-:--:--|\d:\d\d:\d\d) ", bar)  # the time left
    assert "loss 2.750" in bar
    assert "9876 pairs/s" in bar


def test_the_bar_advances_with_epochs_too_short_for_a_report_of_their_steps() -> None:
    bar = screen(0)
    assert "pretrain 1/4" in bar
    assert "10/40" in bar
    assert "loss 3.500" in bar


def test_each_epoch_logs_a_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "msm4sr"):
        screen(5)
    expected = "pretrain 1/4 loss 3.5000 12346 pairs/s recall@10 0.2500 ndcg@10 0.1250 best so far"
    assert [" ".join(line.split()) for line in caplog.messages] == [expected]
