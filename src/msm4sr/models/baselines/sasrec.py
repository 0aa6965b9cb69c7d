"""SASRec: self-attentive sequential recommendation (Kang and McAuley 2018; arXiv 1808.09781), on item IDs alone.

Trained here with cross-entropy over all items in place of its authors' sampled binary cross-entropy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from torch import Tensor, nn

from msm4sr.models.base import read_model, whole, write_model
from msm4sr.models.layers import CausalTransformer, TransformerConfig, initialise, take


class SASRecConfig(TransformerConfig):
    """The settings of the model."""

    name: Literal["sasrec"] = "sasrec"


class SASRec(nn.Module):
    """A causal Transformer over ID embeddings; an item's score is the product of its embedding with the output."""

    def __init__(self, config: SASRecConfig, n_items: int) -> None:
        super().__init__()
        self.config = config
        self.max_history = config.max_history
        self.item_embedding = nn.Embedding(n_items, config.dim)
        self.transformer = CausalTransformer(config)
        self.apply(initialise)

    def encode_items(self) -> Tensor:
        """The ID embeddings: [N, 1, D]."""
        return self.item_embedding.weight.unsqueeze(1)

    def encode_histories(self, histories: Tensor, catalogue: Tensor) -> Tensor:
        """Item rows [B, L] to a vector for each prefix [B, L, D]."""
        return self.transformer(take(catalogue, histories).squeeze(2))  # type: ignore[no-any-return]

    def scoring_vectors(self, catalogue: Tensor) -> Tensor:
        """[N, D]."""
        return catalogue.squeeze(1)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        stored = {
            "config": self.config.model_dump(mode="json"),
            "n_items": self.item_embedding.num_embeddings,
        }
        write_model(self, stored, Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read what `save_pretrained` wrote. Raises InputError when it is not there or not whole."""
        stored, state = read_model(Path(folder))
        with whole(Path(folder)):
            model = cls(SASRecConfig.model_validate(stored["config"]), stored["n_items"])
            model.load_state_dict(state)
        return model.eval()
