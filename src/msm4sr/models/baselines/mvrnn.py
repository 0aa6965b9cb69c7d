"""MV-RNN: a multi-view recurrent neural network (Cui, Wu, Liu, Zhong, Wang 2018; TKDE, doi 10.1109/TKDE.2018.2881260).

An item has a latent vector x_i (its ID embedding) and a content vector m_i from its features f_i^a in each modality:

    m_i = sum_a W_a f_i^a,    the sum over the modalities a that the item has

Both are the input of a GRU whose state scores the items, with p_i = [x_i; m_i]:

- united structure:   h_t = GRU(h_{t-1}, p_t);  score of i: h_t . p_i
- separate structure: g_t = GRU_x(g_{t-1}, x_t), k_t = GRU_m(k_{t-1}, m_t);  score of i: g_t . x_i + k_t . m_i

The multi-view denoising autoencoder (3mDAE): in training, each modality of an item is removed with the probability
`corruption`, and all modalities are reconstructed from the remaining m_i, with the same weights:

    L_AE = lambda/2 sum_a |f_i^a - W_a^T m_i|^2,    added to the loss for every next item i

so that m_i stays similar whichever modality is missing. A modality that an item lacks adds nothing to m_i and is not
reconstructed. If no item has features, only x_i remains.

Defaults: the authors have 20 dimensions for x and m, corruption 0.1 to 0.3, try the united structure first, and train
by BPR (`loss: bpr`); here it is cross-entropy over all items, as for all models of a comparison. Without corruption and
reconstruction the model is their variant of fusion by addition.

Deviations: torch's GRU resets the state after its product with the weights. f_i^a has mean length 1 (`ItemMeans`), so
lambda is not on the authors' scale (1e-5). W_a is V_a / sqrt(dimension of f^a) with V_a trained, so that a step of Adam
moves m as far as x. The corruption is drawn per item and step, not per occurrence.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from msm4sr.models.base import FactorizedModel, Inputs, SequentialConfig
from msm4sr.models.item_table import ItemTable
from msm4sr.models.layers import Dropout, ItemMeans, initialise, take
from msm4sr.models.located_items import LocatedItems
from msm4sr.models.registry import register_model
from msm4sr.models.transformer import SEARCH


class MVRNNConfig(SequentialConfig):
    name: Literal["mvrnn"] = "mvrnn"
    dim: int = Field(64, ge=1, description="dimension of the latent and of the content vector")
    structure: Literal["united", "separate"] = Field("united", description="one hidden state, or one per view")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout of the network's input; the authors have none")
    corruption: float = Field(0.3, ge=0, lt=1, description="probability that training removes a modality")
    reconstruction_weight: float = Field(0.1, ge=0, description="lambda, weight of the autoencoder's loss")
    loss: Literal["softmax", "bpr"] = Field(
        "softmax", description="softmax over all items; bpr: the authors', against one random negative"
    )


@register_model("mvrnn")
class MVRNN(FactorizedModel):
    """A recurrent network over latent and content vectors."""

    Config = MVRNNConfig
    label = "MV-RNN"
    search = {
        **SEARCH,
        "model.structure": {"kind": "categorical", "choices": ["united", "separate"]},
        "model.corruption": {"kind": "float", "low": 0.0, "high": 0.5},
        "model.reconstruction_weight": {"kind": "float", "low": 1e-2, "high": 1.0, "log": True},
    }
    config: MVRNNConfig
    uses_features = True

    def __init__(self, config: MVRNNConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.item_embedding = ItemTable(inputs.n_items, config.dim, inputs.shard)  # x
        present = dict(sorted(inputs.present_features().items()))
        self.features = nn.ModuleDict({a: ItemMeans(rows) for a, rows in present.items()})  # f
        self.apply(initialise)
        widths = {a: rows.values.shape[1] for a, rows in present.items()}
        # V such that the rows of W start with the length of an ID embedding
        self.weights = nn.ParameterDict(
            {a: torch.randn(config.dim, width) * (0.02 * math.sqrt(width)) for a, width in widths.items()}
        )
        self.dropout = Dropout(config.dropout)
        views = 2 if self.features else 1
        dims = [views * config.dim] if config.structure == "united" else [config.dim] * views
        self.recurrent = nn.ModuleList(nn.GRU(dim, dim, batch_first=True) for dim in dims)  # GRU, or GRU_x and GRU_m

    def encode_items(self) -> Tensor:
        """x and m, after corruption in training: [N, 2, D]. Without features x: [N, 1, D]."""
        return self._encode(self.item_embedding.table())

    def encode_some_items(self, items: LocatedItems) -> Tensor:
        """[n, 2, D] or [n, 1, D]."""
        return self._encode(self.item_embedding(items.numbers), items.numbers)

    def _encode(self, latent: Tensor, items: Tensor | None = None) -> Tensor:
        if not self.features:
            return latent.unsqueeze(1)
        content = torch.zeros_like(latent)  # m
        for modality, features in self.features.items():
            vectors, lengths = features(items)
            projected = vectors @ self.weight(modality).T
            if self.training:
                kept = torch.rand(len(projected), 1, device=projected.device) >= self.config.corruption
                projected = projected * kept
            content = content.index_add(0, lengths.nonzero().squeeze(1), projected.to(content.dtype))
        return torch.stack([latent, content], dim=1)

    def weight(self, modality: str) -> Tensor:
        """W of a modality: [D, D_in]."""
        weight: nn.Parameter = self.weights[modality]
        return weight.div(math.sqrt(weight.shape[1]))

    def encode_histories(self, histories: Tensor, embeddings: Tensor) -> Tensor:
        """h or [g; k]: [B, L, 2 D]."""
        inputs = self.dropout(take(embeddings, histories)).flatten(2)  # [B, L, 2 D]
        parts = inputs.chunk(len(self.recurrent), dim=2)
        states = [recurrent(part)[0] for recurrent, part in zip(self.recurrent, parts, strict=True)]
        return torch.cat(states, dim=2)

    def auxiliary_loss(self, prefixes: Tensor, items: Tensor, embeddings: Tensor) -> Tensor | None:
        """L_AE, the mean over the next items."""
        if not (self.features and self.config.reconstruction_weight):
            return None
        content, total = embeddings[:, 1], prefixes.new_zeros(())  # m: [P, D]
        for modality, features in self.features.items():
            vectors, lengths = features(items)
            reconstructed = content[lengths.bool()] @ self.weight(modality)
            total = total + (vectors - reconstructed).square().sum()
        return self.config.reconstruction_weight / 2 * total / len(items)
