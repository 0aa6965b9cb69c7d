"""DualGNN: dual graph neural network for multimedia recommendation (Wang et al. 2021; IEEE Transactions on Multimedia
25, doi 10.1109/TMM.2021.3138298). A user's weights of the modalities are learned with the help of similar users.

**One modality.** With trained p_u and f_i = W2 LeakyReLU(W1 x_i + b1) + b2 of the item's frozen features, both
normalised, vectors are propagated twice over the user-item graph and summed: z = x + Ax + AAx, with
A_ui = 1 / sqrt(|N_u| |N_i|).

**All modalities.** An item is the sum of its z^m; a user weighs them, r_u = sum_m softmax_m(a_u^m) z_u^m, a trained.

**The user graph.** With n_uv common items of users u and v, each user receives from the k users of the largest n_uv:

    r_u <- r_u + sum_v s_uv r_v,   s_uv = softmax over these v of n_uv.

The score is r_u . z_i. Trained by BPR, with an L2 penalty on the preferences p and the a of the batch.

Defaults are the authors': 64 dimensions, W1 four times as wide, two hops, k = 40, softmax. Their penalty of 0.1 is a
mean over the components of a vector; ours, a sum, has 2/64 of that.

Deviations: their code applies the softmax to the initial values of a only and trains the weights freely from there; we
keep the softmax, so that they stay weights. A user with fewer than k similar users receives from those, where their
code repeats some at random. Biases start at 0. Features are centred and scaled (`ItemMeans`), and an item without a
modality has a missing-modality embedding for f_i.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from msm4sr.models.base import Inputs
from msm4sr.models.graph import UserItemGraph, nearest_by_overlap, propagated, symmetric_weights
from msm4sr.models.graph_model import GraphConfig, MultimodalGraphModel
from msm4sr.models.layers import take
from msm4sr.models.registry import register_model


class DualGNNConfig(GraphConfig):
    name: Literal["dualgnn"] = "dualgnn"
    l2: float = Field(3e-3, ge=0, description="weight of the squared length of the trained vectors of a batch")
    hops: int = Field(2, ge=0, description="propagation steps over the user-item graph")
    neighbours: int = Field(40, ge=1, description="k, the similar users that each user receives from")


def co_occurrence(graph: UserItemGraph, k: int) -> tuple[Tensor, Tensor]:
    """The k users with the most items in common with each user, int64 [U, k], and s [U, k]; 0 in empty places."""
    neighbours, counts = nearest_by_overlap(graph, "users", k, lambda users, others, common: common)
    shares = counts.masked_fill(counts == 0, -torch.inf).softmax(dim=1)
    return neighbours.long(), shares.nan_to_num(0.0)  # users without common items receive nothing


@register_model("dualgnn")
class DualGNN(MultimodalGraphModel):
    """Modalities are propagated over the user-item graph, weighted by each user, and averaged over the user graph."""

    Config = DualGNNConfig
    label = "DualGNN"
    search = {
        "finetune.learning_rate": {"kind": "float", "low": 1e-3, "high": 3e-2, "log": True},
        "model.l2": {"kind": "float", "low": 1e-5, "high": 1e-1, "log": True},
        "model.hops": {"kind": "int", "low": 1, "high": 3},
        "model.neighbours": {"kind": "categorical", "choices": [10, 20, 40, 80]},
    }
    config: DualGNNConfig
    row_weights = {"preferences.*": "users", "attention": "users"}
    zero_new_rows = False
    weights: Tensor  # [E]
    neighbours: Tensor  # [U, k]
    shares: Tensor  # [U, k]

    def __init__(self, config: DualGNNConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.preferences = nn.ParameterDict({name: self.draw_user_rows(config.dim) for name in self.modalities})  # p
        self.attention = nn.Parameter(self.draw_user_rows(len(self.modalities)))  # a
        self.register_buffer("weights", symmetric_weights(self.graph), persistent=False)
        neighbours, shares = co_occurrence(self.graph, config.neighbours)
        self.register_buffer("neighbours", neighbours, persistent=False)
        self.register_buffer("shares", shares, persistent=False)

    def network(self, dim_in: int) -> nn.Module:
        dim = self.config.dim
        return nn.Sequential(nn.Linear(dim_in, 4 * dim), nn.LeakyReLU(), nn.Linear(4 * dim, dim))

    def propagate(self) -> tuple[Tensor, Tensor]:
        """[U, D], [N, D]."""
        of_users, of_items = [], []
        for name in self.modalities:
            start = F.normalize(self.preferences[name]), F.normalize(self.encode_content(name))
            users, items = propagated(self.graph, self.weights, *start, self.config.hops)
            of_users.append(users.sum(dim=0))
            of_items.append(items.sum(dim=0))
        mix = self.attention.softmax(dim=1)  # [U, M]
        mixed = (torch.stack(of_users, dim=2) * mix.unsqueeze(1)).sum(dim=2)  # [U, D]
        received = F.embedding_bag(self.neighbours, mixed, mode="sum", per_sample_weights=self.shares)
        return mixed + received, torch.stack(of_items).sum(dim=0)

    def trained_vectors(self, users: Tensor, items: Tensor) -> Sequence[Tensor]:
        return tuple(take(table, users) for table in (*self.preferences.values(), self.attention))
