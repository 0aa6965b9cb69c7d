"""Popularity: every history gets the items in the order of their training interactions. The floor of every table."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from msm4sr.models.base import Inputs, ProductModel


class PopularityConfig(BaseModel):
    """There is nothing to set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["popularity"] = "popularity"


class Popularity(ProductModel):
    """Scores are counts: how often an item stands in the training histories."""

    Config = PopularityConfig
    config: PopularityConfig
    counts: Tensor  # [N]
    max_history = 1

    def __init__(self, config: PopularityConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        taken, _ = inputs.histories
        self.register_buffer("counts", torch.bincount(taken, minlength=inputs.n_items).float())

    def encode_items(self) -> Tensor:
        """[N, 1, 1]."""
        return self.counts[:, None, None]

    def encode_histories(self, histories: Tensor, catalogue: Tensor) -> Tensor:
        """One, whatever the history [B, L]: [B, L, 1]."""
        return torch.ones(*histories.shape, 1, device=catalogue.device)

    def scoring_vectors(self, catalogue: Tensor) -> Tensor:
        """[N, 1]."""
        return catalogue.squeeze(1)
