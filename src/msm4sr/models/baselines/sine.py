"""SINE: sparse-interest network for sequential recommendation (Tan et al. 2021, WSDM; arXiv 2102.09267).

All users share a pool C of concept prototypes; a history activates a few of them and has one interest vector for each.
With the items x_1 ... x_p of a prefix, normalise(v) = v / |v|, and softmaxes over the prefix:

1. Concept activation: a = softmax_t(tanh(x_t W1) w2), z = sum_t a_t x_t, s = C z; the K prototypes of the largest s
   are activated: C_k = c_k sigmoid(s_k).
2. Intention assignment, of items to concepts: P(k | t) = softmax_k(normalise(x_t W3) . LayerNorm(C_k)).
3. Attention weighting, of items for an interest: P(t | k) = softmax_t(tanh(x_t W_k1) w_k2).
4. Interests: phi_k = normalise(sum_t P(k | t) P(t | k) x_t).
5. Interest aggregation: the prefix as concepts is x^_t = sum_k P(k | t) C_k, the next concept is
   c = LayerNorm(sum_t softmax_t(tanh(x^_t W3) w4) x^_t); e = softmax_k(c . phi_k / tau), v = sum_k e_k phi_k.

The score of an item is v . x. A term keeps the prototypes apart: with M = (C - mean)(C - mean)^T / D, the mean of each
prototype over its components, lambda/2 (|M|_F^2 - |diag M|_F^2).

Deviations: the paper writes LayerNorm in all four places; the two on the side of the items are unit vectors here, as in
RecBole's implementation, which has the same scores for the same weights with `recency: false`. The equations ignore
order. The authors' code adds a trained position embedding to the input of each of the three tanh; here a trained number
for each distance from the end is added to their output (`recency`), which is defined for prefixes of any length. The
authors train by a sampled softmax, this by the full one. Each prefix of a history activates its own concepts.

Defaults are those that RecBole reports of the authors for MovieLens: 500 prototypes, 4 interests, tau 0.1, lambda 0.1.

Further shape letters: E prefixes per history, C prototypes, K interests.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from msm4sr.models.base import FactorizedModel, Inputs, SequentialConfig
from msm4sr.models.item_table import ItemTable
from msm4sr.models.layers import initialise, take
from msm4sr.models.located_items import LocatedItems
from msm4sr.models.registry import register_model

PREFIXES_AT_ONCE = 32


class SINEConfig(SequentialConfig):
    name: Literal["sine"] = "sine"
    dim: int = Field(64, ge=1, description="dimension of item, prototype and history vectors")
    prototypes: int = Field(500, ge=1, description="size of the pool; L of the paper")
    interests: int = Field(4, ge=1, description="prototypes that a history activates; K of the paper")
    interest_temperature: float = Field(0.1, gt=0, description="tau, divides the score of an interest")
    prototype_weight: float = Field(0.1, ge=0, description="lambda, weight of the term that keeps the prototypes apart")
    recency: bool = Field(True, description="the attention over a history knows the distance from its end")


@register_model("sine")
class SINE(FactorizedModel):
    """Interest vectors of the prototypes that each prefix of a history activates."""

    Config = SINEConfig
    label = "SINE"
    search = {
        "finetune.learning_rate": {"kind": "float", "low": 3e-4, "high": 1e-2, "log": True},
        "finetune.weight_decay": {"kind": "categorical", "choices": [0.0, 1e-6, 1e-5, 1e-4]},
        "model.prototypes": {"kind": "categorical", "choices": [100, 200, 500, 1000]},
        "model.interests": {"kind": "int", "low": 2, "high": 8},
        "model.interest_temperature": {"kind": "float", "low": 0.05, "high": 0.5, "log": True},
    }
    config: SINEConfig
    zero_new_rows = False  # concepts of items are normalised

    def __init__(self, config: SINEConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.interests = min(config.interests, config.prototypes)  # K
        dim = config.dim
        self.item_embedding = ItemTable(inputs.n_items, dim, inputs.shard)  # x
        self.prototypes = nn.Embedding(config.prototypes, dim)  # C
        if config.recency:
            self.recency = nn.Embedding(config.max_history, self.interests + 2)
        self.activation = TanhAttention(dim, 1)  # W1, w2
        self.concept = nn.Linear(dim, dim, bias=False)  # W3
        self.next_concept = nn.Linear(dim, 1, bias=False)  # w4
        self.importance = TanhAttention(dim, self.interests)  # W_k1, w_k2
        self.concept_norm = nn.LayerNorm(dim, bias=False)  # a bias would not change the softmax over concepts
        self.next_norm = nn.LayerNorm(dim)
        self.apply(initialise)
        if config.recency:
            nn.init.zeros_(self.recency.weight)
        nn.init.xavier_normal_(self.prototypes.weight)
        self.item_embedding.draw((2 / (inputs.n_items + dim)) ** 0.5)  # as nn.init.xavier_normal_

    def encode_items(self) -> Tensor:
        """[N, 1, D]."""
        return self.item_embedding.table().unsqueeze(1)

    def encode_some_items(self, items: LocatedItems) -> Tensor:
        """[n, 1, D]."""
        return self.item_embedding(items.numbers).unsqueeze(1)  # type: ignore[no-any-return]

    def encode_histories(self, histories: Tensor, embeddings: Tensor) -> Tensor:
        """v: [B, L, D]; in training some prefixes at a time, which read no later items and stay in cache."""
        places = torch.arange(histories.shape[1], device=histories.device)
        if not self.training:
            return self.encode_prefixes(histories, places.expand_as(histories), embeddings)
        parts = []
        for start in range(0, len(places), PREFIXES_AT_ONCE):
            read, ends = histories[:, : start + PREFIXES_AT_ONCE], places[start : start + PREFIXES_AT_ONCE]
            parts.append(self.encode_prefixes(read, ends.expand(len(read), -1), embeddings))
        return torch.cat(parts, dim=1)

    def encode_last(self, histories: Tensor, lengths: Tensor, embeddings: Tensor) -> Tensor:
        """[B, D]; one prefix per history is encoded, since memory increases with their number."""
        return self.encode_prefixes(histories, lengths[:, None] - 1, embeddings)[:, 0]

    def encode_prefixes(self, histories: Tensor, ends: Tensor, embeddings: Tensor) -> Tensor:
        """v of the prefixes of histories [B, L] that end with the items at positions `ends` [B, E]: [B, E, D]."""
        items = take(embeddings, histories).squeeze(2)  # [B, L, D]
        back = ends.unsqueeze(2) - torch.arange(items.shape[1], device=items.device)  # steps from the end: [B, E, L]
        later = back < 0
        recency = items.new_zeros(self.interests + 2, 1, 1, 1)
        if self.config.recency:
            recency = self.recency(back.clamp(min=0)).permute(3, 0, 1, 2)  # [K + 2, B, E, L]

        active = self.activation(items).squeeze(2).unsqueeze(1) + recency[0]  # [B, E, L]
        summary = over_prefix(active, later) @ items  # z: [B, E, D]
        concepts = self.activate(summary)  # [B, E, K, D]

        intention = F.normalize(self.concept(items), dim=2)  # [B, L, D]
        belongs = torch.einsum("bld,bekd->belk", intention, self.concept_norm(concepts)).softmax(3)  # P(k | t)
        importance = self.importance(items).permute(2, 0, 1).unsqueeze(2)
        matters = over_prefix(importance + recency[2:], later)  # P(t | k): [K, B, E, L]
        interests = torch.einsum("belk,kbel,bld->bekd", belongs, matters, items)
        interests = F.normalize(interests, dim=3)  # phi: [B, E, K, D]

        as_concepts = belongs @ self.concept(concepts)  # x^ W3: [B, E, L, D]
        leads = over_prefix(self.next_concept(as_concepts.tanh()).squeeze(3) + recency[1], later)  # [B, E, L]
        expected = self.next_norm(torch.einsum("bel,belk,bekd->bed", leads, belongs, concepts))  # c
        fits = torch.einsum("bed,bekd->bek", expected, interests) / self.config.interest_temperature
        return torch.einsum("bek,bekd->bed", fits.softmax(2), interests)

    def activate(self, summary: Tensor) -> Tensor:
        """z [B, E, D] to C_k of the K prototypes with the largest s: [B, E, K, D]."""
        scores, chosen = (summary @ self.prototypes.weight.T).topk(self.interests)
        return self.prototypes(chosen) * scores.sigmoid().unsqueeze(3)  # type: ignore[no-any-return]

    def auxiliary_loss(self, prefixes: Tensor, items: Tensor, embeddings: Tensor) -> Tensor | None:
        """lambda/2 (|M|_F^2 - |diag M|_F^2), which penalises similar prototypes."""
        if not self.config.prototype_weight:
            return None
        centred = self.prototypes.weight - self.prototypes.weight.mean(dim=1, keepdim=True)
        covariance = centred @ centred.T / self.config.dim  # M: [C, C]
        apart = covariance.square().sum() - covariance.diagonal().square().sum()
        return self.config.prototype_weight / 2 * apart


class TanhAttention(nn.Module):
    """tanh(x W_h) w_h for each head: [B, L, D] to [B, L, heads]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.shape = (heads, dim)
        self.inner = nn.Linear(dim, heads * dim, bias=False)
        self.outer = nn.Parameter(0.02 * torch.randn(heads, dim))

    def forward(self, x: Tensor) -> Tensor:
        return (self.inner(x).unflatten(2, self.shape).tanh() * self.outer).sum(3)  # type: ignore[no-any-return]


def over_prefix(scores: Tensor, later: Tensor) -> Tensor:
    """Softmax over the positions of each prefix: scores [..., 1 or E, L]; `later`, bool [B, E, L], marks the others."""
    return scores.masked_fill(later, -torch.inf).softmax(-1)
