"""SASRec: self-attentive sequential recommendation (Kang and McAuley 2018; arXiv 1808.09781), from item IDs alone.

    h_1 ... h_L = Transformer(e_1 + p_1, ..., e_L + p_L),   causal;   score of item i after position l: h_l . e_i

with the ID embeddings e and the position embeddings p.

Defaults: the authors compare each next item with one random negative by binary cross-entropy (`loss: bce`). Here the
default is cross-entropy over all items, which is stronger and which all models of a comparison use. The authors have
d 50, 2 layers, 1 head, dropout 0.2 (0.5 on sparse data) and histories of 50 items (200 for MovieLens-1M).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from msm4sr.models.base import FactorizedModel, Inputs
from msm4sr.models.item_table import ItemTable
from msm4sr.models.layers import initialise, take
from msm4sr.models.located_items import LocatedItems
from msm4sr.models.registry import register_model
from msm4sr.models.transformer import SEARCH, CausalTransformer, Past, TransformerConfig


class IDTransformerConfig(TransformerConfig):
    """The settings that SASRec, SASRecM and S3-Rec share."""

    loss: Literal["softmax", "bce"] = Field(
        "softmax", description="softmax over all items; bce: SASRec's own, against one random negative"
    )


class IDTransformer(FactorizedModel):
    """What SASRec, SASRecM and S3-Rec share.

    A subclass creates `transformer`, after its parameters that are initialised earlier, and calls `apply(initialise)`.
    """

    transformer: CausalTransformer

    def __init__(self, config: IDTransformerConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.item_embedding = ItemTable(inputs.n_items, config.dim, inputs.shard)  # e

    def encode_items(self) -> Tensor:
        """[N, 1, D]."""
        return self.item_embedding.table().unsqueeze(1)

    def encode_some_items(self, items: LocatedItems) -> Tensor:
        """[n, 1, D]."""
        return self.item_embedding(items.numbers).unsqueeze(1)  # type: ignore[no-any-return]

    def encode_histories(self, histories: Tensor, embeddings: Tensor) -> Tensor:
        """[B, L, D]."""
        return self.transformer(take(embeddings, histories).squeeze(2))  # type: ignore[no-any-return]

    def encode_last(self, histories: Tensor, lengths: Tensor, embeddings: Tensor) -> Tensor:
        """[B, D]."""
        return self.transformer.last(take(embeddings, histories).squeeze(2), lengths)

    def extend_history(self, items: Tensor, embeddings: Tensor, past: Past) -> tuple[Tensor, Past]:
        """[1, D]."""
        return self.transformer.extend(take(embeddings, items).squeeze(2), past)


class SASRecConfig(IDTransformerConfig):
    name: Literal["sasrec"] = "sasrec"


@register_model("sasrec")
class SASRec(IDTransformer):
    """A causal Transformer over ID embeddings."""

    Config = SASRecConfig
    label = "SASRec"
    can_pad = True
    search = {**SEARCH, "model.layers": {"kind": "int", "low": 1, "high": 3}}

    def __init__(self, config: SASRecConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.transformer = CausalTransformer(config)
        self.apply(initialise)
