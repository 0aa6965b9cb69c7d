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


class Whitening(nn.Module):
    """(x - mean) (C + c I)^(-1/2), with the mean and covariance C of the catalogue's rows, c the mean of C's diagonal.

    It removes what all frozen embeddings (`rows` [R, D_in], read in chunks) have in common, and gives rare directions
    the weight of common ones. c keeps directions with almost no variance small.

    Reference: whitening of frozen text embeddings for sequential recommendation, Zhang et al. 2024, arXiv 2402.10602.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        chunks = torch.split(rows, 1 << 16)
        mean = torch.stack([chunk.double().sum(dim=0) for chunk in chunks]).sum(dim=0) / max(1, len(rows))
        centred = (chunk.double() - mean for chunk in chunks)
        covariance = torch.stack([chunk.T @ chunk for chunk in centred]).sum(dim=0) / max(1, len(rows))
        sizes, directions = torch.linalg.eigh(covariance)
        shrunk = sizes.clamp(min=0) + sizes.mean().clamp(min=1e-6)
        self.register_buffer("mean", mean.float())
        self.register_buffer("matrix", (directions * shrunk.rsqrt() @ directions.T).float())

    def fold(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Weight [D_out, D_in] and bias [D_out] that give for x what `weight` gives for the whitened x."""
        folded = weight @ self.matrix  # the matrix is symmetric
        return folded, -folded @ self.mean


class MixtureOfExperts(nn.Module):
    """From the encoder's space to the model's (equations 4 and 5); with `whitening`, e is whitened first.

    E_k(e) = LayerNorm(Dropout(e W_k)), g = softmax(e W3), z = sum_k g_k E_k(e). One product computes all experts.
    With `bias`, as released, it is e W_k + b_k.
    """

    def __init__(
        self,
        dim_in: int,
        dim: int,
        experts: int,
        dropout: float,
        bias: bool = False,
        whitening: Whitening | None = None,
    ) -> None:
        super().__init__()
        self.shape = (experts, dim)
        self.whitening = whitening
        self.weight = nn.Linear(dim_in, experts * dim, bias)  # W_1 ... W_K side by side, and b_1 ... b_K
        self.gate = nn.Linear(dim_in, experts, bias=False)  # W3
        self.scale = nn.Parameter(torch.ones(experts, dim))
        self.shift = nn.Parameter(torch.zeros(experts, dim))
        self.dropout = Dropout(dropout)

    def forward(self, pooled: Tensor) -> Tensor:
        """[N, D_in] to [N, D]."""
        experts = self.dropout(self._read(pooled, self.weight)).unflatten(1, self.shape)  # [N, K, D]
        experts = F.layer_norm(experts, self.shape[1:]) * self.scale + self.shift
        gates = self._read(pooled, self.gate).softmax(dim=1)  # [N, K]
        return torch.einsum("nk,nkd->nd", gates, experts)

    def _read(self, pooled: Tensor, linear: nn.Linear) -> Tensor:
        """[N, D_in] to [N, D_out]. Whitening the weights is cheaper than whitening a catalogue of items."""
        if self.whitening is None:
            return linear(pooled)  # type: ignore[no-any-return]
        weight, shift = self.whitening.fold(linear.weight)
        return F.linear(pooled, weight, shift if linear.bias is None else shift + linear.bias)


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
