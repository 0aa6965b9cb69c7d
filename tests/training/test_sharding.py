"""ID embeddings whose rows several processes divide: real processes over gloo compare with a single one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from msm4sr.models.item_table import ROWS_AT_ONCE, ItemTable, Shard
from msm4sr.tensor_files import load_tensors

SCRIPT = Path(__file__).with_name("sharded_training.py")
CALM = ("sasrec", "msm4sr", "pretraining")
"""Cases without dropout, which each process draws for itself."""

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Train with so many processes in a folder, a new one unless it is given; it returns the folder."""

    def run(processes: int, cases: str, folder: Path | None = None, stop: int = 0) -> Path:
        folder = folder or tmp_path_factory.mktemp(f"by_{processes}")
        command = [sys.executable, SCRIPT, str(processes), folder, cases, str(stop)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == (-signal.SIGKILL if stop else 0), done.stderr
        return folder

    return run


@pytest.fixture(scope="module")
def by_one(train: Train) -> Path:
    return train(1, ",".join(CALM))


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def by_several(request: pytest.FixtureRequest, train: Train) -> tuple[int, Path]:
    return request.param, train(request.param, ",".join(CALM))


def steps_of(folder: Path, case: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / case / "steps.json").read_text())
    return found


def stored(folder: Path, case: str, kind: str = ".last") -> dict[str, Tensor]:
    stage = "pretrain" if case == "pretraining" else "finetune"
    return load_tensors(folder / case / "checkpoints" / f"{stage}{kind}.safetensors")


def apart(one: dict[str, Tensor], other: dict[str, Tensor], prefix: str = "") -> float:
    """The largest difference of tensors whose names start with `prefix`."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one if name.startswith(prefix))


@pytest.mark.parametrize("case", CALM)
def test_every_loss_and_all_weights_are_those_of_one_process(
    case: str, by_one: Path, by_several: tuple[int, Path]
) -> None:
    """With clipping of every step, weight decay, and rows that are read rarely."""
    processes, folder = by_several
    one, several = steps_of(by_one, case), steps_of(folder, case)
    assert len(one["losses"]) > 15
    assert several["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert one["losses"][-1] < one["losses"][0] - 0.01
    for row, expected in zip(several["records"], one["records"], strict=True):
        assert {n: v for n, v in row.items() if "@" in n} == {n: v for n, v in expected.items() if "@" in n}
    for kind in (".last", ""):
        assert apart(stored(by_one, case, kind), stored(folder, case, kind), "weights/" if kind else "") < 1e-5
    if case != "pretraining":
        assert apart(stored(by_one, case), stored(folder, case), "average/") < 1e-5
    assert len(several["rows"]) == processes
    assert sum(several["rows"]) == 203
    assert max(several["rows"]) - min(several["rows"]) <= 1


@pytest.mark.parametrize(
    ("before", "after"), [(2, 1), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((1, 2), (2, 4), (4, 2)))]
)
def test_a_killed_training_resumes_with_another_number_of_processes(
    before: int, after: int, by_one: Path, train: Train
) -> None:
    folder = train(before, "sasrec", stop=13)
    assert not (folder / "sasrec" / "steps.json").exists()
    train(after, "sasrec", folder)
    one, resumed = steps_of(by_one, "sasrec"), steps_of(folder, "sasrec")
    assert resumed["losses"] == pytest.approx(one["losses"][13:], abs=1e-5)
    assert resumed["records"][-1]["loss"] == pytest.approx(one["records"][-1]["loss"], abs=1e-5)
    for kind in ("weights/", "average/", "optimizer/"):
        assert apart(stored(by_one, "sasrec"), stored(folder, "sasrec"), kind) < 1e-5


@pytest.mark.slow
def test_a_killed_training_resumes_bit_identically_with_as_many_processes(train: Train) -> None:
    undisturbed, folder = train(2, "dropout"), train(2, "dropout", stop=13)
    train(2, "dropout", folder)
    expected, resumed = steps_of(undisturbed, "dropout"), steps_of(folder, "dropout")
    assert resumed["losses"] == expected["losses"][13:]
    assert [row["loss"] for row in resumed["records"]] == [row["loss"] for row in expected["records"]]
    for kind in (".last", ""):
        assert apart(stored(undisturbed, "dropout", kind), stored(folder, "dropout", kind)) == 0


@given(items=st.lists(st.integers(0, 30), min_size=1, max_size=40), rank=st.integers(0, 4), count=st.integers(1, 5))
def test_items_are_grouped_by_the_process_that_has_them(items: list[int], rank: int, count: int) -> None:
    distinct, counts, place = Shard(rank % count, count).group(torch.tensor(items))
    assert distinct[place].tolist() == items
    groups = [sorted(item for item in set(items) if item % count == owner) for owner in range(count)]
    assert [group.tolist() for group in torch.split(distinct, counts)] == groups


@pytest.mark.parametrize(("n_items", "dim"), [(11, 3), (ROWS_AT_ONCE + 7, 4)])
def test_a_shard_is_drawn_as_its_part_of_the_complete_table(n_items: int, dim: int) -> None:
    def draw(make: Callable[[], nn.Embedding]) -> tuple[Tensor, Tensor]:
        torch.manual_seed(3)
        return make().weight.detach(), torch.rand(3)

    expected, following = draw(lambda: nn.Embedding(n_items, dim))
    for count in (1, 2, 3):
        for rank in range(count):
            rows, after = draw(lambda rank=rank, count=count: ItemTable(n_items, dim, Shard(rank, count)))
            assert torch.equal(rows, expected[rank::count])
            assert torch.equal(after, following)


def test_a_process_that_has_only_its_rows_does_not_pass_them_off_as_the_table() -> None:
    table = ItemTable(5, 2, Shard(1, 2))
    assert torch.equal(table(torch.tensor([1, 3])), table.weight)
    with pytest.raises(RuntimeError, match="only its own rows"):
        table.table()
