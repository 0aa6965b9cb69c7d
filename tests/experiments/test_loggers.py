"""Loggers of a training: what they are given, and what TensorBoard, MLflow and Weights & Biases then have."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from builders import make_dataset

from msm4sr.errors import InputError
from msm4sr.experiments import loggers
from msm4sr.experiments.loggers import LoggerCallback, make_logger
from msm4sr.experiments.run import Run
from msm4sr.experiments.settings import resolve_settings
from msm4sr.experiments.stages import train_stage
from msm4sr.models.base import Inputs
from msm4sr.models.baselines.sasrec import SASRec
from msm4sr.training.callbacks import Callback, EpochRecord, StepRecord, TrainingPlan


class FakeLogger:
    """A logger that remembers."""

    def __init__(self) -> None:
        self.metrics: list[tuple[int | None, dict[str, float]]] = []
        self.succeeded: list[bool] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.metrics.append((step, metrics))

    def close(self, succeeded: bool) -> None:
        self.succeeded.append(succeeded)


def log_training(callback: Callback, error: BaseException | None = None, stage: str = "finetune") -> None:
    callback.on_start(TrainingPlan(stage, 2, 10, 30))
    callback.on_step(StepRecord(stage, 4, 40, 2.5, 1000.0))
    callback.on_epoch_end(EpochRecord(stage, 4, 2.25, 1.0, 900.0, {"ndcg@10": 0.5}), True)
    callback.on_end(error)


def test_a_logger_gets_steps_and_epochs_by_names_that_all_loggers_accept() -> None:
    logger = FakeLogger()
    log_training(LoggerCallback(lambda stage: logger))
    epoch = {"finetune/loss": 2.25, "finetune/pairs_per_second": 900.0, "finetune/ndcg_at_10": 0.5}
    assert logger.metrics == [(40, {"finetune/step_loss": 2.5}), (4, epoch)]
    assert logger.succeeded == [True]


def test_each_stage_has_a_logger_of_its_own() -> None:
    made: dict[str, FakeLogger] = {}
    callback = LoggerCallback(lambda stage: made.setdefault(stage, FakeLogger()))
    for stage in ("pretrain", "finetune"):
        log_training(callback, stage=stage)
    assert {stage: (len(logger.metrics), logger.succeeded) for stage, logger in made.items()} == {
        "pretrain": (2, [True]),
        "finetune": (2, [True]),
    }


@pytest.mark.parametrize("error", [FloatingPointError("the loss became nan"), KeyboardInterrupt()])
def test_a_failed_and_an_interrupted_training_are_reported_as_failed(error: BaseException) -> None:
    logger = FakeLogger()
    log_training(LoggerCallback(lambda stage: logger), error)
    assert logger.succeeded == [False]


@pytest.mark.parametrize("broken", ["log_metrics", "close"])
def test_a_server_that_goes_away_does_not_end_the_training(broken: str, caplog: pytest.LogCaptureFixture) -> None:
    class Unreachable(FakeLogger):
        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            if broken == "log_metrics":
                raise ConnectionError("the server is gone")
            super().log_metrics(metrics, step)

        def close(self, succeeded: bool) -> None:
            raise ConnectionError("the server is gone")

    log_training(LoggerCallback(lambda stage: Unreachable()))
    assert [record.message for record in caplog.records] == [
        "--log failed (the server is gone): the rest of this stage is not logged"
    ]


def test_every_logger_of_a_training_that_fails_is_closed_as_failed(tmp_path: Path) -> None:
    made = [FakeLogger(), FakeLogger()]
    callbacks = [LoggerCallback(lambda stage, logger=logger: logger) for logger in made]  # type: ignore[misc]
    dataset = make_dataset([[0, 1, 2, 3, 4]] * 4, 5)
    changes = ["finetune.learning_rate=1e30", "finetune.epochs=5", "model.dim=8", "device.accelerator=cpu"]
    settings = resolve_settings("seed", "sasrec", changes)
    run = Run(tmp_path, tmp_path, tmp_path, "seed", settings)
    with pytest.raises(FloatingPointError):
        train_stage(run, "finetune", dataset, SASRec(settings.model, Inputs(5)), callbacks)
    assert [logger.succeeded for logger in made] == [[False], [False]]


def test_tensorboard_finds_the_metrics_in_the_run_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    log_training(LoggerCallback(partial(make_logger, "tensorboard", tmp_path)))
    (events,) = (tmp_path / "logs" / "tensorboard").glob("events*")
    assert b"finetune/ndcg_at_10" in events.read_bytes()


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data: after item i comes item i + 1."""
    folder = tmp_path_factory.mktemp("data") / "ring"
    folder.mkdir()
    events = [(f"u{u}", f"i{(u + step) % 12}", step) for u in range(20) for step in range(6)]
    frame = pl.DataFrame(events, schema=["user_id", "item_id", "timestamp"], orient="row")
    frame.write_parquet(folder / "interactions.parquet")
    return folder


def command(folder: Path, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command of msm4sr in a process of its own, since these libraries keep threads and processes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "MLFLOW_"))}
    environment = kept | {"HOME": str(folder), "NETRC": str(folder / "netrc"), "COLUMNS": "300", "TERM": "dumb"}
    environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", **variables}
    words = [sys.executable, "-m", "msm4sr", *map(str, arguments)]
    return subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=folder
    )


def run_logged(folder: Path, data: Path, logger: str, **variables: str) -> list[dict[str, Any]]:
    """Run `msm4sr run --log` with `shop` in `folder` as run folder; the rows of its `metrics.jsonl`."""
    options = ("--model", "sasrec", "--set", "finetune.epochs=2", "--set", "model.dim=8", "--preset", "seed")
    done = command(folder, "run", data, "--out", "shop", *options, "--log", logger, **variables)
    assert done.returncode == 0, done.stdout
    return [json.loads(line) for line in (folder / "shop" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_mlflow_has_the_metrics_of_a_run(tmp_path: Path, ring: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    rows = run_logged(tmp_path, ring, "mlflow")
    client = MlflowClient(f"sqlite:///{tmp_path}/shop/logs/mlflow.db")
    experiment = client.get_experiment_by_name("shop")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("finetune", "FINISHED")
    for logged, column in (("loss", "loss"), ("ndcg_at_10", "ndcg@10")):
        history = client.get_metric_history(run.info.run_id, f"finetune/{logged}")
        assert {one.step: one.value for one in history} == {row["epoch"]: row[column] for row in rows}


@pytest.mark.slow
def test_mlflow_logs_where_its_variable_says(tmp_path: Path, ring: Path) -> None:
    pytest.importorskip("mlflow")
    run_logged(tmp_path, ring, "mlflow", MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/shared.db")
    assert (tmp_path / "shared.db").is_file()
    assert not (tmp_path / "shop" / "logs" / "mlflow.db").exists()
    refused = command(tmp_path, "finetune", "shop", "--log", "mlflow", MLFLOW_TRACKING_URI="no-such-kind://server")
    assert refused.returncode == 2
    assert "error: --log mlflow: no-such-kind://server: " in refused.stdout
    assert refused.stdout.rstrip().endswith("check MLFLOW_TRACKING_URI")


def wandb_records(folder: Path) -> Iterator[Any]:
    """The records of the one offline run in a folder, whose file is in LevelDB's log format after a header."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, place, content = file.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while place < len(data):
        if (left := 2**15 - place % 2**15) < 7:  # the rest of a block that no record header fits into
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)  # after a checksum
        content += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # complete, or the last part
            record = Record()
            record.ParseFromString(content)
            yield record
            content = b""


@pytest.mark.slow
def test_wandb_has_the_metrics_of_a_run(tmp_path: Path, ring: Path) -> None:
    pytest.importorskip("wandb")
    rows = run_logged(tmp_path, ring, "wandb", WANDB_MODE="offline")
    records = list(wandb_records(tmp_path / "shop" / "logs"))
    (run,) = (record.run for record in records if record.HasField("run"))
    assert (run.project, run.display_name) == ("msm4sr", "shop finetune")
    history = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    logged = [(one["step"], one["finetune/loss"], one["finetune/ndcg_at_10"]) for one in history]
    assert logged == [(row["epoch"], row["loss"], row["ndcg@10"]) for row in rows]
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]


@pytest.mark.slow
def test_wandb_without_a_key_says_how_to_log_in_or_offline(tmp_path: Path, ring: Path) -> None:
    pytest.importorskip("wandb")
    done = command(tmp_path, "run", ring, "--out", "shop", "--model", "sasrec", "--log", "wandb")
    assert done.returncode == 2
    assert "error: --log wandb: " in done.stdout
    assert "run `wandb login`, or set WANDB_MODE=offline to log to shop/logs only" in done.stdout


@pytest.mark.parametrize("name", loggers.LOGGERS)
def test_a_logger_whose_package_is_missing_is_an_error_that_names_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda module: None)
    with pytest.raises(InputError, match=rf"--log {name}: .* not installed: pip install 'msm4sr\[{name}\]'"):
        make_logger(name, tmp_path, "finetune")


def test_an_unknown_logger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no logger 'excel', only tensorboard, mlflow, wandb"):
        make_logger("excel", tmp_path, "finetune")
