"""Run by `test_sharding.py`: train models whose ID embeddings several processes divide.

    python sharded_training.py PROCESSES FOLDER CASE,CASE [STOP]

FOLDER/CASE receives `checkpoints` and, by the first process, `steps.json`: the loss of every step, and the rows of the
table that each process trained. A training whose checkpoints are there is resumed. With STOP, every process ends itself
by SIGKILL after so many steps in all, right after a checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from builders import make_dataset, make_msm4sr, make_sasrec, random_sequences

from msm4sr.models.base import FactorizedModel
from msm4sr.training.device import Device
from msm4sr.training.settings import FinetuneSettings, PretrainSettings, StageSettings
from msm4sr.training.stages import task_for
from msm4sr.training.task import Task, TrainingBatch
from msm4sr.training.trainer import Trainer, TrainerOptions

N_ITEMS = 203  # not a multiple of the numbers of processes
DATASET = make_dataset(random_sequences(60, N_ITEMS, 12), N_ITEMS)
COMMON: dict[str, Any] = {"epochs": 2, "batch_pairs": 40, "weight_decay": 0.01, "max_gradient_norm": 0.5}
FINETUNING = FinetuneSettings(candidates="sampled", samples=30, learning_rate=3e-3, averaging=True, **COMMON)
PRETRAINING = PretrainSettings(learning_rate=3e-3, **COMMON)


STAGES = SimpleNamespace(pretrain=PRETRAINING, finetune=FINETUNING)


def case(name: str) -> tuple[FactorizedModel, StageSettings, Task]:
    """A new model, and its task in a stage."""
    model: FactorizedModel = make_msm4sr(N_ITEMS)
    if name in ("sasrec", "dropout"):
        model = make_sasrec(N_ITEMS, dropout=0.3 if name == "dropout" else 0.0)
    settings: StageSettings = PRETRAINING if name == "pretraining" else FINETUNING
    task = task_for(model, settings.stage, STAGES)
    assert task is not None
    return model, settings, task


class Observed(Trainer):
    """Keeps the loss of every step, and stops this process when asked to."""

    losses: list[float]
    stop: int = 0

    def _step(self, batch: TrainingBatch) -> Tensor:
        if self.stop and self.state.steps == self.stop:
            self._save_last()
            if dist.is_initialized():
                dist.barrier()
            os.kill(os.getpid(), signal.SIGKILL)
        loss = super()._step(batch)
        self.losses.append(float(self._mean(loss)[0]))
        return loss


def main(processes: int, folder: Path, cases: str, stop: int = 0) -> None:
    for name in cases.split(","):
        model, settings, task = case(name)
        checkpoints = folder / name / "checkpoints"
        device = Device(accelerator="cpu", devices=processes)
        options = TrainerOptions(device=device, checkpoints=checkpoints, resume=True)
        trainer = Observed(task, settings, options)
        trainer.losses, trainer.stop = [], stop
        rows: list[int] = []
        task.register_forward_pre_hook(lambda *_, model=model, rows=rows: rows.append(len(model.item_embedding.weight)))
        records = trainer.fit(DATASET)
        sizes = [0] * processes
        if processes > 1:
            dist.all_gather_object(sizes, max(rows, default=0))
        if trainer.fabric.is_global_zero:
            assert model.encode_items().shape[0] == N_ITEMS
            result = {"losses": trainer.losses, "rows": sizes, "records": [record.as_row() for record in records]}
            (folder / name / "steps.json").write_text(json.dumps(result))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:]))
