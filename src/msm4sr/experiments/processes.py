"""Processes that a launcher (`torchrun`, `fabric run`) has started to share work."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch import distributed

TIMEOUT = timedelta(days=7)  # a process that has finished its share waits; the default is half an hour


@dataclass(frozen=True)
class Processes:
    """This process is number `rank`, from 0, of `count`."""

    rank: int
    count: int

    def wait(self) -> None:
        """Wait for all processes."""
        distributed.barrier()


def launched() -> Processes | None:
    """Connect the processes, each with its own GPU if there are some; None for a single process.

    They are connected by Gloo on every device, since they only wait for each other.
    """
    if not TorchElasticEnvironment.detect():
        return None
    environment = TorchElasticEnvironment()
    if environment.world_size() == 1:
        return None
    if torch.cuda.is_available():
        torch.cuda.set_device(environment.local_rank() % torch.cuda.device_count())
    distributed.init_process_group("gloo", timeout=TIMEOUT)
    return Processes(environment.global_rank(), environment.world_size())
