"""MSM4SR: multimodal pre-training for sequential recommendation (Zhang, Zhou, Zeng, Shen; arXiv 2303.11879).

1. **Item encoder**, one per modality: attention pooling and a mixture of experts turn the frozen embeddings of an
   item's sentences (images) into its content vector z (equations 3 to 5, `msm4sr.models.item_encoder`).
2. **Sequence encoder**: one causal Transformer, shared by all modalities, turns a history into h^t and h^v.
3. **Pre-training**, without IDs, compares projections m = h W + b (equation 6) with each other and with z. The losses
   are in `msm4sr.objectives` (equations 7 and 9), the mixup and the batches in `msm4sr.training`.
4. **Fine-tuning** adds ID embeddings E to the content vectors F of all items, and scores all items (equation 12):
   y = softmax(h^t (F^t + E)^T + h^v (F^v + E)^T), as one product [h^t; h^v] . [F^t + E; F^v + E].

Shape letters: N items, M modalities, D embedding dimension, B histories, L positions, P pairs (prefix, next item).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from msm4sr.errors import InputError
from msm4sr.models.base import SEEN_BIAS_SCALE, ContentModel, FactorizedScorer, Inputs, Scorer
from msm4sr.models.item_encoder import AttentionPooling, ItemEncoder, MixtureOfExperts
from msm4sr.models.item_table import ItemTable
from msm4sr.models.layers import ItemFeatures, initialise, take
from msm4sr.models.located_items import LocatedItems, Segments, to_device
from msm4sr.models.registry import register_model
from msm4sr.models.transformer import SEARCH, CausalTransformer, Past, TransformerConfig
from msm4sr.models.whitening import WhitenedFeatures, whiten
from msm4sr.ragged import Ragged

ITEMS_AT_ONCE = 1 << 15


class MSM4SRConfig(TransformerConfig):
    """The settings of the model; defaults are the paper's."""

    name: Literal["msm4sr"] = "msm4sr"
    experts: int = Field(8, ge=1, description="number of experts in the item encoder (equation 4)")
    expert_dropout: float | None = Field(None, ge=0, lt=1, description="dropout in equation 4; null: `dropout`")
    expert_bias: bool = Field(
        False, description="a bias in each expert of equation 4: false as printed, true as released"
    )
    whiten: int = Field(
        0,
        ge=0,
        description="keep so many principal components of the whitened embeddings of each modality; 0: the embeddings",
    )
    temperature: float = Field(0.07, ge=0.005, description="tau of the contrastive losses and of cosine scoring")
    similarity: Literal["dot", "cosine"] = Field("dot", description="in equation 12; cosine is divided by tau")
    modality_scores: Literal["sum", "mean"] = Field(
        "sum",
        description="how equation 12 combines the modalities of an item; sum: over all, as printed, with the "
        "missing-modality embedding for one that it lacks; mean: over those that it has",
    )
    id_in_input: bool = Field(False, description="add the ID embedding to the Transformer's input too")
    id_scale: float = Field(
        1.0, gt=0, description="factor of the ID embeddings; with 4 they learn four times as fast as without"
    )
    projections: Literal["pretrain", "none"] = Field(
        "pretrain",
        description="of equation 6: in pre-training, as printed; or none, as documented with the released code: NIP "
        "compares z of a modality with h of that modality only, and CMCL the h of two modalities once",
    )
    score_with: tuple[str, ...] = Field(
        (), description="modalities in equation 12; empty: all. (text,) is MSM4SR-T, (visual,) is MSM4SR-V"
    )


@register_model("msm4sr")
class MSM4SR(ContentModel):
    """A Transformer over texts, images (or any modality) and item IDs, pre-trained with contrastive losses.

    Raises InputError for features of no modality or of another number of items, or an unknown one in `score_with`.
    """

    Config = MSM4SRConfig
    label = "MSM4SR"
    can_pad = True
    tasks = {"pretrain": "multimodal_contrastive", "finetune": "next_item"}
    search = {
        **SEARCH,
        "finetune.learning_rate": {"kind": "float", "low": 3e-4, "high": 2e-2, "log": True},
        "model.temperature": {"kind": "float", "low": 0.03, "high": 0.3, "log": True},
        "model.similarity": {"kind": "categorical", "choices": ["cosine", "dot"]},
        "pretrain.cmcl_weight": {"kind": "float", "low": 1e-3, "high": 1.0, "log": True},
    }
    config: MSM4SRConfig

    def __init__(self, config: MSM4SRConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        features = inputs.present_features(needed_by=self.label)
        self.modalities = tuple(features)
        self.content_modalities = tuple(a for a in features if a in config.score_with or not config.score_with)
        if unknown := set(config.score_with) - set(features):
            raise InputError(f"model.score_with: no modality {sorted(unknown)}; there are {sorted(features)}")
        dropout = config.dropout if config.expert_dropout is None else config.expert_dropout
        self.features, self.encoders = nn.ModuleDict(), nn.ModuleDict()
        for a, rows in features.items():
            self.features[a] = WhitenedFeatures(whiten(rows, config.whiten)) if config.whiten else ItemFeatures(rows)
            dim_in = int(self.content_rows(a).values.shape[1])
            self.encoders[a] = ItemEncoder(
                AttentionPooling(dim_in, config.dim),
                MixtureOfExperts(dim_in, config.dim, config.experts, dropout, config.expert_bias),
            )
        self.transformer = CausalTransformer(config)
        projected = () if config.projections == "none" else self.modalities
        self.projections = nn.ModuleDict({a: nn.Linear(config.dim, config.dim) for a in projected})  # W_t, W_v
        self.item_embedding = ItemTable(inputs.n_items, config.dim, inputs.shard)  # E
        self.apply(initialise)

    def locate(self, items: Tensor) -> LocatedItems:
        return LocatedItems(items, {a: self._features_of(a).locate(items) for a in self.modalities})

    def encode_content(self, modality: str, items: LocatedItems | None = None, fill: bool = True) -> Tensor:
        """z of some items (None: of all) in one modality: [N, D] (equations 3 to 5).

        Items without the modality have the missing-modality embedding; without `fill` they have zeros.
        """
        rows, segments = self._features_of(modality).read(None if items is None else items.features[modality])
        return self.encoders[modality](rows, segments, fill)  # type: ignore[no-any-return]

    def encode_sequences(self, inputs: Tensor) -> Tensor:
        """The Transformer on all modalities in one call: [M, B, L, D] to [M, B, L, D]."""
        return self.transformer(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])  # type: ignore[no-any-return]

    def views(self, hidden: Tensor, modality: str) -> Tensor:
        """What equation 7 compares with z of a modality: [M, ..., D] to [V, ..., D].

        With projections: m and the m~ of equation 6 in the order of the modalities, V = M. Without them: h of this
        modality only, V = 1, since each other h is trained to be close to z of its own modality.
        """
        if self.projections:
            return self.projections[modality](hidden)  # type: ignore[no-any-return]
        return hidden[self.modalities.index(modality)].unsqueeze(0)

    def pretrained_scorer(self) -> Scorer:
        return ContentMatcher(self)

    def encode_items(self) -> Tensor:
        """F of the modalities that are scored, zeros for those that an item lacks, and last E: [N, M + 1, D].

        Without gradients they are computed in chunks.
        """
        if not torch.is_grad_enabled():
            return encode_in_chunks(self, self)
        content = [self.encode_content(a, fill=False) for a in self.content_modalities]
        return torch.stack([*content, self.config.id_scale * self.item_embedding.table()], dim=1)

    def encode_some_items(self, items: LocatedItems) -> Tensor:
        """[n, M + 1, D]."""
        content = [self.encode_content(a, items, fill=False) for a in self.content_modalities]
        return torch.stack([*content, self.config.id_scale * self.item_embedding(items.numbers)], dim=1)

    def encode_histories(self, histories: Tensor, embeddings: Tensor) -> Tensor:
        """Rows of `embeddings` [B, L] to [h^t; h^v] at every prefix: [B, L, M * D]."""
        hidden = self.encode_sequences(self._inputs(histories, embeddings))  # [M, B, L, D]
        return self._scaled(hidden).permute(1, 2, 0, 3).flatten(2)

    def encode_last(self, histories: Tensor, lengths: Tensor, embeddings: Tensor) -> Tensor:
        """[B, M * D]."""
        inputs = self._inputs(histories, embeddings)
        hidden = self.transformer.last(inputs.flatten(0, 1), lengths.repeat(len(inputs)))  # [M * B, D]
        return self._scaled(hidden.view(*inputs.shape[:2], -1)).transpose(0, 1).flatten(1)

    def extend_history(self, items: Tensor, embeddings: Tensor, past: Past) -> tuple[Tensor, Past]:
        """[1, M * D]."""
        inputs = self._inputs(items, embeddings)
        hidden, past = self.transformer.extend(inputs.flatten(0, 1), past)  # [M, D]
        return self._scaled(hidden.unsqueeze(1)).transpose(0, 1).flatten(1), past

    def _filled(self, content: Tensor) -> Tensor:
        """F [n, M, D] with the missing-modality embedding in place of zeros."""
        missing = torch.stack([self.encoders[a].get_parameter("missing") for a in self.content_modalities])  # [M, D]
        return torch.where(has_modality(content).unsqueeze(2), content, missing.to(content.dtype))

    def _inputs(self, histories: Tensor, embeddings: Tensor) -> Tensor:
        """The Transformer's input: [M, B, L, D]."""
        content, ids = self._filled(embeddings[:, :-1]), embeddings[:, -1:]
        return take(content + ids if self.config.id_in_input else content, histories).permute(2, 0, 1, 3)

    def _scaled(self, hidden: Tensor) -> Tensor:
        """h [M, ..., D], with cosine similarity normalised and divided by tau."""
        if self.config.similarity == "cosine":
            return F.normalize(hidden, dim=-1) / self.config.temperature
        return hidden

    @property
    def seen_bias(self) -> Tensor | None:
        """With cosine similarity divided by tau, as the cosines are."""
        if self.seen_item_bias is None:
            return None
        bias = SEEN_BIAS_SCALE * self.seen_item_bias
        return bias if self.config.similarity == "dot" else bias / self.config.temperature

    def modality_weights(self, present: Tensor) -> Tensor:
        """1, or for a mean 1 / the number of present modalities, 0 for the others; an item without any has all."""
        if self.config.modality_scores == "sum":
            return torch.ones_like(present, dtype=torch.float32)
        scored = (present | ~present.any(dim=1, keepdim=True)).float()
        return scored / scored.sum(dim=1, keepdim=True)

    def scoring_vectors(self, embeddings: Tensor) -> Tensor:
        """[F^t + E; F^v + E], each times its weight: [N, M * D]."""
        vectors = self._filled(embeddings[:, :-1]) + embeddings[:, -1:]
        if self.config.similarity == "cosine":
            vectors = F.normalize(vectors, dim=-1)
        weights = self.modality_weights(has_modality(embeddings[:, :-1]))  # [N, M]
        return (vectors * weights.unsqueeze(2)).flatten(1)

    def encode_part(self, modality: str, rows: Ragged) -> tuple[Tensor, Tensor]:
        """z [n, D], and alpha of equation 3 [R]."""
        encoder, lengths = self.encoders[modality], rows.lengths
        assert isinstance(encoder, ItemEncoder)
        segments = Segments.of(lengths, several=bool((lengths > 1).any()))
        return encoder(rows.values, segments, fill=False), encoder.pooling.weights(rows.values, segments)

    def score_parts(self, prefix: Tensor, embeddings: Tensor) -> Tensor:
        """h^a F^a of each modality, and h^t E + h^v E (with cosine, each divided by |F^a + E|): [n, M + 1]."""
        hidden = prefix.view(len(self.content_modalities), -1)  # [M, D]
        content, ids = self._filled(embeddings[:, :-1]), embeddings[:, -1:]
        weights = self.modality_weights(has_modality(embeddings[:, :-1])).unsqueeze(2)  # [n, M, 1]
        if self.config.similarity == "cosine":
            weights = weights / (content + ids).norm(dim=2, keepdim=True).clamp(min=1e-12)  # as F.normalize
        content, ids = content * weights, ids * weights
        by_content = (hidden * content).sum(dim=2)  # [n, M]
        by_id = (hidden * ids).sum(dim=(1, 2))  # [n]
        return torch.cat([by_content, by_id.unsqueeze(1)], dim=1)

    def only(self, prefixes: Tensor, modality: str) -> Tensor:
        """h^a, and zeros for the other modalities: [B, M * D]; MSM4SR-T or MSM4SR-V from the same weights."""
        hidden = prefixes.view(len(prefixes), len(self.content_modalities), -1)  # [B, M, D]
        kept = torch.zeros_like(hidden)
        kept[:, self.content_modalities.index(modality)] = hidden[:, self.content_modalities.index(modality)]
        return kept.flatten(1)


def has_modality(content: Tensor) -> Tensor:
    """Whether an item has each modality: z [n, M, D] to bool [n, M]; z of one that it lacks is zeros."""
    return content.any(dim=-1)


def encode_in_chunks(scorer: FactorizedScorer, model: MSM4SR) -> Tensor:
    """The embeddings of all N items of `model` by its `scorer`: [N, M, D].

    In one piece the experts' outputs of a million items would need gigabytes.
    """

    def encode(items: Tensor) -> Tensor:
        return scorer.encode_some_items(to_device(scorer.locate(items), model.item_embedding.weight.device))

    chunks = torch.split(torch.arange(model.n_items), ITEMS_AT_ONCE)
    first = encode(chunks[0])
    if len(chunks) == 1:
        return first
    result = first.new_empty(model.n_items, *first.shape[1:])
    result[: len(first)] = first
    for items in chunks[1:]:
        result[items[0] : items[-1] + 1] = encode(items)
    return result


class ContentMatcher(FactorizedScorer):
    """The pre-trained model as a recommender without IDs: the score is the sum over modalities and views of cos(m, z).

    Next-item prediction trains it, and validation ranks by it. It can rank new items too.
    """

    def __init__(self, model: MSM4SR) -> None:
        super().__init__()
        self.model = model
        self.max_history = model.max_history

    def encode_items(self) -> Tensor:
        """z: [N, M, D]."""
        return encode_in_chunks(self, self.model)

    def locate(self, items: Tensor) -> LocatedItems:
        return self.model.locate(items)

    def encode_some_items(self, items: LocatedItems) -> Tensor:
        """[n, M, D]."""
        return torch.stack([self.model.encode_content(a, items) for a in self.model.modalities], dim=1)

    def encode_histories(self, histories: Tensor, embeddings: Tensor) -> Tensor:
        """The sum of the normalised views in each modality's space: [B, L, M * D]."""
        hidden = self.model.encode_sequences(take(embeddings, histories).permute(2, 0, 1, 3))  # [M, B, L, D]
        spaces = [F.normalize(self.model.views(hidden, a), dim=-1).sum(0) for a in self.model.modalities]
        return torch.cat(spaces, dim=-1)

    def scoring_vectors(self, embeddings: Tensor) -> Tensor:
        """[N, M * D]."""
        return F.normalize(embeddings, dim=-1).flatten(1)
