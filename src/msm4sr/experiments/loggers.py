"""Logging to TensorBoard, MLflow or Weights & Biases."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from msm4sr.errors import InputError, first_line
from msm4sr.training.callbacks import Callback, EpochRecord, StepRecord, TrainingPlan

logger = logging.getLogger(__name__)

# From name to the modules that it needs; of those in one tuple, one suffices.
LOGGERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "tensorboard": (("tensorboard", "tensorboardX"),),
    "mlflow": (("mlflow",), ("sqlalchemy",), ("alembic",)),
    "wandb": (("wandb",),),
}


class Logger(Protocol):
    """Where the metrics of one stage go."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None: ...

    def close(self, succeeded: bool) -> None: ...


class TensorBoardLogger:
    """Event files in `folder`/logs/tensorboard."""

    def __init__(self, folder: Path, stage: str) -> None:
        from lightning_fabric.loggers.tensorboard import TensorBoardLogger as FabricLogger

        self._logger = FabricLogger(root_dir=folder / "logs", name="tensorboard", version="")

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self._logger.log_metrics(metrics, step)

    def close(self, succeeded: bool) -> None:
        self._logger.finalize("success" if succeeded else "failed")


class MLflowLogger:
    """A run of the experiment `folder.name`, on the server that MLFLOW_TRACKING_URI names.

    Without that variable, an SQLite file in `folder`/logs is used.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        file = folder.absolute() / "logs" / "mlflow.db"
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{file}"
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._client = MlflowClient(uri)
            name = folder.absolute().name
            found = self._client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self._client.create_experiment(name)
            self._run = self._client.create_run(experiment, run_name=stage).info.run_id
        except MlflowException as error:
            raise InputError(f"--log mlflow: {uri}: {first_line(error)}; check MLFLOW_TRACKING_URI") from None

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self, succeeded: bool) -> None:
        self._client.set_terminated(self._run, "FINISHED" if succeeded else "FAILED")


class WandbLogger:
    """A run of the project `msm4sr`; its files are in `folder`/logs/wandb, with WANDB_MODE=offline nowhere else."""

    def __init__(self, folder: Path, stage: str) -> None:
        import wandb

        logs = folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        name = f"{folder.absolute().name} {stage}"
        try:
            self._run: Any = wandb.init(project="msm4sr", name=name, dir=str(logs), reinit="create_new")
        except wandb.Error as error:
            raise InputError(
                f"--log wandb: {first_line(error)}; run `wandb login`, or set WANDB_MODE=offline to log to {logs} only"
            ) from None
        # wandb's own step may not decrease, but an epoch is logged after the steps in it
        self._run.define_metric("*", step_metric="step")

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self._run.log({**metrics, "step": step})

    def close(self, succeeded: bool) -> None:
        self._run.finish(exit_code=0 if succeeded else 1)


_CLASSES: dict[str, Callable[[Path, str], Logger]] = {
    "tensorboard": TensorBoardLogger,
    "mlflow": MLflowLogger,
    "wandb": WandbLogger,
}


def check_logger(name: str | None) -> None:
    """InputError for a name that is not in `LOGGERS`, or when packages are missing: it names them; None is fine."""
    if name is None:
        return
    if name not in LOGGERS:
        raise InputError(f"--log: there is no logger {name!r}, only {', '.join(LOGGERS)}")
    if missing := missing_packages(name):
        raise InputError(f"--log {name}: {' and '.join(missing)} not installed: pip install 'msm4sr[{name}]'")


def missing_packages(name: str) -> list[str]:
    """The modules that must be installed for the logger of that name."""
    return [modules[0] for modules in LOGGERS[name] if not any(map(find_spec, modules))]


def make_logger(name: str, folder: Path, stage: str) -> Logger:
    """The logger of that name for a stage of the run in `folder`. Raises as `check_logger`, or if it cannot start."""
    check_logger(name)
    return _CLASSES[name](folder, stage)


class LoggerCallback(Callback):
    """Logs losses, speed and validation metrics of each stage, and at its end whether it succeeded.

    Args:
        make: returns the logger of a stage; called with the name of the stage when its training starts.
    """

    def __init__(self, make: Callable[[str], Logger]) -> None:
        self._make = make
        self._logger: Logger | None = None

    def on_start(self, plan: TrainingPlan) -> None:
        self._logger = self._make(plan.stage)

    def on_step(self, record: StepRecord) -> None:
        self._log({f"{record.stage}/step_loss": record.loss}, record.steps)

    def on_epoch_end(self, record: EpochRecord, improved: bool) -> None:
        values = {"loss": record.loss, "pairs_per_second": record.pairs_per_second} | record.validation
        # MLflow accepts no @ in a name
        named = {f"{record.stage}/{name.replace('@', '_at_')}": value for name, value in values.items()}
        self._log(named, record.epoch)

    def on_end(self, error: BaseException | None) -> None:
        if self._logger is not None:
            self._send(partial(self._logger.close, succeeded=error is None))
            self._logger = None

    def _log(self, metrics: dict[str, float], step: int) -> None:
        if self._logger is not None:
            self._send(partial(self._logger.log_metrics, metrics, step))

    def _send(self, work: Callable[[], None]) -> None:
        """A server that fails does not end the training: the rest of the stage is not logged."""
        try:
            work()
        except Exception as error:
            logger.warning("--log failed (%s): the rest of this stage is not logged", first_line(error))
            self._logger = None
