"""The causal Transformer over histories.

Shape letters: B histories, L positions of a history, D model width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from msm4sr.models.base import ModelConfig
from msm4sr.models.layers import Dropout

SEARCH: Mapping[str, Mapping[str, Any]] = {
    "finetune.learning_rate": {"kind": "float", "low": 3e-4, "high": 1e-2, "log": True},
    "model.dropout": {"kind": "float", "low": 0.0, "high": 0.6},
    "finetune.weight_decay": {"kind": "categorical", "choices": [0.0, 1e-6, 1e-5, 1e-4]},
}
"""What tuning searches of every model with a Transformer."""


def attend(q: Tensor, k: Tensor, v: Tensor, dropout: Dropout, visible: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, with dropout of the weights; causal, or over what is `visible`, bool [B, L].

    q and k [B, heads, L, any], v [B, heads, L, d] to [B, heads, L, d].
    """
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
    """Multi-head self-attention in which a position sees itself and what came before it."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """[B, L, D] to [B, L, D]. With `visible`, bool [B, L], a position sees these in place of what came before."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, L, D/heads]
        mixed = attend(q, k, v, self.dropout, visible)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def at(self, x: Tensor, places: Tensor) -> Tensor:
        """What `forward` gives at one place of each row alone: x [B, L, D], places [B] to [B, D]."""
        own, dim = x[torch.arange(x.shape[0], device=x.device), places], x.shape[2]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = (
            F.linear(own, weight[:dim], bias[:dim]).view(x.shape[0], 1, self.heads, -1).transpose(1, 2)
        )  # [B, heads, 1, d]
        keys = F.linear(x, weight[dim:], bias[dim:])
        k, v = keys.view(*x.shape[:2], 2, self.heads, -1).permute(2, 0, 3, 1, 4)  # each [B, heads, L, d]
        visible = torch.arange(x.shape[1], device=x.device) <= places.unsqueeze(1)  # [B, L]
        mixed = attend(q, k, v, self.dropout, visible)
        return self.out(mixed.transpose(1, 2).flatten(1))  # type: ignore[no-any-return]


class TransformerLayer(nn.Module):
    """Attention, then a feed-forward net, each added to its input and normalised after."""

    def __init__(self, attention: nn.Module, dim: int, inner_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = nn.Sequential(nn.Linear(dim, inner_dim), nn.GELU(), nn.Linear(inner_dim, dim))
        self.attention_norm = nn.LayerNorm(dim)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """[B, L, D] to [B, L, D]. `context` is what the attention is given beside them."""
        return self._after(x, self.attention(x, context))

    def _after(self, x: Tensor, attended: Tensor) -> Tensor:
        x = self.attention_norm(x + self.dropout(attended))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))  # type: ignore[no-any-return]

    def at(self, x: Tensor, places: Tensor) -> Tensor:
        """What `forward` gives at one place of each row alone: [B, D]."""
        own = x[torch.arange(x.shape[0], device=x.device), places]
        return self._after(own, self.attention.at(x, places))  # type: ignore[operator]


class TransformerConfig(ModelConfig):
    """The settings of the sequence encoder, shared by every model that has one; defaults are the paper's."""

    dim: int = Field(64, ge=1, description="width of item and history vectors")
    layers: int = Field(2, ge=1, description="Transformer layers")
    heads: int = Field(2, ge=1, description="attention heads; must divide dim")
    inner_dim: int = Field(256, ge=1, description="width inside the feed-forward net")
    dropout: float = Field(0.2, ge=0, lt=1, description="dropout wherever the model has one, attention weights apart")
    attention_dropout: float = Field(0.2, ge=0, lt=1, description="dropout of attention weights")
    max_history: int = Field(50, ge=1, description="items of a history that are read, the latest ones")
    seen_item_bias: bool = Field(
        False, description="learn a number that is added to the scores of the items which the history holds"
    )

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"dim must be a multiple of heads: {self.dim} is not a multiple of {self.heads}")
        return self


class CausalTransformer(nn.Module):
    """Position embedding and L layers; the output at a position is the encoding of the prefix that ends there.

    Ragged are padded on the right. A padded slot comes after every real one, so the causal mask alone keeps it
    out of everything that is read.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.position = nn.Embedding(config.max_history, config.dim)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(
                CausalAttention(config.dim, config.heads, config.attention_dropout),
                config.dim,
                config.inner_dim,
                config.dropout,
            )
            for _ in range(config.layers)
        )

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """Input vectors [B, L, D], L <= max_history, to prefix encodings [B, L, D].

        With `visible`, bool [B, L], it is no longer causal: each position sees all of these (one a row at least).
        """
        x = self.dropout(self.norm(x + self.position.weight[: x.shape[1]]))
        for layer in self.layers:
            x = layer(x, visible)
        return x

    def last(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The encoding of each whole history: [B, L, D], of which the first `lengths` [B] count, to [B, D].

        As `forward` at the last places, for less: what the last layer gives at the others is read by nobody.
        """
        x = self.dropout(self.norm(x + self.position.weight[: x.shape[1]]))
        for layer in self.layers[:-1]:
            x = layer(x)
        return self.layers[-1].at(x, lengths - 1)  # type: ignore[no-any-return,operator]
