"""Weights on disk, written atomically."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from builders import make_msm4sr, make_sasrec

from msm4sr.dotted import flatten
from msm4sr.errors import InputError
from msm4sr.tensor_files import load_tensors, read_about, save_tensors
from msm4sr.training.checkpoint import (
    Checkpoints,
    TrainingState,
    check_identity,
    last_file,
    read_state,
    set_weights,
    weights_of,
)


def test_weights_come_back_to_the_last_bit(tmp_path: Path) -> None:
    model = make_msm4sr()
    file = tmp_path / "checkpoints" / "pretrain.safetensors"
    save_tensors(weights_of(model), file)
    other = make_msm4sr(seed=1)
    set_weights(other, load_tensors(file))
    own = dict(model.named_parameters())
    assert all(torch.equal(own[name], weight) for name, weight in other.named_parameters())
    assert [p.name for p in file.parent.iterdir()] == [file.name]  # no temporary file stays


def test_frozen_features_are_not_in_a_checkpoint() -> None:
    assert weights_of(make_msm4sr()).keys() == dict(make_msm4sr().named_parameters()).keys()


def test_the_copy_of_the_weights_does_not_move_with_the_model() -> None:
    model = make_sasrec()
    weights = weights_of(model)
    before = weights["item_embedding.weight"].clone()
    with torch.no_grad():
        model.item_embedding.weight.add_(1)
    assert torch.equal(weights["item_embedding.weight"], before)


@pytest.mark.parametrize(
    "other",
    [lambda: make_msm4sr(13), lambda: make_msm4sr(dim=16), lambda: make_msm4sr(modalities=("text",)), make_sasrec],
    ids=["catalogue", "width", "modalities", "kind"],
)
def test_the_checkpoint_of_another_model_is_refused_and_changes_nothing(other: object, tmp_path: Path) -> None:
    model = make_msm4sr()
    before = weights_of(model)
    save_tensors(weights_of(other()), tmp_path / "x.safetensors")  # type: ignore[operator]
    with pytest.raises(InputError, match="another model"):
        set_weights(model, load_tensors(tmp_path / "x.safetensors"))
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_a_truncated_checkpoint_is_refused_by_name(kept: int, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_tensors(weights_of(make_sasrec()), file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"x\.safetensors: damaged \("):
        load_tensors(file)


def test_a_checkpoint_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.safetensors: no such file"):
        load_tensors(tmp_path / "x.safetensors")


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from msm4sr.errors import InputError
from msm4sr.tensor_files import save_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # as a full disk
try:
    save_tensors({"weight": torch.zeros(100_000)}, Path(sys.argv[1]), {"epoch": 2})
except InputError as error:
    print(error)
"""


def test_a_checkpoint_on_a_full_disk_leaves_the_earlier_one(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    weights = weights_of(make_sasrec())
    save_tensors(weights, file, {"epoch": 1})
    said = subprocess.run([sys.executable, "-c", FULL_DISK, file], capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"{file}: could not be written (")
    assert said.endswith("the earlier one is kept\n")
    assert all(torch.equal(weights[name], weight) for name, weight in load_tensors(file).items())
    assert read_about(file) == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


def test_a_folder_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder would be")
    with pytest.raises(InputError, match=r"checkpoints/x\.safetensors: could not be written"):
        save_tensors(weights_of(make_sasrec()), tmp_path / "checkpoints" / "x.safetensors")


def test_the_description_of_a_checkpoint_is_read_without_its_weights(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_tensors({"weight": torch.zeros(3)}, file, {"items": "3 items", "place": {"epoch": 2, "best": 0.1}})
    assert read_about(file) == {"items": "3 items", "place": {"epoch": 2, "best": 0.1}}
    save_tensors({"weight": torch.zeros(3)}, file)
    assert read_about(file) == {}


def test_what_differs_from_the_checkpoint_is_reported(tmp_path: Path) -> None:
    then = flatten({"seed": 0, "model": {"dim": 8, "score_with": ["text"]}, "pretrain": {"epochs": 3}})
    file, about = tmp_path / "x.safetensors", {"identity": then}
    check_identity(file, about, {"seed": 0, "model.score_with": ("text",)}, "start again")  # as it comes back from JSON
    check_identity(file, about, then | {"new.switch": False, "new.share": 0.0, "new.file": None}, "start again")
    said = r"x\.safetensors: the checkpoint belongs to another training: model\.dim is 8 there and 16 now; start again$"
    with pytest.raises(InputError, match=said):
        check_identity(file, about, then | {"model.dim": 16}, "start again")
    with pytest.raises(InputError, match="items is not set there and 3 items now"):
        check_identity(file, about, then | {"items": "3 items"}, "start again")


@pytest.mark.parametrize("change", [{"step": None}, {"more": 1}, None], ids=["a key less", "a key more", "no state"])
def test_a_state_that_is_not_complete_is_refused_and_names_the_command(
    tmp_path: Path, change: dict[str, object] | None
) -> None:
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", "finetune", {})
    state = {k: v for k, v in (asdict(TrainingState()) | (change or {})).items() if v is not None or k == "best"}
    file = last_file(checkpoints.folder, "finetune")
    save_tensors({}, file, {"identity": {}} if change is None else {"identity": {}, "state": state})
    said = f"{file}: damaged (no complete state of a training); run `msm4sr finetune {tmp_path / 'run'} --overwrite`"
    with pytest.raises(InputError, match=re.escape(said)):
        checkpoints.load_last()
    with pytest.raises(InputError, match=re.escape(said)):
        read_state(checkpoints.folder, "finetune")
