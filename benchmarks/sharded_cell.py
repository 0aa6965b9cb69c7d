"""A row of `sharded.py`, in processes of its own: started by it with a JSON argument."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.distributed as dist
from steps import BriefTrainer, Limit
from torch import Tensor

from msm4sr.data.dataset import Dataset
from msm4sr.experiments.machine import memory_status
from msm4sr.experiments.settings import RunSettings, resolve_settings
from msm4sr.models.base import Inputs
from msm4sr.models.registry import build
from msm4sr.ragged import Ragged
from msm4sr.training.callbacks import EpochRecord
from msm4sr.training.sharding import shard_here
from msm4sr.training.stages import task_for
from msm4sr.training.task import TrainingBatch
from msm4sr.training.trainer import TrainerOptions

WARMUP = 2  # steps
INTERVAL = 0.005  # seconds between two samples of the memory
CALM = ("model.dropout=0", "model.attention_dropout=0", "model.dim=64", "device.accelerator=cpu")


class Peak(threading.Thread):
    """The most memory that this process has allocated, in MiB, sampled. Pages of mapped files do not count."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._peak = 0.0
        self.start()

    def run(self) -> None:
        while True:
            self._peak = max(self._peak, memory_status("RssAnon") or 0.0)
            time.sleep(INTERVAL)

    def take(self) -> float:
        """The peak since the last call."""
        peak, self._peak = self._peak, 0.0
        return peak


class MeasuredTrainer(BriefTrainer):
    """Keeps the loss and the end of every step, and the peak memory of the steps."""

    losses: list[Tensor]
    ends: list[float]
    memory: Peak
    peak: float

    def _step(self, batch: TrainingBatch) -> Tensor:
        loss = super()._step(batch)
        self.losses.append(loss)
        self.ends.append(time.perf_counter())
        return loss

    def _validate_epoch(self) -> EpochRecord:
        self.peak = self.memory.take()
        return super()._validate_epoch()


def dataset_of(folder: Path, n_items: int) -> Dataset:
    """The generated histories; ids are all the same, to take no memory."""
    histories = Ragged(np.load(folder / "values.npy"), np.load(folder / "offsets.npy"))
    names = pl.DataFrame({"item_id": []})
    return Dataset(folder, ["user"] * len(histories), ["item"] * n_items, histories, names, {})


def measure(settings: RunSettings, folder: Path, n_items: int, steps: int) -> dict[str, Any] | None:
    """Losses, speed, and the memory of each process; None in other processes than the first."""
    device, memory = settings.device, Peak()
    if not device.is_first:
        device.connect()
    dataset = dataset_of(folder, n_items)
    model = build(settings.model, Inputs(n_items, shard=shard_here()), settings.seed)
    build_peak = memory.take()
    task = task_for(model, "finetune", settings)
    assert task is not None
    checkpoints = folder / f"by_{device.processes}"
    trainer = MeasuredTrainer(task, settings.finetune, TrainerOptions(device=device, checkpoints=checkpoints))
    trainer.limit, trainer.used, trainer.losses, trainer.ends = Limit(steps), [], [], []
    trainer.memory = memory
    trainer.fit(dataset)
    seconds = time.perf_counter() - trainer.ends[-1]
    peaks: list[list[float]] = [[]] * device.processes
    own = [build_peak, trainer.peak, memory.take()]
    losses = torch.stack(trainer.losses)
    if device.processes > 1:
        dist.all_gather_object(peaks, own)
        dist.all_reduce(losses)
    else:
        peaks = [own]
    pairs = sum(int(batch.mask.sum()) for batch in trainer.used[WARMUP:])
    by_part = dict(zip(("build", "steps", "end"), zip(*peaks, strict=True), strict=True))
    speed = pairs / (trainer.ends[-1] - trainer.ends[WARMUP - 1])
    result = {"losses": (losses / device.processes).tolist(), "speed": speed, "seconds": seconds, **by_part}
    return result if device.is_first else None


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    changes = [*CALM, f"device.devices={options['processes']}", "finetune.epochs=1", "finetune.checkpoint_every=1e9"]
    resolved = resolve_settings("best", "sasrec", [*changes, *options["changes"]])
    result = measure(resolved, Path(options["folder"]), options["items"], options["steps"])
    if result is not None:
        print(json.dumps(result))
