"""A model over more items than it was trained on: items that have arrived since, known by their content alone."""

from __future__ import annotations

import torch
from torch import Tensor

from msm4sr.models.base import Model
from msm4sr.models.layers import ItemMeans


def grow(model: Model, grown: Model, known: Tensor) -> None:
    """Make `grown`, a new model of the same settings over N items, of which `model` knows the items `known` [n], say of
    the known ones what `model` says.

    What it has for each item alone (an ID embedding) is 0 for the new ones; their features are centred and scaled as
    those of the known ones were.
    """
    trained = dict(model.named_parameters())
    means = {name: module for name, module in model.named_modules() if isinstance(module, ItemMeans)}
    with torch.no_grad():
        for name, weight in grown.named_parameters():
            if weight.shape == trained[name].shape:
                weight.copy_(trained[name])
            else:
                weight.zero_()
                weight[known.to(weight.device)] = trained[name].to(weight.device)
    for name, module in grown.named_modules():
        if isinstance(module, ItemMeans):
            module.measure_as(means[name])
