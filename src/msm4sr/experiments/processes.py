"""The processes that a launcher (`torchrun`, `fabric run`) has started to share a piece of work."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch import distributed

PATIENCE = timedelta(days=7)  # of a process that has done its share; the default gives up after half an hour


@dataclass(frozen=True)
class Processes:
    """This process is number `rank`, from 0, of `count`."""

    rank: int
    count: int

    def wait(self) -> None:
        """Until all are here."""
        distributed.barrier()


def launched() -> Processes | None:
    """All processes, connected, each with a GPU of its own where there are some; None where this one is alone.

    Connected by Gloo, whatever the device: all that they tell each other is that they are done.
    """
    if not TorchElasticEnvironment.detect():
        return None
    environment = TorchElasticEnvironment()
    if environment.world_size() == 1:
        return None
    if torch.cuda.is_available():
        torch.cuda.set_device(environment.local_rank() % torch.cuda.device_count())
    distributed.init_process_group("gloo", timeout=PATIENCE)
    return Processes(environment.global_rank(), environment.world_size())
