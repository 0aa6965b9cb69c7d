"""Transfer: start from weights that were pre-trained on another data set."""

from __future__ import annotations

from pathlib import Path

from msm4sr.errors import InputError
from msm4sr.models.base import Model
from msm4sr.training.checkpoint import best_file, read_weights, set_weights
from msm4sr.training.stages import can_transfer

DATA_SPECIFIC = ("item_embedding.weight", "seen_item_bias")  # specific to the items and users of the other data


def start_from(folder: Path, model: Model) -> None:
    """Load the pre-trained weights of another run into the model, except those that are specific to its data.

    Modalities that the run has and the model lacks are skipped.

    Raises:
        InputError: the model is not MSM4SR; the run has no pre-trained weights, lacks a modality of the model, or has
            another embedding dimension or model size.
    """
    if not can_transfer(model):
        raise InputError("pretrain.init_from is for msm4sr only")
    file = best_file(folder / "checkpoints", "pretrain")
    if not file.exists():
        raise InputError(f"pretrain.init_from: {folder} has no pre-trained weights ({file} does not exist)")
    weights = read_weights(file)
    there = sorted({name.split(".")[1] for name in weights if name.startswith("encoders.")})
    own = {name: weight for name, weight in model.named_parameters() if name not in DATA_SPECIFIC}
    for modality in {name.split(".")[1]: None for name in own if name.startswith("encoders.")}:
        if modality not in there:
            raise InputError(
                f"pretrain.init_from: {folder} was not pre-trained on {modality}, only on {' and '.join(there)}"
            )
        name = f"encoders.{modality}.experts.gate.weight"  # [K, D_in]
        then, now = weights[name].shape[1], own[name].shape[1]
        if then != now:
            raise InputError(
                f"pretrain.init_from: {modality} is {then}-d in {folder} and {now}-d here; both need the same encoder"
            )
    for name, weight in own.items():
        if name not in weights or weights[name].shape != weight.shape:
            shapes = [list(found[name].shape) if name in found else "absent" for found in (weights, own)]
            raise InputError(
                f"pretrain.init_from: {folder} has another model: {name} is {shapes[0]} there and {shapes[1]} here; "
                "use the same model settings"
            )
    set_weights(model, dict(model.named_parameters()) | {name: weights[name] for name in own})
