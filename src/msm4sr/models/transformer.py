"""The causal Transformer over histories: B histories, L positions, D embedding dimension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from msm4sr.models.base import SequentialConfig
from msm4sr.models.layers import Dropout

SEARCH: Mapping[str, Mapping[str, Any]] = {
    "finetune.learning_rate": {"kind": "float", "low": 3e-4, "high": 1e-2, "log": True},
    "model.dropout": {"kind": "float", "low": 0.0, "high": 0.6},
    "finetune.weight_decay": {"kind": "categorical", "choices": [0.0, 1e-6, 1e-5, 1e-4]},
}
"""The settings that tuning searches for every model with a Transformer."""


Past = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values of the positions of a history that were computed before, of each layer: [B, heads, P, d]."""


def attend(q: Tensor, k: Tensor, v: Tensor, dropout: Dropout, visible: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v with `dropout` of the weights; q, k [B, heads, L, any], v and result [B, heads, L, d].

    Every position attends to the `visible` positions, bool [B, L]; None: causal attention.
    """
    if q.device.type == "cpu":
        q, k, v = q.float(), k.float(), v.float()  # the fused kernels of CPUs are slower in bfloat16
    scale, mask = v.shape[-1] ** -0.5, None if visible is None else visible[:, None, None, :]  # [B, 1, 1, L]
    if not (dropout.training and dropout.p > 0 and q.device.type == "cpu"):
        p = dropout.p if dropout.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, mask, dropout_p=p, is_causal=mask is None, scale=scale)
    if mask is None:
        hidden = torch.full((q.shape[2], q.shape[2]), -torch.inf, dtype=q.dtype).triu(1)
    else:
        hidden = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    weights = (q * scale @ k.transpose(2, 3) + hidden).softmax(-1)  # [B, heads, L, L]
    return dropout(weights) @ v  # type: ignore[no-any-return]


class CausalAttention(nn.Module):
    """Multi-head self-attention in which a position attends to itself and earlier positions."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """[B, L, D] to [B, L, D]. With `visible`, bool [B, L], every position attends to these instead."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, L, D/heads]
        mixed = attend(q, k, v, self.dropout, visible)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def at(self, x: Tensor, positions: Tensor) -> Tensor:
        """`forward` at one position of each row: x [B, L, D], positions [B] to [B, D]."""
        own, dim = x[torch.arange(x.shape[0], device=x.device), positions], x.shape[2]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = F.linear(own, weight[:dim], bias[:dim]).view(x.shape[0], 1, self.heads, -1)
        kv = F.linear(x, weight[dim:], bias[dim:]).view(*x.shape[:2], 2, self.heads, -1)
        k, v = kv.permute(2, 0, 3, 1, 4)  # each [B, heads, L, d]
        visible = torch.arange(x.shape[1], device=x.device) <= positions.unsqueeze(1)  # [B, L]
        mixed = attend(q.transpose(1, 2), k, v, self.dropout, visible)
        return self.out(mixed.transpose(1, 2).flatten(1))  # type: ignore[no-any-return]

    def extend(self, x: Tensor, past: tuple[Tensor, Tensor] | None, n: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """`forward` at the last `n` positions of x [B, L, D], which follows `past`: [B, n, D], and the new `past`."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, L, D/heads]
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        visible, causal = None, past is None and n > 1  # the last position attends to all
        if past is not None and n > 1:
            position = torch.arange(k.shape[2], device=x.device)
            visible = position <= position[-n:, None]  # [n, P + L]
        scale = v.shape[-1] ** -0.5
        mixed = F.scaled_dot_product_attention(q[:, :, -n:], k, v, visible, is_causal=causal, scale=scale)
        return self.out(mixed.transpose(1, 2).flatten(2)), (k, v)


class TransformerLayer(nn.Module):
    """Attention, then a feed-forward network, each added to its input and normalised after."""

    def __init__(self, attention: nn.Module, config: TransformerConfig) -> None:
        super().__init__()
        dim, inner = config.dim, config.inner_dim
        self.attention = attention
        self.feed_forward = nn.Sequential(nn.Linear(dim, inner), nn.GELU(), nn.Linear(inner, dim))
        self.attention_norm = nn.LayerNorm(dim)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """[B, L, D] to [B, L, D]; `context` is the second argument of the attention."""
        return self._after(x, self.attention(x, context))

    def at(self, x: Tensor, positions: Tensor) -> Tensor:
        """`forward` at one position of each row: [B, D]."""
        own = x[torch.arange(x.shape[0], device=x.device), positions]
        return self._after(own, self.attention.at(x, positions))  # type: ignore[operator]

    def extend(self, x: Tensor, past: tuple[Tensor, Tensor] | None, n: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """See `CausalAttention.extend`."""
        attended, past = self.attention.extend(x, past, n)  # type: ignore[operator]
        return self._after(x[:, -n:], attended), past

    def _after(self, x: Tensor, attended: Tensor) -> Tensor:
        x = self.attention_norm(x + self.dropout(attended))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))  # type: ignore[no-any-return]


class TransformerConfig(SequentialConfig):
    """The settings of the sequence encoder, shared by all models that have one; defaults are the MSM4SR paper's."""

    dim: int = Field(64, ge=1, description="dimension of item and history vectors")
    layers: int = Field(2, ge=1, description="Transformer layers")
    heads: int = Field(2, ge=1, description="attention heads; must divide dim")
    inner_dim: int = Field(256, ge=1, description="dimension inside the feed-forward network")
    dropout: float = Field(0.2, ge=0, lt=1, description="dropout everywhere except for attention weights")
    attention_dropout: float = Field(0.2, ge=0, lt=1, description="dropout of attention weights")

    split_by_heads: ClassVar[tuple[str, ...]] = ("dim",)

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        for name in self.split_by_heads:
            if (size := getattr(self, name)) % self.heads:
                raise ValueError(f"{name} must be a multiple of heads: {size} is not a multiple of {self.heads}")
        return self


class CausalTransformer(nn.Module):
    """Position embeddings and L layers; the output at a position encodes the prefix that ends there.

    Histories are padded on the right. Padding comes after every item, so the causal mask alone hides it.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.position = nn.Embedding(config.max_history, config.dim)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(CausalAttention(config.dim, config.heads, config.attention_dropout), config)
            for _ in range(config.layers)
        )

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """[B, L, D] to [B, L, D]. With `visible`, bool [B, L], every position attends to these (not causal)."""
        x = self.dropout(self.norm(x + self.position.weight[: x.shape[1]]))
        for layer in self.layers:
            x = layer(x, visible)
        return x

    def last(self, x: Tensor, lengths: Tensor) -> Tensor:
        """`forward` at position `lengths` [B] - 1, the only one that the last layer computes: [B, L, D] to [B, D]."""
        x = self.dropout(self.norm(x + self.position.weight[: x.shape[1]]))
        for layer in self.layers[:-1]:
            x = layer(x)
        return self.layers[-1].at(x, lengths - 1)  # type: ignore[no-any-return,operator]

    def extend(self, x: Tensor, past: Past = ()) -> tuple[Tensor, Past]:
        """`last` of histories that continue earlier ones of the same length; for evaluation.

        Args:
            x: [B, L, D], without padding.
            past: what the call for the items before has returned; none: x is complete.

        Returns:
            [B, D], and `past` for the items that follow.
        """
        begin = past[0][0].shape[2] if past else 0
        x = self.norm(x + self.position.weight[begin : begin + x.shape[1]])
        extended = []
        for number, layer in enumerate(self.layers):
            n = 1 if number == len(self.layers) - 1 else x.shape[1]
            x, kept = layer.extend(x, past[number] if past else None, n)  # type: ignore[operator]
            extended.append(kept)
        return x[:, -1], tuple(extended)
