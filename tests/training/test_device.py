"""Devices and processes, as settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from lightning_fabric.utilities.rank_zero import rank_zero_only

from msm4sr.errors import InputError
from msm4sr.training.device import Device


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Device, "torch_device", lambda self: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    Device(devices=1).check()
    with pytest.raises(InputError, match=r"device\.devices: 2 processes need a GPU each, but only 1 found"):
        Device(devices=2).check()


def test_settings_for_another_number_of_processes_than_a_launcher_started_are_refused(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        with pytest.raises(InputError, match=r"device\.devices x device\.num_nodes is 2, but 1 process"):
            Device(accelerator="cpu", devices=2).connect()
    finally:
        dist.destroy_process_group()


def test_processes_are_counted_on_all_machines() -> None:
    assert Device().processes == 1
    assert Device(devices=2, num_nodes=3).processes == 6


def test_the_first_process_is_the_one_with_rank_0_on_node_0(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(accelerator="cpu", devices=2, num_nodes=2)
    assert device.is_first
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # Lightning keeps the rank; it is restored after the test
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not device.is_first
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("NODE_RANK", "1")
    assert not device.is_first
