"""MSM4SR: multimodal pre-training for sequential recommendation (Zhang, Zhou, Zeng, Shen; arXiv 2303.11879).

The model of both stages. In pre-training an item is what its texts and pictures say; fine-tuning adds an ID
embedding. The objectives are in `msm4sr.objectives`, the stages in `msm4sr.training`.

Shape letters: N items, M modalities, D width, B histories, L positions, P pairs (prefix, next item).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from msm4sr.errors import InputError
from msm4sr.models.base import ContentModel, ContentRows, Inputs, Ragged, stored_rows
from msm4sr.models.item_encoder import ItemEncoder, Whitening
from msm4sr.models.layers import ItemFeatures, initialise, take
from msm4sr.models.transformer import CausalTransformer, TransformerConfig


class Rows(Protocol):
    """Features of one modality: float32 vectors [R, D_in]; item i has the rows offsets[i]:offsets[i + 1]."""

    @property
    def vectors(self) -> np.ndarray: ...
    @property
    def offsets(self) -> np.ndarray: ...


def as_tensors(features: Mapping[str, Rows]) -> dict[str, Ragged]:
    """Stored features as a model takes them, in the memory (or the mapped file) where they are.

    A modality that no item has is left out.
    """
    return {
        a: (torch.from_numpy(rows.vectors), torch.from_numpy(rows.offsets))
        for a, rows in features.items()
        if len(rows.vectors)
    }


class MSM4SRConfig(TransformerConfig):
    """The settings of the model; defaults are the paper's."""

    name: Literal["msm4sr"] = "msm4sr"
    experts: int = Field(8, ge=1, description="experts in the item encoder (equation 4)")
    expert_dropout: float | None = Field(None, ge=0, lt=1, description="of equation 4; null: `dropout`")
    pooling_activation: Literal["none", "relu"] = Field(
        "none", description="between W1 and W2 of equation 3: none as printed, relu as released"
    )
    whiten: bool = Field(False, description="whiten what the experts read, by the vectors of the catalogue")
    temperature: float = Field(0.07, ge=0.005, description="tau of the contrastive losses and of cosine scoring")
    similarity: Literal["dot", "cosine"] = Field("dot", description="of equation 12; cosine is divided by tau")
    id_in_input: bool = Field(False, description="add the ID embedding to the Transformer's input too")
    projections: Literal["pretrain", "both", "none"] = Field(
        "pretrain", description="of equation 6: in pre-training alone, as printed, in equation 12 too, or nowhere"
    )
    id_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of the items that a step of fine-tuning knows by their content alone"
    )
    score_with: tuple[str, ...] = Field(
        (), description="modalities in equation 12; empty: all. (text,) is MSM4SR-T, (visual,) is MSM4SR-V"
    )


class MSM4SR(ContentModel):
    """The method's model over a fixed catalogue. It reads `inputs.features`.

    Raises:
        InputError: no modality at all, features of another number of items, or `score_with` names a modality that
            is not there.
    """

    Config = MSM4SRConfig
    config: MSM4SRConfig
    uses_features = True

    def __init__(self, config: MSM4SRConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        features, n_items = inputs.features, inputs.n_items
        self.max_history = config.max_history
        self.modalities = tuple(features)
        self.scored = tuple(a for a in self.modalities if a in config.score_with or not config.score_with)
        if not features:
            raise InputError("MSM4SR needs features of at least one modality: the catalogue has no text and no picture")
        if unknown := set(config.score_with) - set(features):
            raise InputError(f"model.score_with: no modality {sorted(unknown)}; there are {sorted(features)}")
        for name, (_, offsets) in features.items():
            if len(offsets) != n_items + 1:
                raise InputError(f"features of {name} describe {len(offsets) - 1} items, the catalogue has {n_items}")
        dropout = config.dropout if config.expert_dropout is None else config.expert_dropout
        self.features = nn.ModuleDict({a: ItemFeatures(*rows) for a, rows in features.items()})
        self.encoders = nn.ModuleDict(
            {
                a: ItemEncoder(
                    rows[0].shape[1],
                    config.dim,
                    config.experts,
                    dropout,
                    config.pooling_activation,
                    Whitening(rows[0]) if config.whiten else None,
                )
                for a, rows in features.items()
            }
        )
        self.transformer = CausalTransformer(config)
        projected = () if config.projections == "none" else self.modalities
        self.projections = nn.ModuleDict({a: nn.Linear(config.dim, config.dim) for a in projected})  # W_t, W_v
        self.item_embedding = nn.Embedding(n_items, config.dim)  # E
        self.apply(initialise)

    # -- the item encoder and the sequence encoder: both stages ----------------------------------------------------

    def encode_content(self, modality: str, items: Tensor | None = None) -> Tensor:
        """z of `items` [N] (all when None) in one modality: [N, D] (equations 3 to 5)."""
        rows, lengths = self.features[modality](items)
        return self.encoders[modality](rows, lengths)  # type: ignore[no-any-return]

    def encode_sequences(self, inputs: Tensor) -> Tensor:
        """One Transformer, shared by all modalities, in one call: [M, B, L, D] to [M, B, L, D]."""
        return self.transformer(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])  # type: ignore[no-any-return]

    # -- pre-training --------------------------------------------------------------------------------------------

    def project(self, hidden: Tensor, modality: str) -> Tensor:
        """Into the space of a modality (equation 6): [..., D] to [..., D]."""
        return self.projections[modality](hidden) if self.projections else hidden

    # -- fine-tuning, evaluation, serving (equation 12 as one product) --------------------------------------------

    def encode_items(self) -> Tensor:
        """F, the content of the whole catalogue in the modalities that score, and last E: [N, M + 1, D]."""
        return self._catalogue(None, self.item_embedding.weight)

    def encode_some_items(self, items: Tensor) -> Tensor:
        """[n, M + 1, D]."""
        return self._catalogue(items, self.item_embedding(items))

    def _catalogue(self, items: Tensor | None, embedding: Tensor) -> Tensor:
        if self.training and self.config.id_dropout:
            # an item without its E is what a new item is; the others have theirs whole, not divided by 1 - p
            kept = torch.rand(len(embedding), 1, device=embedding.device) >= self.config.id_dropout
            embedding = embedding * kept
        return torch.stack([*(self.encode_content(a, items) for a in self.scored), embedding], dim=1)

    def encode_histories(self, histories: Tensor, catalogue: Tensor) -> Tensor:
        """Rows of the catalogue [B, L] to [h^t; h^v] at every prefix: [B, L, M * D]."""
        hidden = self.encode_sequences(self._inputs(histories, catalogue))  # [M, B, L, D]
        return self._compared(hidden).permute(1, 2, 0, 3).flatten(2)

    def encode_last(self, histories: Tensor, lengths: Tensor, catalogue: Tensor) -> Tensor:
        """[B, M * D]."""
        inputs = self._inputs(histories, catalogue)
        hidden = self.transformer.last(inputs.flatten(0, 1), lengths.repeat(len(inputs)))  # [M * B, D]
        return self._compared(hidden.view(*inputs.shape[:2], -1)).transpose(0, 1).flatten(1)

    def _inputs(self, histories: Tensor, catalogue: Tensor) -> Tensor:
        """What the Transformer reads: [M, B, L, D]."""
        content, embedding = catalogue[:, :-1], catalogue[:, -1:]
        return take(content + embedding if self.config.id_in_input else content, histories).permute(2, 0, 1, 3)

    def _compared(self, hidden: Tensor) -> Tensor:
        """h of each modality that scores, as it is multiplied for that: [M, ..., D]."""
        if self.config.projections == "both":
            hidden = torch.stack([self.project(h, a) for h, a in zip(hidden, self.scored, strict=True)])
        if self.config.similarity == "cosine":
            return F.normalize(hidden, dim=-1) / self.config.temperature
        return hidden

    @property
    def repeat(self) -> Tensor | None:
        """The learned number, divided by tau as the cosines are."""
        number = super().repeat
        if number is None or self.config.similarity == "dot":
            return number
        return number / self.config.temperature

    def scoring_vectors(self, catalogue: Tensor) -> Tensor:
        """[F^t + E; F^v + E]: [N, M * D]."""
        vectors = catalogue[:, :-1] + catalogue[:, -1:]
        if self.config.similarity == "cosine":
            vectors = F.normalize(vectors, dim=-1)
        return vectors.flatten(1)

    # -- serving: items that came later, and what a score is made of -----------------------------------------------

    @property
    def content_modalities(self) -> tuple[str, ...]:
        return self.scored

    def content_rows(self, modality: str, item: int | None = None) -> ContentRows:
        return ContentRows(*self.features[modality](None if item is None else torch.tensor([item])))

    def encode_new_items(self, features: Mapping[str, Ragged]) -> Tensor:
        """F by the item encoder, and E = 0: what pre-training compared, which knew no E: [n, M + 1, D]."""
        content = [self.encode_part(a, rows, offsets.diff())[0] for a in self.scored for rows, offsets in [features[a]]]
        return torch.stack([*content, torch.zeros_like(content[0])], dim=1)

    def encode_part(self, modality: str, rows: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """z [n, D], and alpha of equation 3 [R]."""
        encoder = self.encoders[modality]
        assert isinstance(encoder, ItemEncoder)
        weights = encoder.pooling.weights(rows, lengths[lengths > 0])
        return encoder(rows, lengths), weights

    def score_parts(self, prefix: Tensor, catalogue: Tensor) -> Tensor:
        """h^a F^a of each modality, and h^t E + h^v E (with cosine, both over the length of F^a + E): [n, M + 1]."""
        hidden = prefix.view(len(self.scored), -1)  # [M, D]
        content, embedding = catalogue[:, :-1], catalogue[:, -1:]
        if self.config.similarity == "cosine":
            lengths = (content + embedding).norm(dim=2, keepdim=True).clamp(min=1e-12)  # [n, M, 1], as F.normalize
            content, embedding = content / lengths, embedding / lengths
        by_content = (hidden * content).sum(dim=2)  # [n, M]
        by_id = (hidden * embedding).sum(dim=(1, 2))  # [n]
        return torch.cat([by_content, by_id.unsqueeze(1)], dim=1)

    def only(self, prefixes: Tensor, modality: str) -> Tensor:
        """h^a, and zeros for the other modalities: [B, M * D]; MSM4SR-T and -V of the paper, by the same weights."""
        hidden = prefixes.view(len(prefixes), len(self.scored), -1)  # [B, M, D]
        kept = torch.zeros_like(hidden)
        kept[:, self.scored.index(modality)] = hidden[:, self.scored.index(modality)]
        return kept.flatten(1)

    # -- making, storing -----------------------------------------------------------------------------------------

    @classmethod
    def from_features(cls, config: MSM4SRConfig, features: Mapping[str, Rows], seed: int = 0) -> Self:
        """A new model over the items that `features` describe (`extract_features` makes them).

        A modality that no item has is left out. `seed` draws the first weights; the global random state stays.
        """
        n_items = max((len(rows.offsets) - 1 for rows in features.values()), default=0)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return cls(config, Inputs(n_items, features=as_tensors(features)))

    def sizes(self) -> dict[str, Any]:
        return super().sizes() | {"modalities": self.modalities}

    @classmethod
    def inputs_of(cls, sizes: Mapping[str, Any], state: Mapping[str, Tensor]) -> Inputs:
        features = {a: stored_rows(state, f"features.{a}") for a in sizes["modalities"]}
        return replace(super().inputs_of(sizes, state), features=features)
