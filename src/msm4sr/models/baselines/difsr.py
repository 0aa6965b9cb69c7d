"""DIF-SR: decoupled side information fusion for sequential recommendation (Xie, Zhou, Kim 2022; arXiv 2204.11046).

Side information enters the attention and not the item's vector. In every layer and head of dimension d, with the
layer's input R (first: ID embeddings), and the position and attribute embeddings P and A, the same in all layers,

    score = (R W_q)(R W_k)^T + (P W_q')(P W_k')^T + (A W_q'')(A W_k'')^T
    output = softmax(score / sqrt(d)) (R W_v),  causal

Values and scoring vectors are IDs only: y = softmax(h E^T). A predictor of the next item's attributes is trained beside
it, a = sigmoid(W h + b); its mean binary cross-entropy is added to the loss with the weight lambda.

Attributes are the item's categories, and its attribute vector is the sum of their embeddings, as in the authors' code:
zeros for an item without categories, whose labels as a next item are all 0. Without any category, ID and position
remain.

Of the authors' three fusions of the scores this is the sum, as above; concat and gate mix in later positions, so that a
score would depend on the padding. Their defaults: d 256 with 64 for an attribute (the same ratio here), 2 to 4 layers,
2 to 8 heads, lambda 10 (of 5 and 10), cross-entropy over all items. With few categories lambda 10 slows the first
epochs; over the 19 genres of MovieLens-100K it ended no worse than 1 (one seed).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from msm4sr.models.base import FactorizedModel, Inputs
from msm4sr.models.item_table import ItemTable
from msm4sr.models.layers import Dropout, initialise, take
from msm4sr.models.located_items import LocatedItems
from msm4sr.models.registry import register_model
from msm4sr.models.transformer import SEARCH, TransformerConfig, TransformerLayer, attend


class DIFSRConfig(TransformerConfig):
    name: Literal["difsr"] = "difsr"
    attribute_dim: int = Field(16, ge=1, description="dimension of an attribute embedding; a multiple of heads")
    attribute_weight: float = Field(10.0, ge=0, description="lambda, weight of the attribute prediction loss")
    split_by_heads: ClassVar[tuple[str, ...]] = ("dim", "attribute_dim")


class DecoupledAttention(nn.Module):
    """The sum of the scores of ID, position and attributes; values of the ID alone. Each source has its own weights."""

    def __init__(self, dim: int, attribute_dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.widths = [dim, attribute_dim] if attribute_dim else [dim]
        self.qkv = nn.Linear(dim, 3 * dim)
        self.side = nn.ModuleList(nn.Linear(width, 2 * width) for width in self.widths)  # queries and keys
        self.out = nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)

    def per_head(self, x: Tensor, parts: int) -> Tensor:
        """[B, L, parts * dim] to [parts, B, heads, L, dim / heads]."""
        rows, length, width = x.shape
        return x.view(rows, length, parts, self.heads, width // parts // self.heads).permute(2, 0, 3, 1, 4)

    def forward(self, x: Tensor, side: Tensor) -> Tensor:
        """x [B, L, D] and the concatenated position and attribute vectors [B, L, D + D_a] to [B, L, D]."""
        q, k, v = self.per_head(self.qkv(x), 3)
        sources = zip(self.side, torch.split(side, self.widths, dim=2), strict=True)
        queries_and_keys = [self.per_head(linear(source), 2) for linear, source in sources]
        q = torch.cat([q, *(pair[0] for pair in queries_and_keys)], dim=-1)  # the product of concatenations
        k = torch.cat([k, *(pair[1] for pair in queries_and_keys)], dim=-1)  # is the sum of the products
        mixed = attend(q, k, v, self.dropout)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


@register_model("difsr")
class DIFSR(FactorizedModel):
    """A causal Transformer over IDs whose attention also compares positions and attributes."""

    Config = DIFSRConfig
    label = "DIF-SR"
    uses_categories = True
    search = {
        **SEARCH,
        "model.attribute_weight": {"kind": "float", "low": 0.1, "high": 20.0, "log": True},
        "model.attribute_dim": {"kind": "categorical", "choices": [16, 32, 64]},
    }
    config: DIFSRConfig
    row_weights = {**FactorizedModel.row_weights, "predictor.*": "categories"}

    def __init__(self, config: DIFSRConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        attribute_dim = config.attribute_dim if inputs.n_categories else 0
        self.item_embedding = ItemTable(inputs.n_items, config.dim, inputs.shard)  # E
        self.position = nn.Embedding(config.max_history, config.dim)  # P
        if inputs.n_categories:
            self.category_embedding = nn.Embedding(inputs.n_categories, attribute_dim)  # A is the sum of these
            self.predictor = nn.Linear(config.dim, inputs.n_categories)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)
        sizes = (config.dim, attribute_dim, config.heads, config.attention_dropout)
        self.layers = nn.ModuleList(TransformerLayer(DecoupledAttention(*sizes), config) for _ in range(config.layers))
        self.apply(initialise)

    def encode_items(self) -> Tensor:
        """ID embeddings and sums of category embeddings, concatenated: [N, 1, D + D_a]."""
        return self._encode(self.item_embedding.table())

    def encode_some_items(self, items: LocatedItems) -> Tensor:
        """[n, 1, D + D_a]."""
        return self._encode(self.item_embedding(items.numbers), items.numbers)

    def _encode(self, vectors: Tensor, items: Tensor | None = None) -> Tensor:
        if self.categories.n_categories:
            vectors = torch.cat([vectors, self.categories.sums(self.category_embedding.weight, items)], dim=1)
        return vectors.unsqueeze(1)

    def encode_histories(self, histories: Tensor, embeddings: Tensor) -> Tensor:
        """[B, L, D]."""
        items = take(embeddings, histories).squeeze(2)  # [B, L, D + D_a]
        ids, attributes = items[..., : self.config.dim], items[..., self.config.dim :]
        side = torch.cat([self.position.weight[: ids.shape[1]].expand_as(ids), attributes], dim=2)
        x = self.dropout(self.norm(ids))
        for layer in self.layers:
            x = layer(x, side)
        return x  # type: ignore[no-any-return]

    def scoring_vectors(self, embeddings: Tensor) -> Tensor:
        """E: [N, D]."""
        return embeddings[:, 0, : self.config.dim]

    def auxiliary_loss(self, prefixes: Tensor, items: Tensor, embeddings: Tensor) -> Tensor | None:
        """lambda times the mean binary cross-entropy of the next items' attributes."""
        if not (self.categories.n_categories and self.config.attribute_weight):
            return None
        loss = F.binary_cross_entropy_with_logits(self.predictor(prefixes), self.categories.labels(items))
        return self.config.attribute_weight * loss
