"""LightGCN: simplifying and powering graph convolution network for recommendation (He et al. 2020; arXiv 2002.02126).

Each user and item has a trained embedding e^(0). A hop propagates embeddings along the edges of the user-item graph,
without a linear map, activation or self-loop:

    e_u^(k+1) = sum_{i in N_u} e_i^(k) / sqrt(|N_u| |N_i|),   e_i^(k+1) = sum_{u in N_i} e_u^(k) / sqrt(|N_i| |N_u|)

A node's final vector is the mean of its vectors over hops 0 ... K (alpha_k = 1 / (K + 1)), and the score is e_u . e_i.
Trained by BPR, with an L2 penalty on the e^(0) of the batch.

Defaults are the authors': 64 dimensions, 3 hops, L2 1e-4, embeddings drawn from N(0, 0.1) as in their PyTorch code;
they train with Adam at 1e-3 in batches of 2,048.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from msm4sr.models.base import Inputs
from msm4sr.models.graph import propagated, symmetric_weights
from msm4sr.models.graph_model import GraphConfig, GraphModel
from msm4sr.models.layers import take
from msm4sr.models.registry import register_model


class LightGCNConfig(GraphConfig):
    name: Literal["lightgcn"] = "lightgcn"
    hops: int = Field(3, ge=0, description="K, propagation steps; 0 is matrix factorisation")


@register_model("lightgcn")
class LightGCN(GraphModel):
    """User and item embeddings, smoothed over the graph."""

    Config = LightGCNConfig
    label = "LightGCN"
    search = {
        "finetune.learning_rate": {"kind": "float", "low": 1e-3, "high": 3e-2, "log": True},
        "model.l2": {"kind": "float", "low": 1e-6, "high": 1e-2, "log": True},
        "model.hops": {"kind": "int", "low": 1, "high": 4},
    }
    config: LightGCNConfig
    weights: Tensor  # [E]

    def __init__(self, config: LightGCNConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        users = self.draw_user_rows(config.dim, std=0.1)
        self.user_embedding = nn.Embedding.from_pretrained(users, freeze=False)  # type: ignore[no-untyped-call]
        self.item_embedding = nn.Embedding(inputs.n_items, config.dim)
        nn.init.normal_(self.item_embedding.weight, std=0.1)
        self.register_buffer("weights", symmetric_weights(self.graph), persistent=False)

    def propagate(self) -> tuple[Tensor, Tensor]:
        """[U, D], [N, D]."""
        start = self.user_embedding.weight, self.item_embedding.weight
        users, items = propagated(self.graph, self.weights, *start, self.config.hops)
        return users.mean(dim=0), items.mean(dim=0)

    def trained_vectors(self, users: Tensor, items: Tensor) -> Sequence[Tensor]:
        return take(self.user_embedding.weight, users), take(self.item_embedding.weight, items)
