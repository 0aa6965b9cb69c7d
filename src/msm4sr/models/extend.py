"""A trained model over a larger catalogue: new items are known by their content alone."""

from __future__ import annotations

import torch
from torch import Tensor

from msm4sr.models.base import Model
from msm4sr.models.layers import ItemMeans, update_features


def extend_catalogue(model: Model, extended: Model, known: Tensor) -> None:
    """Copy a trained model over n items into a model of the same settings over N > n items, in place.

    `known`, int64 [n], is the number in `extended` of each item of `model`. New items have parameters of 0 (their ID
    embedding), and features that are centred and scaled as those of the known items were.
    """
    trained = dict(model.named_parameters())
    means = {name: module for name, module in model.named_modules() if isinstance(module, ItemMeans)}
    with torch.no_grad():
        for name, weight in extended.named_parameters():
            if weight.shape == trained[name].shape:
                weight.copy_(trained[name])
            else:
                weight.zero_()
                weight[known.to(weight.device)] = trained[name].to(weight.device)
    for name, module in extended.named_modules():
        if isinstance(module, ItemMeans):
            module.measure_as(means[name])
    update_features(extended)
