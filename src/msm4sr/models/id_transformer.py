"""The base of the models that are a causal Transformer over ID embeddings: SASRec, SASRecM, S3-Rec."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from msm4sr.models.base import FactorizedModel, Inputs
from msm4sr.models.layers import take
from msm4sr.models.transformer import CausalTransformer, TransformerConfig


class IDTransformerConfig(TransformerConfig):
    """The settings that these models share."""

    loss: Literal["softmax", "bce"] = Field(
        "softmax", description="softmax over all items; bce: SASRec's own, against one random negative"
    )


class IDTransformer(FactorizedModel):
    """A causal Transformer over item embeddings; the score is its output times the item embedding.

    A subclass creates `transformer`, after its parameters that are initialised earlier, and calls `apply(initialise)`.
    """

    config: IDTransformerConfig
    transformer: CausalTransformer

    def __init__(self, config: IDTransformerConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.max_history = config.max_history
        self.loss = config.loss
        self.item_embedding = nn.Embedding(inputs.n_items, config.dim)

    def encode_items(self) -> Tensor:
        """The ID embeddings: [N, 1, D]."""
        return self.item_embedding.weight.unsqueeze(1)

    def encode_some_items(self, items: Tensor) -> Tensor:
        """[n, 1, D]."""
        return self.item_embedding(items).unsqueeze(1)  # type: ignore[no-any-return]

    def encode_histories(self, histories: Tensor, embeddings: Tensor) -> Tensor:
        """Item numbers [B, L] to a vector for each prefix [B, L, D]."""
        return self.transformer(take(embeddings, histories).squeeze(2))  # type: ignore[no-any-return]

    def encode_last(self, histories: Tensor, lengths: Tensor, embeddings: Tensor) -> Tensor:
        """[B, D]."""
        return self.transformer.last(take(embeddings, histories).squeeze(2), lengths)
