"""Transfer: what was learned in pre-training on one data set, as the beginning on another."""

from __future__ import annotations

from pathlib import Path

from msm4sr.errors import InputError
from msm4sr.models.base import Model
from msm4sr.models.msm4sr import MSM4SR
from msm4sr.training.checkpoint import read_weights, set_weights
from msm4sr.training.trainer import best_file

OF_THE_LOG = ("item_embedding.weight", "seen_item_bias")  # learned of the other data set's items and customs


def start_from(folder: Path, model: Model) -> None:
    """Put what another run has learned in pre-training into the model: all but what is of its log.

    Modalities that it has and the model lacks are left out.

    Raises:
        InputError: the model is no MSM4SR, the run has no pre-trained weights, it lacks a modality of the model, its
            features are of another width, its model is of another shape.
    """
    if not isinstance(model, MSM4SR):
        raise InputError("pretrain.init_from is for msm4sr alone")
    file = best_file(folder / "checkpoints", "pretrain")
    if not file.exists():
        raise InputError(f"pretrain.init_from: {folder} has no pre-trained weights ({file} is not there)")
    weights = read_weights(file)
    there = sorted({name.split(".")[1] for name in weights if name.startswith("encoders.")})
    own = {name: weight for name, weight in model.named_parameters() if name not in OF_THE_LOG}
    for modality in model.modalities:
        if modality not in there:
            raise InputError(f"pretrain.init_from: {folder} has not learned {modality}, only {' and '.join(there)}")
        name = f"encoders.{modality}.experts.gate.weight"  # [K, D_in]
        then, now = weights[name].shape[1], own[name].shape[1]
        if then != now:
            raise InputError(
                f"pretrain.init_from: a vector of {modality} has {then} numbers in {folder} and {now} here; both need "
                "features of the same encoder"
            )
    for name, weight in own.items():
        if name not in weights or weights[name].shape != weight.shape:
            shapes = [list(found[name].shape) if name in found else "absent" for found in (weights, own)]
            raise InputError(
                f"pretrain.init_from: {folder} is of another model: {name} is {shapes[0]} there and {shapes[1]} here; "
                "make the settings of the model the same"
            )
    set_weights(model, dict(model.named_parameters()) | {name: weights[name] for name in own})
