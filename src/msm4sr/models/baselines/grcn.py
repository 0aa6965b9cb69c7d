"""GRCN: graph-refined convolutional network for multimedia recommendation with implicit feedback (Wei et al. 2020;
arXiv 2111.02036). The items' content decides how much to trust each edge of the user-item graph; ID embeddings are
propagated over the weighted edges.

**Refining.** In each modality m, with trained W and b and the item's frozen features x_i,

    f_i = normalise(LeakyReLU(W x_i + b)),

a user's preference p_u (trained, normalised) is routed towards its items T times, as a prototype to its members:

    a_ui = softmax over i in N_u of p_u . f_i,   p_u <- normalise(p_u + sum_i a_ui f_i).

Then both ends of each edge receive from the other, with a_ui as above, b_ui = softmax over u in N_i of p_u . f_i:

    content_u = p_u + sum_i a_ui f_i,   content_i = f_i + sum_u b_ui p_u.

The weight of an edge is that of its most confident modality, with a trained confidence c^m of each sending node,

    w_(i -> u) = max_m c_i^m a_ui^m,   w_(u -> i) = max_m c_u^m b_ui^m,

unchanged (`pruning: soft`) or cut at 0 (`hard`, a ReLU).

**Propagation.** e = normalise(ID embedding); e' and e'' are one and two steps of e_u <- sum_i w_(i -> u) e_i and
e_i <- sum_u w_(u -> i) e_u. A node's vector is [e + e' + e''; content of each modality], the score is the product.
Trained by BPR, with an L2 penalty on the IDs and preferences of the batch.

Defaults are the authors': 64 dimensions each, T = 3, two steps, soft pruning (as in all commands that they publish).
Their penalty is a mean over the components of a vector; ours, a sum, has 2/64 of their 1e-4.

Deviations: their code routes along edges from users to items, which leaves the preferences unchanged; we route as the
paper says. Their confidences start at random with both signs, so that hard pruning would permanently cut a quarter of
the edges; ours start at 1. Biases start at 0. Features are centred and scaled (`ItemMeans`), and an item without a
modality has a missing-modality embedding for LeakyReLU(W x_i + b).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from msm4sr.models.base import Inputs
from msm4sr.models.graph import UserItemGraph
from msm4sr.models.graph_model import GraphConfig, MultimodalGraphModel
from msm4sr.models.layers import take
from msm4sr.models.registry import register_model


class GRCNConfig(GraphConfig):
    name: Literal["grcn"] = "grcn"
    l2: float = Field(3e-6, ge=0, description="weight of the squared length of the trained vectors of a batch")
    hops: int = Field(2, ge=0, description="propagation steps over the refined graph")
    routings: int = Field(3, ge=0, description="T, routing steps of a preference towards its items")
    pruning: Literal["soft", "hard"] = Field("soft", description="hard: cut edges with a negative weight")


def route(graph: UserItemGraph, preferences: Tensor, features: Tensor, routings: int) -> Tensor:
    """Preferences [U, D] routed towards the features [N, D] of their items: [U, D], normalised."""
    for _ in range(routings):
        attention = graph.softmax_by_user(graph.products(preferences, features))
        preferences = F.normalize(preferences + graph.sum_to_users(attention, features))
    return preferences


@register_model("grcn")
class GRCN(MultimodalGraphModel):
    """ID embeddings propagated over edges weighted by the modalities, and content vectors of each modality."""

    Config = GRCNConfig
    label = "GRCN"
    search = {
        "finetune.learning_rate": {"kind": "float", "low": 1e-3, "high": 3e-2, "log": True},
        "model.l2": {"kind": "float", "low": 1e-7, "high": 1e-3, "log": True},
        "model.hops": {"kind": "int", "low": 1, "high": 3},
        "model.routings": {"kind": "int", "low": 1, "high": 4},
        "model.pruning": {"kind": "categorical", "choices": ["soft", "hard"]},
    }
    config: GRCNConfig
    folds_in_by_degree = False
    row_weights = {
        **MultimodalGraphModel.row_weights,
        "preferences.*": "users",
        "user_confidence": "users",
        "item_confidence": "items",
    }
    zero_new_rows = False

    def __init__(self, config: GRCNConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        users = self.draw_user_rows(config.dim)
        self.user_embedding = nn.Embedding.from_pretrained(users, freeze=False)  # type: ignore[no-untyped-call]
        self.item_embedding = nn.Embedding(inputs.n_items, config.dim)
        nn.init.xavier_normal_(self.item_embedding.weight)
        self.preferences = nn.ParameterDict({name: self.draw_user_rows(config.dim) for name in self.modalities})
        self.user_confidence = nn.Parameter(torch.ones(inputs.n_users, len(self.modalities)))
        self.item_confidence = nn.Parameter(torch.ones(inputs.n_items, len(self.modalities)))

    def network(self, dim_in: int) -> nn.Module:
        return nn.Sequential(nn.Linear(dim_in, self.config.dim), nn.LeakyReLU())

    def propagate(self) -> tuple[Tensor, Tensor]:
        """[U, (1 + M) D], [N, (1 + M) D]."""
        graph = self.graph
        to_users, to_items, content_of_users, content_of_items = [], [], [], []
        for name in self.modalities:
            items = F.normalize(self.encode_content(name))  # f
            users = route(graph, F.normalize(self.preferences[name]), items, self.config.routings)
            affinity = graph.products(users, items)  # [E]
            to_users.append(graph.softmax_by_user(affinity))
            to_items.append(graph.softmax_by_item(affinity))
            content_of_users.append(users + graph.sum_to_users(to_users[-1], items))
            content_of_items.append(items + graph.sum_to_items(to_items[-1], users))
        into_users = self._refine(to_users, graph.at_items(self.item_confidence))
        into_items = self._refine(to_items, graph.at_users(self.user_confidence))

        users, items = F.normalize(self.user_embedding.weight), F.normalize(self.item_embedding.weight)
        all_users, all_items = users, items
        for _ in range(self.config.hops):
            users, items = graph.sum_to_users(into_users, items), graph.sum_to_items(into_items, users)
            all_users, all_items = all_users + users, all_items + items
        return torch.cat([all_users, *content_of_users], dim=1), torch.cat([all_items, *content_of_items], dim=1)

    def _refine(self, attention: list[Tensor], confidence: Tensor) -> Tensor:
        """The weight of each edge [E], from the attention in each modality [E] and the sender's confidence [E, M]."""
        weights = (torch.stack(attention, dim=1) * confidence).amax(dim=1)
        return weights.relu() if self.config.pruning == "hard" else weights

    def trained_vectors(self, users: Tensor, items: Tensor) -> Sequence[Tensor]:
        ids = take(self.user_embedding.weight, users), take(self.item_embedding.weight, items)
        return *ids, *(take(table, users) for table in self.preferences.values())
