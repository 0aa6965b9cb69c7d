"""Where else a training may be watched: TensorBoard, MLflow, Weights & Biases, through the loggers of Lightning."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from msm4sr.errors import InputError
from msm4sr.training.trainer import EpochRecord, Monitor

# name: the module of the logger (Fabric's own, or Lightning's, which Fabric takes too), its class, and what must be
# installed, by the names to install and to import
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
    """What we ask of Lightning's loggers."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None: ...
    def finalize(self, status: str) -> None: ...


def check_logger(name: str) -> None:
    """InputError for a name that is none of `LOGGERS`, or where packages are missing: it names them."""
    if name not in LOGGERS:
        raise InputError(f"--log: there is no logger {name!r}, only {', '.join(LOGGERS)}")
    packages = LOGGERS[name][2]
    missing = [package for package, modules in packages.items() if not any(map(find_spec, modules))]
    if missing:
        raise InputError(f"--log {name}: what it needs is not installed: pip install {' '.join(missing)}")


def make_logger(name: str, folder: Path) -> Logger:
    """The logger of that name, which writes under `folder`/logs. Raises as `check_logger` does."""
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


class Logged:
    """Tells a logger what a monitor is told, and passes all on."""

    def __init__(self, logger: Logger, monitor: Monitor) -> None:
        self._logger, self._monitor = logger, monitor
        self._steps = 0

    def start(self, stage: str, epochs: int, steps: int, done: int) -> None:
        self._steps = done
        self._monitor.start(stage, epochs, steps, done)

    def step(self, stage: str, epoch: int, loss: float, steps: int, pairs_per_second: float) -> None:
        self._steps += steps
        self._logger.log_metrics({f"{stage}/step_loss": loss}, self._steps)
        self._monitor.step(stage, epoch, loss, steps, pairs_per_second)

    def epoch(self, record: EpochRecord, best: bool) -> None:
        told = {"loss": record.loss, "pairs_per_second": record.pairs_per_second} | record.validation
        # MLflow takes no @ in a name
        named = {f"{record.stage}/{name.replace('@', '_at_')}": value for name, value in told.items()}
        self._logger.log_metrics(named, record.epoch)
        self._monitor.epoch(record, best)

    def finish(self, stage: str) -> None:
        self._logger.finalize("success")
        self._monitor.finish(stage)
