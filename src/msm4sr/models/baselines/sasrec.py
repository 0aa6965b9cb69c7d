"""SASRec: self-attentive sequential recommendation (Kang and McAuley 2018; arXiv 1808.09781), on item IDs alone.

h_1 ... h_L = Transformer(e_1 + p_1, ..., e_L + p_L), causal, e an item's ID embedding, p a position's; the score of
item i after position l is h_l . e_i.

Its authors compare each next item with one that is drawn, by binary cross-entropy (`loss: bce`). The default here is
cross-entropy over all items, which every row of a comparison is trained by, and which is the stronger one. They have
d 50, 2 layers, 1 head, dropout 0.2 (0.5 on sparse data), 50 items of a history (200 for MovieLens-1M).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from msm4sr.models.base import Inputs, ProductModel
from msm4sr.models.layers import initialise, take
from msm4sr.models.transformer import CausalTransformer, TransformerConfig


class NextItemTransformerConfig(TransformerConfig):
    """What SASRec and S3-Rec have in common."""

    loss: Literal["softmax", "bce"] = Field(
        "softmax", description="over all items; bce: the authors', against one item that is drawn"
    )


class SASRecConfig(NextItemTransformerConfig):
    """The settings of the model."""

    name: Literal["sasrec"] = "sasrec"


class SASRec(ProductModel):
    """A causal Transformer over ID embeddings; an item's score is the product of its embedding with the output."""

    Config = SASRecConfig
    config: SASRecConfig

    def __init__(self, config: SASRecConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.max_history = config.max_history
        self.loss = config.loss
        self.item_embedding = nn.Embedding(inputs.n_items, config.dim)
        self.transformer = CausalTransformer(config)
        self.apply(initialise)

    def encode_items(self) -> Tensor:
        """The ID embeddings: [N, 1, D]."""
        return self.item_embedding.weight.unsqueeze(1)

    def encode_some_items(self, items: Tensor) -> Tensor:
        """[n, 1, D]."""
        return self.item_embedding(items).unsqueeze(1)  # type: ignore[no-any-return]

    def encode_histories(self, histories: Tensor, catalogue: Tensor) -> Tensor:
        """Item rows [B, L] to a vector for each prefix [B, L, D]."""
        return self.transformer(take(catalogue, histories).squeeze(2))  # type: ignore[no-any-return]

    def encode_last(self, histories: Tensor, lengths: Tensor, catalogue: Tensor) -> Tensor:
        """[B, D]."""
        return self.transformer.last(take(catalogue, histories).squeeze(2), lengths)

    def scoring_vectors(self, catalogue: Tensor) -> Tensor:
        """[N, D]."""
        return catalogue.squeeze(1)
