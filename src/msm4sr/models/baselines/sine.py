"""SINE: sparse-interest network for sequential recommendation (Tan et al. 2021, WSDM; arXiv 2102.09267).

A pool C of concept prototypes is shared by all users; a history activates a few of them, and has one interest vector
for each. With the items x_1 ... x_p of a prefix, normalise(v) = v / |v|, and softmaxes over the prefix:

1. Which concepts? a = softmax_t(tanh(x_t W1) w2), z = sum_t a_t x_t, s = C z; the K prototypes of the largest s are
   activated: C_k = c_k sigmoid(s_k).
2. To which of them does each item belong (intention assignment)?
   P(k | t) = softmax_k(normalise(x_t W3) . LayerNorm(C_k)).
3. Which items matter for an interest (attention weighting)? P(t | k) = softmax_t(tanh(x_t W_k1) w_k2).
4. The interests: phi_k = normalise(sum_t P(k | t) P(t | k) x_t).
5. Which interest is next? The prefix as concepts, x^_t = sum_k P(k | t) C_k; what they lead to,
   c = LayerNorm(sum_t softmax_t(tanh(x^_t W3) w4) x^_t); e = softmax_k(c . phi_k / tau), v = sum_k e_k phi_k.

The score of an item is v . x. A term keeps the prototypes apart: with M = (C - mean)(C - mean)^T / D, the mean of each
prototype over its coordinates, lambda/2 (|M|_F^2 - |diag M|_F^2).

The paper writes LayerNorm in all four places and says cosine; the two on the side of the items are unit vectors here,
as in RecBole's port of it, whose scores these are for the same weights with `recency: false`. The equations know no
order. The authors' code adds the trained vector of a place to what each of the three tanh reads; here a trained number
for each distance from the end is added to what each of them gives (`recency`): it holds for a prefix of any length,
where the place of the latest item is one that shorter training histories never had. Defaults: what RecBole notes of
the authors' for MovieLens (500 prototypes, 4 interests, tau 0.1, lambda 0.1). The authors train by a sampled softmax,
this by the whole one. Every prefix of a history activates concepts of its own; all go through in one pass.
Beside IDs nothing is read, so that items without text, pictures or categories are items like any other.

Shape letters beside the usual: E prefixes of a history that are asked for, C prototypes, K interests.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from msm4sr.models.base import FactorizedModel, Inputs, ModelConfig
from msm4sr.models.layers import initialise, take
from msm4sr.models.registry import register_model


class SINEConfig(ModelConfig):
    """The settings of the model."""

    name: Literal["sine"] = "sine"
    dim: int = Field(64, ge=1, description="width of item, prototype and history vectors")
    max_history: int = Field(50, ge=1, description="items of a history that are read, the latest ones")
    prototypes: int = Field(500, ge=1, description="in the pool; L of the paper")
    interests: int = Field(4, ge=1, description="prototypes that a history activates; K of the paper")
    interest_temperature: float = Field(0.1, gt=0, description="tau, by which the match of an interest is divided")
    prototype_weight: float = Field(0.1, ge=0, description="lambda, of the term that keeps the prototypes apart")
    recency: bool = Field(True, description="the attention over a history knows how far back an item stands")


@register_model("sine")
class SINE(FactorizedModel):
    """Interests by prototypes that each prefix of a history activates."""

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

    def __init__(self, config: SINEConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.max_history = config.max_history
        self.interests = min(config.interests, config.prototypes)  # K
        dim = config.dim
        self.item_embedding = nn.Embedding(inputs.n_items, dim)  # x
        self.prototypes = nn.Embedding(config.prototypes, dim)  # C
        if config.recency:
            self.recency = nn.Embedding(config.max_history, self.interests + 2)
        self.activation = TanhAttention(dim, 1)  # W1, w2
        self.concept = nn.Linear(dim, dim, bias=False)  # W3
        self.next_concept = nn.Linear(dim, 1, bias=False)  # w4
        self.importance = TanhAttention(dim, self.interests)  # W_k1, w_k2
        self.concept_norm = nn.LayerNorm(dim, bias=False)  # the softmax over concepts does not see a bias
        self.next_norm = nn.LayerNorm(dim)
        self.apply(initialise)
        if config.recency:
            nn.init.zeros_(self.recency.weight)
        nn.init.xavier_normal_(self.prototypes.weight)
        nn.init.xavier_normal_(self.item_embedding.weight)

    def encode_items(self) -> Tensor:
        """The ID embeddings: [N, 1, D]."""
        return self.item_embedding.weight.unsqueeze(1)

    def encode_histories(self, histories: Tensor, embeddings: Tensor) -> Tensor:
        """Item rows [B, L] to v for each prefix [B, L, D]."""
        ends = torch.arange(histories.shape[1], device=histories.device).expand_as(histories)
        return self.encode_prefixes(histories, ends, embeddings)

    def scoring_vectors(self, embeddings: Tensor) -> Tensor:
        """[N, D]."""
        return embeddings.squeeze(1)

    def encode_last(self, histories: Tensor, lengths: Tensor, embeddings: Tensor) -> Tensor:
        """[B, D]; one prefix per history is encoded, since memory grows with their number."""
        return self.encode_prefixes(histories, lengths[:, None] - 1, embeddings)[:, 0]

    def encode_prefixes(self, histories: Tensor, ends: Tensor, embeddings: Tensor) -> Tensor:
        """v of the prefixes of histories [B, L] that end at positions `ends` [B, E], themselves in: [B, E, D]."""
        items = take(embeddings, histories).squeeze(2)  # [B, L, D]
        back = ends.unsqueeze(2) - torch.arange(items.shape[1], device=items.device)  # steps from the end: [B, E, L]
        later = back < 0
        if self.config.recency:
            recency = self.recency(back.clamp(min=0)).permute(3, 0, 1, 2)  # [K + 2, B, E, L]
        else:
            recency = items.new_zeros(self.interests + 2, 1, 1, 1)

        active = self.activation(items).squeeze(2).unsqueeze(1) + recency[0]  # [B, E, L]
        summary = over_prefix(active, later) @ items  # z: [B, E, D]
        concepts = self.activate(summary)  # [B, E, K, D]

        intention = F.normalize(self.concept(items), dim=2)  # [B, L, D]
        belongs = torch.einsum("bld,bekd->belk", intention, self.concept_norm(concepts)).softmax(3)  # P(k | t)
        matters = self.importance(items).permute(2, 0, 1).unsqueeze(2) + recency[2:]
        matters = over_prefix(matters, later)  # P(t | k): [K, B, E, L]
        interests = torch.einsum("belk,kbel,bld->bekd", belongs, matters, items)
        interests = F.normalize(interests, dim=3)  # phi: [B, E, K, D]

        as_concepts = belongs @ self.concept(concepts)  # x^ W3: [B, E, L, D]
        leads = over_prefix(self.next_concept(as_concepts.tanh()).squeeze(3) + recency[1], later)  # [B, E, L]
        expected = self.next_norm(torch.einsum("bel,belk,bekd->bed", leads, belongs, concepts))  # c
        fits = torch.einsum("bed,bekd->bek", expected, interests) / self.config.interest_temperature
        return torch.einsum("bek,bekd->bed", fits.softmax(2), interests)

    def activate(self, summary: Tensor) -> Tensor:
        """z [B, E, D] to the K prototypes nearest to it, as far as they are active: [B, E, K, D]."""
        scores, chosen = (summary @ self.prototypes.weight.T).topk(self.interests)
        return self.prototypes(chosen) * scores.sigmoid().unsqueeze(3)  # type: ignore[no-any-return]

    def auxiliary_loss(self, prefixes: Tensor, items: Tensor, next_items: Tensor) -> Tensor | None:
        """lambda/2 (|M|_F^2 - |diag M|_F^2): prototypes that say the same cost something."""
        if not self.config.prototype_weight:
            return None
        centred = self.prototypes.weight - self.prototypes.weight.mean(dim=1, keepdim=True)
        covariance = centred @ centred.T / self.config.dim  # M: [C, C]
        apart = covariance.square().sum() - covariance.diagonal().square().sum()
        return self.config.prototype_weight / 2 * apart


class TanhAttention(nn.Module):
    """tanh(x W_h) w_h for each of several heads: [B, L, D] to [B, L, heads]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.shape = (heads, dim)
        self.inner = nn.Linear(dim, heads * dim, bias=False)
        self.outer = nn.Parameter(0.02 * torch.randn(heads, dim))

    def forward(self, x: Tensor) -> Tensor:
        return (self.inner(x).unflatten(2, self.shape).tanh() * self.outer).sum(3)  # type: ignore[no-any-return]


def over_prefix(scores: Tensor, later: Tensor) -> Tensor:
    """Softmax over the positions of each prefix; scores [..., 1 or E, L], `later` bool [B, E, L] marks the others."""
    return scores.masked_fill(later, -torch.inf).softmax(-1)
