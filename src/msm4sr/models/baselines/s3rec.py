"""S3-Rec: self-supervised pre-training by mutual information, then SASRec (Zhou, Wang, et al. 2020, CIKM;
arXiv 2008.07873).

Pre-training reads a history in both directions, with F_l the output at position l, e_i the item embeddings, e_a those
of the attributes, and one map a task:

- AAP, associated attributes: a position that is not masked tells its item's attributes, sigma(F_l W_1 e_a);
- MIP, masked item: a masked position tells its item from another one, sigma(F_l W_2 e_i);
- MAP, masked attributes: a masked position tells its item's attributes, sigma(F_l W_3 e_a);
- SP, segment: the history without a segment of it tells that segment from another one, sigma(F W_4 F~), each read at
  its last position.

The formulas are in `msm4sr.objectives`, the masking in `msm4sr.training.s3rec`. Fine-tuning is SASRec's, causal, with
the same embeddings and Transformer; what only pre-training has (the maps, e_a, the mask) stays as it is.

Attributes are the item's categories. An item without any is an example of having none; without any category in the
data, AAP and MAP are left out. Weights and the share of masked items are the authors' (their code: 0.2, 1, 1, 0.5 and
0.2; RecBole's port has 1 and 0.2 for the first two), as are d 64, 2 layers, 2 heads, 50 items of a history. In AAP the
paper writes e_i in place of F_l; this is its code. Fine-tuning by cross-entropy over all items, as every row of a
comparison is trained; `loss: bce` is the authors'.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from msm4sr.models.base import CategoryModel, Inputs
from msm4sr.models.baselines.sasrec import NextItemTransformerConfig
from msm4sr.models.layers import initialise, take
from msm4sr.models.transformer import CausalTransformer


class S3RecConfig(NextItemTransformerConfig):
    """The settings of the model and of its pre-training; epochs, rates and the like stand in `pretrain`."""

    name: Literal["s3rec"] = "s3rec"
    max_history: int = Field(50, ge=2, description="items of a history that are read, the latest ones; one is masked")
    mask_probability: float = Field(0.2, gt=0, lt=1, description="of an item, in pre-training")
    aap_weight: float = Field(0.2, ge=0, description="of associated attribute prediction")
    mip_weight: float = Field(1.0, ge=0, description="of masked item prediction")
    map_weight: float = Field(1.0, ge=0, description="of masked attribute prediction")
    sp_weight: float = Field(0.5, ge=0, description="of segment prediction")


class S3Rec(CategoryModel):
    """SASRec with what its pre-training needs."""

    Config = S3RecConfig
    config: S3RecConfig

    def __init__(self, config: S3RecConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.max_history = config.max_history
        self.loss = config.loss
        self.item_embedding = nn.Embedding(inputs.n_items, config.dim)  # e_i
        self.transformer = CausalTransformer(config)
        self.mask = nn.Parameter(0.02 * torch.randn(config.dim))  # stands where an item is masked
        tasks = ["mip", "sp"]
        if inputs.n_categories:
            self.category_embedding = nn.Embedding(inputs.n_categories, config.dim)  # e_a
            tasks = ["aap", "mip", "map", "sp"]
        self.maps = nn.ModuleDict({task: nn.Linear(config.dim, config.dim, bias=False) for task in tasks})  # W_1 to W_4
        self.apply(initialise)

    # -- pre-training --------------------------------------------------------------------------------------------

    def encode_both_ways(self, rows: Tensor, masked: Tensor, real: Tensor) -> Tensor:
        """F: item rows [B, L], the mask vector in place of those `masked` [B, L], to [B, L, D].

        Every position sees all `real` [B, L] ones, the masked among them.
        """
        items = torch.where(masked.unsqueeze(2), self.mask, self.item_embedding(rows))
        return self.transformer(items, real)  # type: ignore[no-any-return]

    # -- fine-tuning, evaluation, serving: SASRec ----------------------------------------------------------------

    def encode_items(self) -> Tensor:
        """The ID embeddings: [N, 1, D]."""
        return self.item_embedding.weight.unsqueeze(1)

    def encode_histories(self, histories: Tensor, catalogue: Tensor) -> Tensor:
        """Item rows [B, L] to a vector for each prefix [B, L, D]."""
        return self.transformer(take(catalogue, histories).squeeze(2))  # type: ignore[no-any-return]

    def encode_last(self, histories: Tensor, lengths: Tensor, catalogue: Tensor) -> Tensor:
        """[B, D]."""
        return self.transformer.last(take(catalogue, histories).squeeze(2), lengths)

    def scoring_vectors(self, catalogue: Tensor) -> Tensor:
        """[N, D]."""
        return catalogue.squeeze(1)
