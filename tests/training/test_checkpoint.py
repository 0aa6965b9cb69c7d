"""Weights on disk, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from builders import make_msm4sr, make_sasrec

from msm4sr.errors import InputError
from msm4sr.training.checkpoint import read_weights, save_weights, set_weights, weights_of


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


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.safetensors"
    weights = weights_of(make_sasrec())
    save_weights(weights, file)

    def full_disk(tensors: object, part: Path) -> None:
        Path(part).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("msm4sr.training.checkpoint.save_file", full_disk)
    with pytest.raises(InputError, match="No space left on device"):
        save_weights({name: weight + 1 for name, weight in weights.items()}, file)
    assert all(torch.equal(weights[name], weight) for name, weight in read_weights(file).items())
    assert [p.name for p in tmp_path.iterdir()] == [file.name]
