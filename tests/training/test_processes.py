"""Several processes: they compute what one process computes, over gloo on the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import make_batch
from torch import Tensor
from two_processes import CASES, SEQUENCES, main

from msm4sr.tensor_files import load_tensors
from msm4sr.training.device import shares

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def by_one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    file = tmp_path_factory.mktemp("one") / "gradients.safetensors"
    main(1, file)
    return load_tensors(file)


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def by_several(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    file = tmp_path_factory.mktemp("several") / "gradients.safetensors"
    done = subprocess.run([sys.executable, SCRIPT, str(request.param), file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_tensors(file)


@pytest.mark.parametrize("case", CASES)
def test_processes_with_a_part_of_the_batch_each_get_the_loss_and_gradients_of_one_with_all(
    case: str, by_one: dict[str, Tensor], by_several: dict[str, Tensor]
) -> None:
    expected = {name: value for name, value in by_one.items() if name.startswith(f"{case}: ")}
    found = {name: value for name, value in by_several.items() if name.startswith(f"{case}: ")}
    assert expected.keys() == found.keys()
    assert len(expected) > 10
    assert max(float(value.abs().max()) for value in expected.values()) > 0.01
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-5, atol=1e-6, msg=lambda said, name=name: f"{name}: {said}"
        )


def test_the_shares_of_a_batch_are_the_batch() -> None:
    batch = make_batch(SEQUENCES)
    for processes in (1, 2, 3, 5):
        parts = shares(batch, processes)
        assert len(parts) == processes
        joined = [torch.cat([getattr(part, name) for part in parts]) for name in ("items", "targets", "mask")]
        assert all(torch.equal(a, b) for a, b in zip(joined, (batch.items, batch.targets, batch.mask), strict=True))
        assert all(len(part.items) for part in parts)


def test_a_batch_of_fewer_rows_than_processes_is_not_shared() -> None:
    batch = make_batch(SEQUENCES[:2])
    assert shares(batch, 3) == [batch]
