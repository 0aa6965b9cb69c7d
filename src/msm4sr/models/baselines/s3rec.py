"""S3-Rec: self-supervised learning with mutual information maximisation, then SASRec (Zhou, Wang et al. 2020;
arXiv 2008.07873).

**Pre-training** reads a history in both directions. With F_l the output at position l, e_i the item embeddings, e_a
the attribute embeddings, and one matrix W per task:

- AAP, associated attribute prediction: the attributes of the item at an unmasked position, sigma(F_l W_1 e_a);
- MIP, masked item prediction: the item at a masked position against a random one, sigma(F_l W_2 e_i);
- MAP, masked attribute prediction: the attributes of the item at a masked position, sigma(F_l W_3 e_a);
- SP, segment prediction: a masked segment of the history against a random segment, sigma(F W_4 F~), with the output
  at the last position of each.

The formulas are in `msm4sr.objectives`, the masking in `msm4sr.training.tasks.mutual_information`. **Fine-tuning** is
SASRec's, causal, with the same embeddings and Transformer; the W, e_a and the mask embedding are not trained further.

Attributes are the item's categories; an item may have none. If no item has any, AAP and MAP are dropped.

Defaults: the loss weights and the masking probability are those of the authors' code (0.2, 1, 1, 0.5 and 0.2; RecBole
has 1 and 0.2 for the first two), as are d 64, 2 layers, 2 heads and histories of 50 items. In AAP the paper prints e_i
where its code, and this, have F_l. That code always masks the last item of a history; here, as in the paper, it is
masked as often as others. Fine-tuning uses cross-entropy over all items; `loss: bce` is the authors'.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from msm4sr.models.base import FactorizedScorer, Inputs, Scorer
from msm4sr.models.baselines.sasrec import IDTransformer, IDTransformerConfig
from msm4sr.models.layers import at_last, initialise
from msm4sr.models.registry import register_model
from msm4sr.models.transformer import SEARCH, CausalTransformer


class S3RecConfig(IDTransformerConfig):
    """The settings of the model and its pre-training losses; epochs and learning rate are settings of `pretrain`."""

    name: Literal["s3rec"] = "s3rec"
    max_history: int = Field(50, ge=2, description="latest items of a history that are read, a mask included")
    mask_probability: float = Field(0.2, gt=0, lt=1, description="probability that pre-training masks an item")
    aap_weight: float = Field(0.2, ge=0, description="weight of associated attribute prediction")
    mip_weight: float = Field(1.0, ge=0, description="weight of masked item prediction")
    map_weight: float = Field(1.0, ge=0, description="weight of masked attribute prediction")
    sp_weight: float = Field(0.5, ge=0, description="weight of segment prediction")


@register_model("s3rec")
class S3Rec(IDTransformer):
    """SASRec with the mask embedding, attribute embeddings and matrices of its pre-training."""

    Config = S3RecConfig
    label = "S3-Rec"
    uses_categories = True
    tasks = {"pretrain": "mutual_information", "finetune": "next_item"}
    search = {
        **SEARCH,
        "model.aap_weight": {"kind": "float", "low": 0.05, "high": 2.0, "log": True},
        "model.mip_weight": {"kind": "float", "low": 0.1, "high": 2.0, "log": True},
        "model.map_weight": {"kind": "float", "low": 0.1, "high": 2.0, "log": True},
    }
    config: S3RecConfig

    def __init__(self, config: S3RecConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.transformer = CausalTransformer(config)
        self.mask = nn.Parameter(0.02 * torch.randn(config.dim))
        tasks = ["mip", "sp"]
        if inputs.n_categories:
            self.category_embedding = nn.Embedding(inputs.n_categories, config.dim)  # e_a
            tasks = ["aap", "mip", "map", "sp"]
        self.maps = nn.ModuleDict({task: nn.Linear(config.dim, config.dim, bias=False) for task in tasks})  # W_1 to W_4
        self.apply(initialise)

    def encode_bidirectional(self, items: Tensor, masked: Tensor, real: Tensor) -> Tensor:
        """F [B, L, D] of item numbers [B, L]: every position attends to all real ones.

        The mask embedding replaces the `masked` items, bool [B, L]; `real`, bool [B, L], is False for padding.
        """
        inputs = torch.where(masked.unsqueeze(2), self.mask, self.item_embedding(items))
        return self.transformer(inputs, real)  # type: ignore[no-any-return]

    def pretrained_scorer(self) -> Scorer:
        return MaskedNextItem(self)


class MaskedNextItem(FactorizedScorer):
    """The item behind a mask that follows the history: masked item prediction trains it, and validation ranks by it."""

    def __init__(self, model: S3Rec) -> None:
        super().__init__()
        self.model = model
        self.max_history = model.max_history - 1  # the mask has a position too

    def encode_items(self) -> Tensor:
        """[N, 1, D]."""
        return self.model.encode_items()

    def encode_histories(self, histories: Tensor, embeddings: Tensor) -> Tensor:
        """[B, L, D]: the vector of the complete history at every position."""
        lengths = torch.full((len(histories),), histories.shape[1], device=histories.device)
        return self.encode_last(histories, lengths, embeddings).unsqueeze(1).expand(-1, histories.shape[1], -1)

    def encode_last(self, histories: Tensor, lengths: Tensor, embeddings: Tensor) -> Tensor:
        """F W_2 at a mask behind the first `lengths` items: [B, D]."""
        items = F.pad(histories, (0, 1))
        slot = torch.arange(items.shape[1], device=items.device)
        real = slot <= lengths.unsqueeze(1)
        hidden = self.model.encode_bidirectional(items, slot == lengths.unsqueeze(1), real)
        return self.model.maps["mip"](at_last(hidden, lengths + 1))  # type: ignore[no-any-return]
