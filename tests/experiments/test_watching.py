"""Loggers and warnings of a training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import make_dataset

from msm4sr.errors import InputError
from msm4sr.experiments import loggers
from msm4sr.experiments.loggers import LoggerCallback, make_logger
from msm4sr.experiments.run import Run
from msm4sr.experiments.settings import resolve_settings
from msm4sr.experiments.stages import extract_stage, falls_from_the_start, train_stage
from msm4sr.features.extract import Extraction
from msm4sr.features.store import Features
from msm4sr.models.base import Inputs
from msm4sr.models.baselines.sasrec import SASRec
from msm4sr.training.callbacks import Callback, EpochRecord, StepRecord, TrainingPlan

# Loggers


class FakeLogger:
    """A logger that remembers."""

    def __init__(self) -> None:
        self.metrics: list[tuple[int | None, dict[str, float]]] = []
        self.status = ""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics.append((step, metrics))

    def finalize(self, status: str) -> None:
        self.status = status


def log_training(callback: Callback, error: BaseException | None = None) -> None:
    callback.on_start(TrainingPlan("finetune", 2, 10, 30))
    callback.on_step(StepRecord("finetune", 4, 40, 2.5, 1000.0))
    callback.on_epoch_end(EpochRecord("finetune", 4, 2.25, 1.0, 900.0, {"ndcg@10": 0.5}), True)
    callback.on_end(error)


def test_a_logger_gets_steps_and_epochs_by_names_that_all_loggers_accept() -> None:
    logger = FakeLogger()
    log_training(LoggerCallback(logger))
    epoch = {"finetune/loss": 2.25, "finetune/pairs_per_second": 900.0, "finetune/ndcg_at_10": 0.5}
    assert logger.metrics == [(40, {"finetune/step_loss": 2.5}), (4, epoch)]
    assert logger.status == "success"


@pytest.mark.parametrize("error", [FloatingPointError("the loss became nan"), KeyboardInterrupt()])
def test_a_failed_and_an_interrupted_training_are_reported_as_failed(error: BaseException) -> None:
    logger = FakeLogger()
    log_training(LoggerCallback(logger), error)
    assert logger.status == "failed"


def test_every_logger_of_a_training_that_fails_is_finalized_as_failed(tmp_path: Path) -> None:
    dataset = make_dataset([[0, 1, 2, 3, 4]] * 4, 5)
    changes = ["finetune.learning_rate=1e30", "finetune.epochs=5", "model.dim=8", "device.accelerator=cpu"]
    settings = resolve_settings("seed", "sasrec", changes)
    run, loggers = Run(tmp_path, tmp_path, tmp_path, "seed", settings), [FakeLogger(), FakeLogger()]
    callbacks = [LoggerCallback(logger) for logger in loggers]
    with pytest.raises(FloatingPointError):
        train_stage(run, "finetune", dataset, SASRec(settings.model, Inputs(5)), callbacks)
    assert [logger.status for logger in loggers] == ["failed", "failed"]


def test_tensorboard_finds_the_metrics_in_the_run_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    log_training(LoggerCallback(make_logger("tensorboard", tmp_path)))
    (events,) = (tmp_path / "logs" / "tensorboard").glob("events*")
    assert b"finetune/ndcg_at_10" in events.read_bytes()


@pytest.mark.parametrize("name", loggers.LOGGERS)
def test_a_logger_whose_package_is_missing_is_an_error_that_names_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda module: None)
    with pytest.raises(InputError, match=rf"--log {name}: .* not installed: pip install .*{name}"):
        make_logger(name, tmp_path)


def test_an_unknown_logger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no logger 'excel', only tensorboard, mlflow, wandb"):
        make_logger("excel", tmp_path)


# Warnings


@pytest.mark.parametrize(
    ("values", "falls"),
    [
        ([0.3, 0.2, 0.1], True),
        ([0.3, 0.2, 0.1, 0.05], False),  # warned before
        ([0.3, 0.2], False),
        ([0.2, 0.3, 0.1], False),
        ([0.3, 0.2, 0.2], False),
    ],
)
def test_a_validation_that_falls_from_the_first_epoch_on_is_noticed_at_the_third(
    values: list[float], falls: bool
) -> None:
    rows = [{"stage": "pretrain", "mrr": 1.0 - e} for e in range(3)]
    rows += [{"stage": "finetune", "mrr": value} for value in values] + [{"stage": "finetune", "loss": 1.0}]
    assert falls_from_the_start(rows[:-1], "finetune", "mrr") == falls


def test_the_warning_of_a_falling_validation_says_what_to_do_and_appears_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    values = iter([0.5, 0.4, 0.3, 0.2, 0.1])
    monkeypatch.setattr(
        "msm4sr.training.trainer.evaluate",
        lambda *_: dict.fromkeys(("recall@20", "recall@10", "ndcg@10"), next(values)),
    )
    dataset = make_dataset([[0, 1, 2, 3, 4]] * 4, 5)
    settings = resolve_settings("seed", "sasrec", ["finetune.epochs=5", "model.dim=8", "device.accelerator=cpu"])
    run = Run(tmp_path, tmp_path, tmp_path, "seed", settings)
    train_stage(run, "finetune", dataset, SASRec(settings.model, Inputs(5)))
    (warning,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert "recall@20 on validation has fallen since the first epoch" in warning
    assert "lower finetune.learning_rate" in warning


@pytest.mark.parametrize(
    ("there", "said"), [(0, "visual: missing for every item"), (4, "visual: 6 of 10 items lack it; they are "), (5, "")]
)
def test_a_modality_that_most_items_lack_is_warned_of_once_with_what_to_do(
    there: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"i{i}" for i in range(10)]
    offsets = np.minimum(np.arange(11), there)
    found = Features(np.ones((there, 3), dtype=np.float32), offsets, names)
    texts = Features(np.ones((10, 3), dtype=np.float32), np.arange(11), names)
    monkeypatch.setattr(Extraction, "extract", lambda *_, **options: {"text": texts, "visual": found})
    run = Run(tmp_path, tmp_path, tmp_path, "seed", resolve_settings("seed"))
    extract_stage(run, make_dataset([[0, 1, 2]], 10))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == bool(said)
    assert all(said in warning for warning in warnings)
    assert all("items.parquet" not in warning for warning in warnings)  # few can complete thousands of items
    if there == 4:
        assert "trained and ranked with the missing-modality embedding" in warnings[0]
        assert "--set model.score_with=[text]" in warnings[0]
        assert resolve_settings("seed", changes=["model.score_with=[text]"]).model.score_with == ("text",)  # type: ignore
