"""The item encoder of MSM4SR: attention pooling and a mixture of experts (equations 3 to 5).

Shape letters: N items, R feature rows (sentences or images) of those items, D_in encoder dimension, K experts,
D embedding dimension of the model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msm4sr.models.layers import Dropout, fill_missing


class AttentionPooling(nn.Module):
    """One vector per item from its sentences or images, without padding (equation 3).

    alpha = softmax((x W1 + b1) W2 + b2) over the rows of the item, e = sum_j alpha_j x_j.

    Both maps are applied as one: x (W1 W2) costs a `hidden`-th of (x W1) W2.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, hidden)  # W1, b1
        self.outer = nn.Linear(hidden, 1)  # W2, b2

    def forward(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """Rows [R, D_in], `lengths` [N] (all >= 1) of them per item, to [N, D_in]."""
        if len(rows) == len(lengths):
            return rows  # one row per item: alpha is 1
        order, starts = torch.arange(len(rows), device=rows.device), lengths.cumsum(0) - lengths
        weights = self.weights(rows, lengths).to(rows.dtype)
        return F.embedding_bag(order, rows, starts, mode="sum", per_sample_weights=weights)

    def weights(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """alpha of each row: [R]."""
        if len(rows) == 0:
            return rows.new_zeros(0)
        scores, ends = self.scores(rows), lengths.cumsum(0)
        item = torch.repeat_interleave(torch.arange(len(lengths), device=rows.device), lengths)  # [R]
        slot = torch.arange(len(rows), device=rows.device) - (ends - lengths)[item]  # [R]
        table = scores.new_full((len(lengths), int(lengths.max())), -torch.inf).index_put((item, slot), scores)
        alpha: Tensor = table.softmax(dim=1)[item, slot]
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

    def forward(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """Rows [R, D_in], `lengths` [N] of them per item (0: missing), to content vectors [N, D]."""
        present = lengths[lengths > 0]
        if len(present) == 0:
            return self.missing.expand(len(lengths), -1)
        return fill_missing(self.experts(self.pooling(rows, present)), lengths, self.missing)
