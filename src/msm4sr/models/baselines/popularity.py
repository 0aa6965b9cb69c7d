"""Popularity: every history gets the items in the order of their training interactions. A non-learned baseline."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from msm4sr.models.base import FactorizedModel, Inputs, ModelConfig
from msm4sr.models.registry import register_model


class PopularityConfig(ModelConfig):
    """The model has no settings."""

    name: Literal["popularity"] = "popularity"


@register_model("popularity")
class Popularity(FactorizedModel):
    """The score of an item is its number of training interactions."""

    Config = PopularityConfig
    label = "Popularity"
    tasks = {}
    config: PopularityConfig
    counts: Tensor  # [N]
    max_history = 1
    ranks_without_history = True

    def __init__(self, config: PopularityConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.register_buffer("counts", torch.bincount(inputs.histories.values, minlength=inputs.n_items).float())

    def encode_items(self) -> Tensor:
        """[N, 1, 1]."""
        return self.counts[:, None, None]

    def encode_histories(self, histories: Tensor, embeddings: Tensor) -> Tensor:
        """Ones: [B, L, 1]."""
        return torch.ones(*histories.shape, 1, device=embeddings.device)
