"""Logging to TensorBoard, MLflow or Weights & Biases, through the loggers of Lightning."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from msm4sr.errors import InputError
from msm4sr.training.callbacks import Callback, EpochRecord, StepRecord

# From name to the module of the logger (Fabric's own, or Lightning's, which Fabric accepts too), its class, and the
# packages it needs (name to install: names to import, one of which suffices).
LOGGERS: dict[str, tuple[str, str, dict[str, tuple[str, ...]]]] = {
    "tensorboard": ("lightning_fabric.loggers", "TensorBoardLogger", {"tensorboard": ("tensorboard", "tensorboardX")}),
    "mlflow": (
        "pytorch_lightning.loggers",
        "MLFlowLogger",
        {"pytorch-lightning": ("pytorch_lightning",), "mlflow": ("mlflow",)},
    ),
    "wandb": (
        "pytorch_lightning.loggers",
        "WandbLogger",
        {"pytorch-lightning": ("pytorch_lightning",), "wandb": ("wandb",)},
    ),
}


class Logger(Protocol):
    """What we use of Lightning's loggers."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None: ...
    def finalize(self, status: str) -> None: ...


def check_logger(name: str | None) -> None:
    """InputError for a name that is not in `LOGGERS`, or when packages are missing: it names them; None is fine."""
    if name is None:
        return
    if name not in LOGGERS:
        raise InputError(f"--log: there is no logger {name!r}, only {', '.join(LOGGERS)}")
    if missing := missing_packages(name):
        raise InputError(f"--log {name}: a package is not installed: pip install {' '.join(missing)}")


def missing_packages(name: str) -> list[str]:
    """What must be installed for the logger of that name."""
    return [package for package, modules in LOGGERS[name][2].items() if not any(map(find_spec, modules))]


def make_logger(name: str, folder: Path) -> Logger:
    """The logger of that name, which writes under `folder`/logs. Raises as `check_logger`."""
    check_logger(name)
    module, kind, _ = LOGGERS[name]
    logs = folder / "logs"
    arguments: dict[str, dict[str, Any]] = {
        "tensorboard": {"root_dir": logs, "name": "tensorboard", "version": ""},
        "mlflow": {"experiment_name": folder.name, "save_dir": str(logs / "mlflow")},
        "wandb": {"project": "msm4sr", "name": folder.name, "save_dir": str(logs)},
    }
    logger: Logger = getattr(import_module(module), kind)(**arguments[name])
    return logger


class LoggerCallback(Callback):
    """Logs losses, speed and validation metrics, and at the end whether the training succeeded."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger

    def on_step(self, record: StepRecord) -> None:
        self._logger.log_metrics({f"{record.stage}/step_loss": record.loss}, record.steps)

    def on_epoch_end(self, record: EpochRecord, improved: bool) -> None:
        values = {"loss": record.loss, "pairs_per_second": record.pairs_per_second} | record.validation
        # MLflow accepts no @ in a name
        named = {f"{record.stage}/{name.replace('@', '_at_')}": value for name, value in values.items()}
        self._logger.log_metrics(named, record.epoch)

    def on_end(self, error: BaseException | None) -> None:
        # Lightning's loggers know these two: an interrupted training counts as failed.
        self._logger.finalize("success" if error is None else "failed")
