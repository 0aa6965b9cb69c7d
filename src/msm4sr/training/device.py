"""Devices, precision and processes of training, through Lightning Fabric."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from pydantic import Field
from torch import Tensor

from msm4sr.errors import InputError
from msm4sr.strict import Strict
from msm4sr.threads import count_of, shared_cores

Gather = Callable[[Tensor, Sequence[int]], Tensor]
"""Maps rows [n, ...] of this process, and the number of rows of each process, to the rows of all, concatenated.
Gradients flow back to the process that a row came from. With a single number, every process has all rows."""

AnyBatch = TypeVar("AnyBatch")


class ConnectedEnvironment(LightningEnvironment):
    """Processes that are connected already, by whatever started them: this package, torchrun, SLURM or Ray Train."""

    creates_processes_externally = True

    def world_size(self) -> int:
        return dist.get_world_size()

    def global_rank(self) -> int:
        return dist.get_rank()

    def local_rank(self) -> int:
        return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))

    def set_world_size(self, size: int) -> None:
        if size != (there := dist.get_world_size()):
            started = count_of(there, "process", "processes")
            raise InputError(f"device.devices x device.num_nodes is {size}, but {started} started; make them equal")

    def set_global_rank(self, rank: int) -> None:
        """It is known."""


class Device(Strict):
    """Accelerator, precision and processes, as Lightning Fabric takes them."""

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto: a GPU if there is one")
    precision: Literal["32-true", "bf16-mixed"] = Field("32-true", description="of products; weights are float32")
    devices: int = Field(1, ge=1, description="processes on this machine, each with a device (or a share of the CPU)")
    num_nodes: int = Field(1, ge=1, description="machines; start the command on each, or use torchrun, SLURM, ...")
    compile: bool = Field(
        False, description="compile the training step (torch.compile, for GPUs): MSM4SR and SASRec in one process"
    )

    @property
    def processes(self) -> int:
        """The number of processes on all machines."""
        return self.devices * self.num_nodes

    def torch_device(self) -> torch.device:
        """The device that the accelerator names."""
        return Fabric(accelerator=self.accelerator, devices=1).device

    @property
    def is_first(self) -> bool:
        """Whether this process prepares data, prints and writes; known before `connect`."""
        if self.processes == 1:
            return True
        if dist.is_initialized():
            return dist.get_rank() == 0
        fabric = self.fabric()
        return fabric.local_rank == 0 and fabric.node_rank == 0

    def connect(self) -> Fabric:
        """Start the other processes, unless a launcher did, and wait until all are connected.

        Lightning Fabric starts them with the command of this process, so they reach this call by the same code.
        """
        fabric = self.fabric()
        if self.processes > 1 and not dist.is_initialized():
            atexit.register(_disconnect)  # else threads of gloo may still run when the process ends, and abort it
        if self.devices == 1 or dist.is_initialized():
            fabric.launch()
            return fabric
        with shared_cores(self.devices) as threads:
            fabric.launch()
        if threads is not None:
            torch.set_num_threads(threads)
        return fabric

    def check(self) -> None:
        """Raises InputError if this machine lacks the requested devices."""
        there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not there.get(self.accelerator, True):
            raise InputError(f"device.accelerator: no {self.accelerator} device found; use auto")
        if self.compile and self.processes > 1:
            raise InputError("device.compile: only a single process can compile its steps; use false")
        if self.torch_device().type == "cuda" and self.devices > torch.cuda.device_count():
            raise InputError(
                f"device.devices: {self.devices} processes need a GPU each, but only {torch.cuda.device_count()} found"
            )

    def fabric(self) -> Fabric:
        """A Fabric that has not started other processes yet. Raises InputError as `check` does."""
        self.check()
        strategy: DDPStrategy | str = "auto"
        if self.processes > 1:
            # Pre-training does not train all weights (the ID embedding), and a batch may not use every weight (the
            # missing-modality embedding). Buffers are frozen features: equal in all processes, and large.
            strategy = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
        return Fabric(
            accelerator=self.accelerator,
            devices=self.devices,
            num_nodes=self.num_nodes,
            precision=self.precision,
            strategy=strategy,
            plugins=[ConnectedEnvironment()] if dist.is_initialized() else [],
        )


def _disconnect() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def gather_own(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """The gather of a single process."""
    return rows


def gather_with(fabric: Fabric) -> Gather:
    """The gather of these processes; their numbers of rows may differ. All of them must make it.

    It has a process group of its own: DDP sums gradients as soon as they are there, and if a process does not use some
    of its weights, this is not at the same point between two gathers as in the others.
    """
    group = dist.new_group() if fabric.world_size > 1 else None

    def gather(rows: Tensor, counts: Sequence[int]) -> Tensor:
        if len(counts) == 1:
            return rows
        padding = (0, 0) * (rows.dim() - 1) + (0, max(counts) - len(rows))
        everything = all_gather(fabric, F.pad(rows, padding), group)  # [processes, longest, ...]
        return torch.cat([part[:count] for part, count in zip(everything, counts, strict=True)])

    return gather


def all_gather(fabric: Fabric, tensor: Tensor, group: Any = None) -> Tensor:
    """Tensors of one shape from all processes: [...] to [processes, ...]. Gradients flow back."""
    if fabric.world_size == 1:
        return tensor.unsqueeze(0)
    return fabric.all_gather(tensor, group, sync_grads=True)  # type: ignore[return-value]


def shares(batch: AnyBatch, processes: int) -> list[AnyBatch]:
    """Each process's rows of a batch (a dataclass of tensors with rows first); the batch alone if it has too few rows.

    The shares are contiguous: concatenated they are the batch.
    """
    tensors = {field.name: getattr(batch, field.name) for field in fields(batch)}  # type: ignore[arg-type]
    rows = min(len(tensor) for tensor in tensors.values())
    if processes == 1 or rows < processes:
        return [batch]
    parts = (slice(rows * rank // processes, rows * (rank + 1) // processes) for rank in range(processes))
    return [type(batch)(**{name: tensor[part] for name, tensor in tensors.items()}) for part in parts]


def join(parts: Sequence[AnyBatch]) -> AnyBatch:
    """The batch that `shares` has divided."""
    names = [field.name for field in fields(parts[0])]  # type: ignore[arg-type]
    return type(parts[0])(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def rank_here() -> int:
    """The rank of this process among those that train together; 0 for a single process."""
    if dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))


def is_lost_connection(error: BaseException) -> bool:
    """Whether a collective operation failed because another process has ended."""
    return dist.is_initialized() and (isinstance(error, dist.DistError) or "gloo" in str(error))


def first_is_gone(seconds: float = 20.0) -> bool:
    """Whether the first process, if it has started this one, ends within so many seconds."""
    if {"TORCHELASTIC_RUN_ID", "SLURM_PROCID"} & os.environ.keys():
        return False  # started by a launcher, which collects the output of the processes
    parent, until = os.getppid(), time.monotonic() + seconds
    while os.getppid() == parent != 1 and time.monotonic() < until:
        time.sleep(0.1)
    return os.getppid() != parent or parent == 1


def generator_states(fabric: Fabric, generator: torch.Generator) -> dict[str, Tensor]:
    """The states of all processes' generators, [processes, bytes] each: torch's own, the device's, and `generator`."""
    states = {"cpu": torch.get_rng_state(), "task": generator.get_state()}
    if fabric.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(fabric.device)
    return {name: all_gather(fabric, state.to(fabric.device)).cpu() for name, state in states.items()}


def set_generator_states(fabric: Fabric, generator: torch.Generator, states: dict[str, Tensor]) -> None:
    """Restore this process's generators from `generator_states`, of another number of processes `generator` alone."""
    generator.set_state(states["task"][0].clone())  # the same in all processes
    if len(states["cpu"]) != fabric.world_size:
        return
    own: dict[str, Any] = {name: state[fabric.global_rank].clone() for name, state in states.items()}
    torch.set_rng_state(own["cpu"])
    if "cuda" in own:
        torch.cuda.set_rng_state(own["cuda"], fabric.device)
