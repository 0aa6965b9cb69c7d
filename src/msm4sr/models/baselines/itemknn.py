"""ItemKNN: the nearest neighbours of the history's items, by co-occurrence in other histories (Deshpande and Karypis
2004, doi 10.1145/963770.963776). A non-learned baseline.

With n_i users who interacted with item i, and n_ij with both i and j, each counted once,

    sim(i, j) = n_ij / (sqrt(n_i n_j) + h),

the cosine of two columns of the user-item matrix, shrunk towards 0 by h where few users support it. Each item keeps
its k nearest, with ties by item number (memory N x k). The score of i after a history is the sum of sim(j, i) over the
distinct items j of the history that have i among their k nearest. An item without interactions scores 0.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from msm4sr.models.base import Inputs, Model, ModelConfig
from msm4sr.models.graph import Ints, UserItemGraph, nearest_by_overlap
from msm4sr.models.registry import register_model


class ItemKNNConfig(ModelConfig):
    name: Literal["itemknn"] = "itemknn"
    neighbours: int = Field(100, ge=1, description="k, the nearest items that each item keeps")
    shrinkage: float = Field(0.0, ge=0, description="h; 0 is the plain cosine")
    max_history: int = Field(50, ge=1, description="latest items of a history that are read")


@register_model("itemknn")
class ItemKNN(Model):
    """The k nearest items of each item (`nearest`) and their similarities; similarity 0 marks an empty place."""

    Config = ItemKNNConfig
    label = "ItemKNN"
    search = {
        "model.neighbours": {"kind": "int", "low": 10, "high": 1000, "log": True},
        "model.shrinkage": {"kind": "float", "low": 0.0, "high": 100.0},
        "model.max_history": {"kind": "int", "low": 5, "high": 200, "log": True},
    }
    config: ItemKNNConfig
    nearest: Tensor  # int32 [N, k]
    similarities: Tensor  # [N, k]
    ranks_seen_items = False

    def __init__(self, config: ItemKNNConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        graph = UserItemGraph(inputs.histories, inputs.n_items)
        degrees = graph.item_degrees().numpy().astype(np.float64)

        def shrunk_cosine(items: Ints, others: Ints, common: Ints) -> npt.NDArray[np.float64]:
            return np.divide(common, np.sqrt(degrees[items] * degrees[others]) + config.shrinkage, dtype=np.float64)

        nearest, similarities = nearest_by_overlap(graph, "items", config.neighbours, shrunk_cosine)
        self.register_buffer("nearest", nearest)
        self.register_buffer("similarities", similarities)

    def encode_items(self) -> Tensor:
        """[N, 1, k]."""
        return self.similarities.unsqueeze(1)

    def score(
        self, histories: Tensor, lengths: Tensor, embeddings: Tensor, item_vectors: Tensor, users: Tensor | None = None
    ) -> Tensor:
        """The sum of similarities to the distinct items of each history: [B, N]."""
        read = torch.arange(histories.shape[1], device=histories.device) < lengths.unsqueeze(1)  # [B, L]
        items = histories.masked_fill(~read, -1).sort(dim=1).values
        first = items != F.pad(items, (1, 0), value=-1)[:, :-1]  # of equal items; false for padding, which is -1
        items = items.clamp(min=0)
        similarities = (item_vectors[items] * first.unsqueeze(2)).flatten(1)  # [B, L * k]
        nearest = self.nearest[items].long().flatten(1)
        return item_vectors.new_zeros(len(items), self.n_items).scatter_add(1, nearest, similarities)
