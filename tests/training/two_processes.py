"""Run by `test_processes.py`: loss and gradients of each case, by as many processes as asked for, into a file."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from builders import generator, make_batch, make_model, make_msm4sr, make_sasrec

from msm4sr.tensor_files import save_tensors
from msm4sr.training.device import Device, gather_with
from msm4sr.training.settings import FinetuneSettings, PretrainSettings
from msm4sr.training.task import Task
from msm4sr.training.tasks.multimodal_contrastive import MultimodalContrastiveTask
from msm4sr.training.tasks.mutual_information import MutualInformationTask
from msm4sr.training.tasks.next_item import NextItemTask
from msm4sr.training.trainer import shared_loss

# Rows of unequal lengths, an item that is next in rows of different processes, the same pair twice.
SEQUENCES = [[10, 1, 5, 0, 7], [2, 3, 4], [6, 8, 5, 11, 1, 3], [9, 5, 7], [2, 3, 4, 1]]
CALM_PRETRAINING = {"mixup": 0.0, "drop": 0.0, "cmcl_weight": 0.5}


def pretraining(
    modalities: tuple[str, ...] = ("text", "visual"), projections: str = "pretrain", **settings: object
) -> MultimodalContrastiveTask:
    model = make_msm4sr(modalities=modalities, projections=projections)
    return MultimodalContrastiveTask(model, PretrainSettings(**(CALM_PRETRAINING | settings)))


CASES: dict[str, tuple[Task, list[list[int]]]] = {
    "pretrain": (pretraining(), SEQUENCES),
    "pretrain within": (pretraining(negatives="within"), SEQUENCES),
    "pretrain without projections": (pretraining(projections="none", negatives="within"), SEQUENCES),
    "pretrain with mixup": (pretraining(mixup=0.5), SEQUENCES),
    "pretrain three modalities": (pretraining(("text", "visual", "audio"), mixup=0.5), SEQUENCES),
    "pretrain contrast alone": (pretraining(nip_weight=0.0), SEQUENCES),
    "pretrain fewer rows than processes": (pretraining(), SEQUENCES[:1]),
    "pretrain s3rec": (MutualInformationTask(make_model("s3rec"), PretrainSettings()), SEQUENCES),
    "finetune": (NextItemTask(make_msm4sr(), FinetuneSettings()), SEQUENCES),
    "finetune sasrec": (NextItemTask(make_sasrec(), FinetuneSettings()), SEQUENCES),
    "finetune one negative": (NextItemTask(make_sasrec(loss="bce"), FinetuneSettings()), SEQUENCES),
    "finetune fewer rows than processes": (NextItemTask(make_sasrec(), FinetuneSettings()), SEQUENCES[:1]),
}


def main(processes: int, file: Path) -> None:
    fabric = Device(accelerator="cpu", devices=processes).connect()
    results: dict[str, Tensor] = {}
    for name, (task, sequences) in CASES.items():
        task.train()
        task.gather = gather_with(fabric)
        forward = fabric.setup_module(task)
        part = shared_loss(fabric, forward, task, make_batch(sequences), generator())
        fabric.backward(part)
        loss = fabric.all_reduce(part.detach().clone(), reduce_op="mean")
        results[f"{name}: loss"] = torch.as_tensor(loss)
        for weight, value in task.named_parameters():
            if value.grad is not None:
                results[f"{name}: {weight}"] = value.grad.clone()
    if fabric.is_global_zero:
        save_tensors(results, file)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
