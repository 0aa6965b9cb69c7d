"""A factorized first-order Markov chain (the sequential part of FPMC, Rendle et al. 2010): the score of item i after
item j is p_j . q_i, with trained embeddings p and q."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from msm4sr.models.base import FactorizedModel, Inputs, ModelConfig
from msm4sr.models.layers import initialise, take
from msm4sr.models.registry import register_model


class MarkovConfig(ModelConfig):
    """The settings of the model."""

    name: Literal["markov"] = "markov"
    dim: int = Field(64, ge=1, description="embedding dimension")


@register_model("markov")
class Markov(FactorizedModel):
    """The latest item of a history decides."""

    Config = MarkovConfig
    label = "Markov chain"
    max_history = 50

    def __init__(self, config: MarkovConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.before = nn.Embedding(inputs.n_items, config.dim)  # p
        self.after = nn.Embedding(inputs.n_items, config.dim)  # q
        self.apply(initialise)

    def encode_items(self) -> Tensor:
        return torch.stack([self.before.weight, self.after.weight], dim=1)

    def encode_histories(self, histories: Tensor, embeddings: Tensor) -> Tensor:
        return take(embeddings[:, 0], histories)

    def scoring_vectors(self, embeddings: Tensor) -> Tensor:
        return embeddings[:, 1]
