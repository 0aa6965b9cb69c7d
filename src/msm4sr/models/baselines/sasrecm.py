"""SASRecM: SASRec whose item embedding is the sum of the ID embedding and the item's projected features.

A baseline of the MSM4SR paper (Zhang, Zhou, Zeng, Shen; arXiv 2303.11879), which describes it in one sentence:

    v_i = e_i + sum_a (W_a f_i^a / sqrt(D_a) + b_a)

e_i is the ID embedding, f_i^a the mean of the item's sentences (images) in modality a, of dimension D_a and mean length
1 (`ItemMeans`). v_i replaces e_i in SASRec, in the Transformer's input and in the score. An item without a modality has
a missing-modality embedding in place of its term. Without features the model is SASRec.

Why sqrt(D_a): Adam moves every weight by about the learning rate, so W_a f moves sqrt(D_a) times as far as an ID
embedding. Divided by it, content and ID learn at the same pace, and the model starts as SASRec. (On MovieLens-100K,
where D_a is 384 and 1280, training without the division had its best validation in the first epoch.)
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from msm4sr.models.base import Inputs
from msm4sr.models.baselines.sasrec import IDTransformer, IDTransformerConfig
from msm4sr.models.layers import ItemMeans, fill_missing, initialise
from msm4sr.models.located_items import LocatedItems
from msm4sr.models.registry import register_model
from msm4sr.models.transformer import SEARCH, CausalTransformer


class SASRecMConfig(IDTransformerConfig):
    name: Literal["sasrecm"] = "sasrecm"


class ContentProjection(nn.Module):
    """W f / sqrt(D_a) + b of every item in one modality; a missing-modality embedding for items without it."""

    def __init__(self, dim_in: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim_in, dim)
        self.missing = nn.Parameter(0.02 * torch.randn(dim))  # the length of an ID embedding

    def forward(self, means: Tensor, lengths: Tensor) -> Tensor:
        """As `fill_missing`: [n, D_a] to [N, D]."""
        return fill_missing(self.linear(means / means.shape[1] ** 0.5), lengths, self.missing)


@register_model("sasrecm")
class SASRecM(IDTransformer):
    """A causal Transformer over sums of ID embeddings and projected features."""

    Config = SASRecMConfig
    label = "SASRecM"
    uses_features = True
    search = {**SEARCH, "model.layers": {"kind": "int", "low": 1, "high": 3}}

    def __init__(self, config: SASRecMConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        present = dict(sorted(inputs.present_features().items()))
        self.features = nn.ModuleDict({a: ItemMeans(rows) for a, rows in present.items()})  # f
        self.content = nn.ModuleDict(
            {a: ContentProjection(rows.values.shape[1], config.dim) for a, rows in present.items()}
        )
        self.transformer = CausalTransformer(config)
        self.apply(initialise)

    def encode_items(self) -> Tensor:
        """v: [N, 1, D]."""
        return self._encode(self.item_embedding.table())

    def encode_some_items(self, items: LocatedItems) -> Tensor:
        """[n, 1, D]."""
        return self._encode(self.item_embedding(items.numbers), items.numbers)

    def _encode(self, vectors: Tensor, items: Tensor | None = None) -> Tensor:
        for modality, content in self.content.items():
            vectors = vectors + content(*self.features[modality](items))
        return vectors.unsqueeze(1)
