"""Where training computes: devices, precision and processes, all of them Lightning Fabric's."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from msm4sr.errors import InputError

Gather = Callable[[Tensor], tuple[Tensor, slice]]
"""Rows [n, ...] of this process to those of all processes, one after another, and where its own stand in them.
Gradients flow back to the process that a row came from."""

AnyBatch = TypeVar("AnyBatch")


class Device(BaseModel):
    """Where, how precisely and on how many processes to compute; handed to Lightning Fabric."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="auto takes a GPU where there is one"
    )
    precision: Literal["32-true", "bf16-mixed"] = Field("32-true", description="of the products; weights stay float32")
    devices: int = Field(1, ge=1, description="processes on this machine, a device (or on the CPU a share of it) each")
    num_nodes: int = Field(1, ge=1, description="machines; each is started by itself or by torchrun, SLURM, ...")
    compile: bool = Field(False, description="torch.compile the Transformer; on the CPUs that were measured it costs")
    strategy: Literal["auto", "ddp"] = Field("auto", description="auto: ddp where there are several processes")

    @property
    def processes(self) -> int:
        """On all machines."""
        return self.devices * self.num_nodes

    def torch_device(self) -> torch.device:
        """The device that the accelerator names."""
        return Fabric(accelerator=self.accelerator, devices=1).device

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that prepares, speaks and writes; known before `connect`."""
        if self.processes == 1:
            return True
        fabric = self.fabric()
        return fabric.local_rank == 0 and fabric.node_rank == 0

    def connect(self) -> Fabric:
        """Start the other processes, where nobody else does, and wait until all are there.

        Lightning Fabric starts them by the command of this process: they come here by the way that it came.
        """
        fabric = self.fabric()
        fabric.launch()
        return fabric

    def check(self) -> None:
        """InputError where this machine has not what is asked for."""
        there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not there.get(self.accelerator, True):
            raise InputError(
                f"device.accelerator: there is no {self.accelerator} device here; auto takes what there is"
            )
        if self.torch_device().type == "cuda" and self.devices > torch.cuda.device_count():
            raise InputError(
                f"device.devices: {self.devices} processes need a GPU each, there are {torch.cuda.device_count()} here"
            )

    def fabric(self) -> Fabric:
        """Not yet launched, which is what starts the other processes. Raises InputError as `check` does."""
        self.check()
        strategy: DDPStrategy | str = "auto"
        if self.strategy == "ddp" or self.processes > 1:
            # A stage leaves some weights alone (the ID embedding in pre-training), and a batch may lack what others
            # need (a missing picture's stand-in). Buffers are frozen features: equal everywhere, and large.
            strategy = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
        return Fabric(
            accelerator=self.accelerator,
            devices=self.devices,
            num_nodes=self.num_nodes,
            precision=self.precision,
            strategy=strategy,
        )


def alone(rows: Tensor) -> tuple[Tensor, slice]:
    """The gathering of a single process: its rows are all there are."""
    return rows, slice(None)


def gather_with(fabric: Fabric) -> Gather:
    """The gathering of these processes; their numbers of rows may differ."""
    if fabric.world_size == 1:
        return alone

    def gather(rows: Tensor) -> tuple[Tensor, slice]:
        counts = all_gather(fabric, torch.tensor(len(rows), device=rows.device)).tolist()
        padding = (0, 0) * (rows.dim() - 1) + (0, max(counts) - len(rows))
        everything = all_gather(fabric, F.pad(rows, padding))  # [processes, longest, ...]
        start = sum(counts[: fabric.global_rank])
        joined = torch.cat([part[:count] for part, count in zip(everything, counts, strict=True)])
        return joined, slice(start, start + len(rows))

    return gather


def all_gather(fabric: Fabric, tensor: Tensor) -> Tensor:
    """Tensors of one shape from all processes: [...] to [processes, ...]. Gradients flow back."""
    if fabric.world_size == 1:
        return tensor.unsqueeze(0)
    return fabric.all_gather(tensor, sync_grads=True)  # type: ignore[return-value]


def share(batch: AnyBatch, rank: int, processes: int) -> AnyBatch | None:
    """This process's rows of a batch (a dataclass of tensors with rows first); None when there are too few for all.

    The stretches follow one another, so that the shares of all processes, put together, are the batch.
    """
    tensors = {field.name: getattr(batch, field.name) for field in fields(batch)}  # type: ignore[arg-type]
    rows = min(len(tensor) for tensor in tensors.values())
    if rows < processes:
        return None
    mine = slice(rows * rank // processes, rows * (rank + 1) // processes)
    return type(batch)(**{name: tensor[mine] for name, tensor in tensors.items()})


# -- how processes end together --------------------------------------------------------------------------------------


def rank_here() -> int:
    """The number of this process among those that train together; 0 where it is alone."""
    if dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))


def is_lost_connection(error: BaseException) -> bool:
    """Whether a collective operation failed because another process has ended."""
    return dist.is_initialized() and (isinstance(error, dist.DistError) or "gloo" in str(error))


def first_is_gone(seconds: float = 10.0) -> bool:
    """Whether the first process, where it has started this one, ends within so many seconds."""
    if {"TORCHELASTIC_RUN_ID", "SLURM_PROCID"} & os.environ.keys():
        return False  # started by another launcher, which sorts out what the processes say
    parent, until = os.getppid(), time.monotonic() + seconds
    while os.getppid() == parent != 1 and time.monotonic() < until:
        time.sleep(0.1)
    return os.getppid() != parent or parent == 1


# -- generators ------------------------------------------------------------------------------------------------------


def generator_states(fabric: Fabric, generator: torch.Generator) -> dict[str, Tensor]:
    """The states of all processes' generators, [processes, bytes] each: torch's own, the device's, and `generator`."""
    states = {"cpu": torch.get_rng_state(), "task": generator.get_state()}
    if fabric.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(fabric.device)
    return {name: all_gather(fabric, state.to(fabric.device)).cpu() for name, state in states.items()}


def set_generator_states(fabric: Fabric, generator: torch.Generator, states: dict[str, Tensor]) -> None:
    """Put this process's generators into the states that `generator_states` gave."""
    own: dict[str, Any] = {name: state[fabric.global_rank].clone() for name, state in states.items()}
    torch.set_rng_state(own["cpu"])
    generator.set_state(own["task"])
    if "cuda" in own:
        torch.cuda.set_rng_state(own["cuda"], fabric.device)
