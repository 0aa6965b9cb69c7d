"""The item encoder of MSM4SR: attention pooling and a mixture of experts (equations 3 to 5).

Shape letters: N items, N' of them have the modality, R feature rows (sentences or images) of those items, D_in encoder
dimension, K experts, D embedding dimension of the model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msm4sr.models.layers import Dropout, scatter
from msm4sr.models.located_items import Segments


class AttentionPooling(nn.Module):
    """One vector per item from its sentences or images, without padding (equation 3).

    alpha = softmax((x W1 + b1) W2 + b2) over the rows of the item, e = sum_j alpha_j x_j.

    Both maps are applied as one: x (W1 W2) costs a `hidden`-th of (x W1) W2. b1 W2 + b2 is the same for all rows and
    cancels in the softmax; both biases are kept as printed, and their true gradient is zero.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, hidden)  # W1, b1
        self.outer = nn.Linear(hidden, 1)  # W2, b2

    def forward(self, rows: Tensor, segments: Segments) -> Tensor:
        """Rows [R, D_in] of the N' items that have any, to [N', D_in]."""
        if segments.starts is None:
            return rows  # one row per item: alpha is 1
        order, weights = torch.arange(len(rows), device=rows.device), self.weights(rows, segments).to(rows.dtype)
        return F.embedding_bag(order, rows, segments.starts, mode="sum", per_sample_weights=weights)

    def weights(self, rows: Tensor, segments: Segments) -> Tensor:
        """alpha of each row: [R]."""
        if segments.item is None or segments.slot is None or segments.starts is None:
            return rows.new_ones(len(rows))
        scores, place = self.scores(rows), (segments.item, segments.slot)
        table = scores.new_full((len(segments.starts), segments.longest), -torch.inf).index_put(place, scores)
        alpha: Tensor = table.softmax(dim=1)[place]
        return alpha

    def scores(self, rows: Tensor) -> Tensor:
        """(x W1 + b1) W2 + b2 of each row: [R]."""
        weight = self.outer.weight @ self.inner.weight  # [1, D_in]
        return F.linear(rows, weight, self.outer(self.inner.bias)).squeeze(1)


class MixtureOfExperts(nn.Module):
    """From the encoder's space to the model's (equations 4 and 5).

    E_k(e) = LayerNorm(Dropout(e W_k)), g = softmax(e W3), z = sum_k g_k E_k(e). One product computes all experts.
    With `bias`, as released, it is e W_k + b_k.
    """

    def __init__(self, dim_in: int, dim: int, experts: int, dropout: float, bias: bool = False) -> None:
        super().__init__()
        self.shape = (experts, dim)
        self.weight = nn.Linear(dim_in, experts * dim, bias)  # W_1 ... W_K side by side, and b_1 ... b_K
        self.gate = nn.Linear(dim_in, experts, bias=False)  # W3
        self.scale = nn.Parameter(torch.ones(experts, dim))
        self.shift = nn.Parameter(torch.zeros(experts, dim))
        self.dropout = Dropout(dropout)

    def forward(self, pooled: Tensor) -> Tensor:
        """[N, D_in] to [N, D]."""
        experts = self.dropout(self.weight(pooled)).unflatten(1, self.shape)  # [N, K, D]
        experts = F.layer_norm(experts, self.shape[1:]) * self.scale + self.shift
        gates = self.gate(pooled).softmax(dim=1)  # [N, K]
        return torch.einsum("nk,nkd->nd", gates, experts)


class ItemEncoder(nn.Module):
    """Attention pooling, then experts; an item without the modality has a learned missing-modality embedding."""

    def __init__(self, pooling: AttentionPooling, experts: MixtureOfExperts) -> None:
        super().__init__()
        self.pooling, self.experts = pooling, experts
        count, dim = experts.shape
        # the length of a content vector: a mean of `count` independent normalised vectors
        self.missing = nn.Parameter(torch.randn(dim) / count**0.5)

    def forward(self, rows: Tensor, segments: Segments, fill: bool = True) -> Tensor:
        """Rows [R, D_in] of N items, of which some may have none, to content vectors [N, D].

        Without `fill` an item without rows has zeros.
        """
        missing = self.missing if fill else torch.zeros_like(self.missing)
        if len(rows) == 0:
            return missing.expand(segments.items, -1)
        content: Tensor = self.experts(self.pooling(rows, segments))
        return content if segments.present is None else scatter(content, segments.present, segments.items, missing)
