"""Weights on disk, whole or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import make_msm4sr, make_sasrec

from msm4sr.dotted import flatten
from msm4sr.errors import InputError
from msm4sr.training.checkpoint import (
    check_same,
    digest,
    read_about,
    read_weights,
    save_weights,
    set_weights,
    weights_of,
)


def test_weights_come_back_to_the_last_bit(tmp_path: Path) -> None:
    model = make_msm4sr()
    file = tmp_path / "checkpoints" / "pretrain.safetensors"
    save_weights(weights_of(model), file)
    other = make_msm4sr(seed=1)
    set_weights(other, read_weights(file))
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
    save_weights(weights_of(other()), tmp_path / "x.safetensors")  # type: ignore[operator]
    with pytest.raises(InputError, match="another model"):
        set_weights(model, read_weights(tmp_path / "x.safetensors"))
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_a_truncated_checkpoint_is_refused_by_name(kept: int, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_weights(weights_of(make_sasrec()), file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"x\.safetensors: not a whole checkpoint"):
        read_weights(file)


def test_a_checkpoint_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such checkpoint"):
        read_weights(tmp_path / "x.safetensors")


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from msm4sr.errors import InputError
from msm4sr.training.checkpoint import save_weights
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # as a disk that has no more room
try:
    save_weights({"weight": torch.zeros(100_000)}, Path(sys.argv[1]), {"epoch": 2})
except InputError as error:
    print(error)
"""


def test_a_checkpoint_for_which_there_is_no_room_leaves_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    weights = weights_of(make_sasrec())
    save_weights(weights, file, {"epoch": 1})
    said = subprocess.run([sys.executable, "-c", FULL_DISK, file], capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"{file}: the checkpoint could not be written (")
    assert said.endswith("the one before is whole\n")
    assert all(torch.equal(weights[name], weight) for name, weight in read_weights(file).items())
    assert read_about(file) == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


def test_a_folder_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder would be")
    with pytest.raises(InputError, match=r"checkpoints/x\.safetensors: the checkpoint could not be written"):
        save_weights(weights_of(make_sasrec()), tmp_path / "checkpoints" / "x.safetensors")


def test_what_a_checkpoint_is_of_comes_back_without_its_weights(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_weights({"weight": torch.zeros(3)}, file, {"items": "3 items", "place": {"epoch": 2, "best": 0.1}})
    assert read_about(file) == {"items": "3 items", "place": {"epoch": 2, "best": 0.1}}
    save_weights({"weight": torch.zeros(3)}, file)
    assert read_about(file) == {}


def test_what_differs_from_the_checkpoint_is_said() -> None:
    then = flatten({"seed": 0, "model": {"dim": 8, "score_with": ["text"]}, "pretrain": {"epochs": 3}})
    check_same(then, {"seed": 0, "model.score_with": ("text",)})  # as it comes back from JSON
    with pytest.raises(InputError, match=r"another training: model\.dim \(8 there, 16 now\)$"):
        check_same(then, then | {"model.dim": 16})
    with pytest.raises(InputError, match=r"items \(not known there, 3 items now\)"):
        check_same(then, then | {"items": "3 items"})


def test_another_content_or_another_cut_of_it_has_another_digest() -> None:
    assert digest(b"ab", b"c") == digest(b"ab", b"c")
    assert len({digest(b"ab", b"c"), digest(b"a", b"bc"), digest(b"abc"), digest(b"abd")}) == 4
    assert digest(np.arange(3), b"") != digest(np.arange(4), b"")
    assert digest(np.arange(6).reshape(2, 3).T) != digest(np.arange(6).reshape(2, 3))
    assert digest(np.zeros((0, 3)))


def test_a_setting_that_came_later_is_no_difference_where_it_is_off() -> None:
    check_same({"dim": 8}, {"dim": 8, "new.switch": False, "new.share": 0.0, "new.file": None})
    with pytest.raises(InputError, match=r"new.switch \(not known there, True now\)"):
        check_same({"dim": 8}, {"dim": 8, "new.switch": True})
    with pytest.raises(InputError, match=r"dim \(8 there, 0 now\)"):
        check_same({"dim": 8}, {"dim": 0})
