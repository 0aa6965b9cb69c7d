"""Popularity: every history gets the items in the order of their training interactions. The floor of every table."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from msm4sr.models.base import read_model, whole, write_model


class PopularityConfig(BaseModel):
    """There is nothing to set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["popularity"] = "popularity"


class Popularity(nn.Module):
    """Scores are counts.

    Args:
        counts: [N] training interactions of each item.
    """

    counts: Tensor
    max_history = 1

    def __init__(self, counts: Tensor) -> None:
        super().__init__()
        self.config = PopularityConfig()
        self.register_buffer("counts", counts.float())

    def encode_items(self) -> Tensor:
        """[N, 1, 1]."""
        return self.counts[:, None, None]

    def encode_histories(self, histories: Tensor, catalogue: Tensor) -> Tensor:
        """One, whatever the history [B, L]: [B, L, 1]."""
        return torch.ones(*histories.shape, 1, device=catalogue.device)

    def scoring_vectors(self, catalogue: Tensor) -> Tensor:
        """[N, 1]."""
        return catalogue.squeeze(1)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        write_model(self, {"config": self.config.model_dump(mode="json")}, Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read what `save_pretrained` wrote. Raises InputError when it is not there or not whole."""
        _, state = read_model(Path(folder))
        with whole(Path(folder)):
            return cls(state["counts"])
