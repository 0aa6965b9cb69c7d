"""SASRecM: SASRec whose item embedding is summed with what the item's texts and pictures say.

The comparison of MSM4SR's tables (Zhang, Zhou, Zeng, Shen; arXiv 2303.11879), which describes it in one sentence:

    v_i = e_i + sum_a (W_a f_i^a / sqrt(D_a) + b_a)

e_i is the ID embedding, f_i^a the frozen vector of item i in modality a (text, visual, any other), W_a and b_a are
trained. v_i takes the place of e_i in SASRec, in the Transformer's input and in the score. An item that lacks a
modality has a learned stand-in s_a in place of its term; a modality that no item has is left out, and without any the
model is SASRec. f_i^a is the mean of the item's sentences (pictures), of width D_a and mean length 1 (`ItemMeans`).

Why sqrt(D_a): Adam moves every weight by about the learning rate, hence W_a f by sqrt(D_a) times as far as an ID
embedding. Divided by it, content and ID learn at the same pace, and the model begins as SASRec. (On MovieLens-100K,
where D_a is 384 and 1280, training without it found its best validation at once and never came back to it.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from msm4sr.models.base import Inputs, ProductModel, stored_rows
from msm4sr.models.layers import ItemMeans, initialise, take
from msm4sr.models.transformer import CausalTransformer, TransformerConfig


class SASRecMConfig(TransformerConfig):
    """The settings of the model."""

    name: Literal["sasrecm"] = "sasrecm"


class ContentProjection(nn.Module):
    """W f / sqrt(D_a) + b of every item in one modality, a learned stand-in for items without it."""

    def __init__(self, vectors: Tensor, offsets: Tensor, dim: int) -> None:
        super().__init__()
        self.means = ItemMeans(vectors, offsets)
        self.linear = nn.Linear(self.means.dim, dim)
        self.missing = nn.Parameter(0.02 * torch.randn(dim))  # as long as what it stands for

    def forward(self) -> Tensor:
        """[N, D]."""
        vectors, lengths = self.means()
        projected = self.linear(vectors / self.means.dim**0.5)
        stand_in = self.missing.to(projected.dtype).expand(len(lengths), -1)
        return stand_in.index_copy(0, lengths.nonzero().squeeze(1), projected)


class SASRecM(ProductModel):
    """A causal Transformer over sums of ID embedding and projected features."""

    Config = SASRecMConfig
    config: SASRecMConfig
    uses_features = True

    def __init__(self, config: SASRecMConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.max_history = config.max_history
        self.item_embedding = nn.Embedding(inputs.n_items, config.dim)  # e
        self.content = nn.ModuleDict(
            {a: ContentProjection(*rows, config.dim) for a, rows in sorted(inputs.features.items()) if len(rows[0])}
        )
        self.transformer = CausalTransformer(config)
        self.apply(initialise)

    def encode_items(self) -> Tensor:
        """v: [N, 1, D]."""
        vectors = self.item_embedding.weight
        for content in self.content.values():
            vectors = vectors + content()
        return vectors.unsqueeze(1)

    def encode_histories(self, histories: Tensor, catalogue: Tensor) -> Tensor:
        """Item rows [B, L] to a vector for each prefix [B, L, D]."""
        return self.transformer(take(catalogue, histories).squeeze(2))  # type: ignore[no-any-return]

    def encode_last(self, histories: Tensor, lengths: Tensor, catalogue: Tensor) -> Tensor:
        """[B, D]."""
        return self.transformer.last(take(catalogue, histories).squeeze(2), lengths)

    def scoring_vectors(self, catalogue: Tensor) -> Tensor:
        """[N, D]."""
        return catalogue.squeeze(1)

    def sizes(self) -> dict[str, Any]:
        return super().sizes() | {"modalities": list(self.content)}

    @classmethod
    def inputs_of(cls, sizes: Mapping[str, Any], state: Mapping[str, Tensor]) -> Inputs:
        features = {a: stored_rows(state, f"content.{a}.means") for a in sizes["modalities"]}
        return replace(super().inputs_of(sizes, state), features=features)
