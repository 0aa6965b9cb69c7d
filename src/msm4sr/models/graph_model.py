"""What the models that propagate over the user-item graph share.

Shape letters: U users, N items, E edges, D width of a node vector, Q width of a scoring vector."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from msm4sr.errors import InputError
from msm4sr.models.base import Inputs, ProductModel, Ragged, stored_rows
from msm4sr.models.graph import UserItemGraph
from msm4sr.models.layers import ItemMeans, take


class ItemContent(nn.Module):
    """What a trained network makes of every item's frozen features in one modality (the mean of the item's rows).

    An item without the modality has a learned stand-in in place of the network's answer.

    Args:
        rows: the features of all items.
        dim: width of the answer.
        network: from the features' width to `dim`.
    """

    def __init__(self, rows: Ragged, dim: int, network: nn.Module) -> None:
        super().__init__()
        self.means = ItemMeans(*rows)
        self.network = network
        self.missing = nn.Parameter(torch.randn(dim) / dim**0.5)

    def forward(self) -> Tensor:
        """[N, D]."""
        vectors, lengths = self.means()
        made = self.network(vectors)
        return self.missing.to(made.dtype).expand(len(lengths), -1).index_copy(0, lengths.nonzero().squeeze(1), made)


class GraphConfig(BaseModel):
    """The settings that all graph models share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dim: int = Field(64, ge=1, description="width of a node's vector")
    l2: float = Field(1e-4, ge=0, description="weight of the squared length of the trained vectors of a batch")
    max_history: int = Field(50, ge=1, description="items of an unknown history that are folded in, the latest ones")


class GraphModel(ProductModel):
    """A model of users and items as nodes of a graph: each node has one vector, a score is a product of two.

    A user of the training is scored by the user's own node, whatever the history that comes along. An unknown history
    is **folded in** as one more user, by one more step of propagation from the items' final vectors: a weighted sum
    over its distinct items (`fold_in_weights`), divided by the square root of their number.

    Nothing here is sequential, so that an item which a user took in training is never recommended again.
    """

    ranks_seen_items = False
    folds_in_by_degree: ClassVar[bool] = True
    """Whether an item weighs 1 / sqrt(its degree) where a history is folded in, as it does in the propagation; else
    all weigh the same."""
    config: GraphConfig
    fold_in_weights: Tensor  # [N]

    def __init__(self, config: GraphConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.max_history = config.max_history
        self.graph = UserItemGraph(inputs.histories, inputs.n_items)
        weights = self.graph.item_degrees().clamp(min=1).float().rsqrt()
        weights = weights if self.folds_in_by_degree else torch.ones_like(weights)
        self.register_buffer("fold_in_weights", weights, persistent=False)
        self._kept: tuple[list[tuple[Any, ...]], tuple[Tensor, Tensor]] | None = None

    @abstractmethod
    def propagate(self) -> tuple[Tensor, Tensor]:
        """Every user's and every item's final vector, from the weights as they are: [U, Q], [N, Q]."""

    @abstractmethod
    def trained_vectors(self, users: Tensor, items: Tensor) -> Sequence[Tensor]:
        """What the L2 penalty of a batch is taken of: the trained vectors of these users and items, [rows, D] each."""

    def nodes(self) -> tuple[Tensor, Tensor]:
        """`propagate()`; where no gradient is wanted it is kept, as long as no weight changes.

        A step of training cannot leave an old result behind: each one comes from a pass with gradients, which drops
        it; whatever else writes to a weight (loading, moving to a device) is seen by its version or its place.
        """
        if torch.is_grad_enabled():
            self._kept = None
            return self.propagate()
        tensors = [*self.parameters(), *self.buffers()]
        if any(tensor.is_inference() for tensor in tensors):  # torch does not count their changes
            return self.propagate()
        stamp = [(tensor.data_ptr(), tensor._version, tensor.device, tensor.dtype) for tensor in tensors]
        if self._kept is None or self._kept[0] != stamp:
            self._kept = stamp, self.propagate()
        return self._kept[1]

    def encode_items(self) -> Tensor:
        """[N, 2, Q]: each item's final vector, and what it adds to a history that is folded in."""
        items = self.nodes()[1]
        return torch.stack([items, items * self.fold_in_weights.unsqueeze(1)], dim=1)

    def encode_histories(self, histories: Tensor, catalogue: Tensor) -> Tensor:
        """Each prefix of rows [B, L] of the catalogue folded in as a new user: [B, L, Q]."""
        same = histories.unsqueeze(2) == histories.unsqueeze(1)  # [B, L, L]
        first = ~same.tril(-1).any(dim=2)  # [B, L]: not an item that stood there before
        sums = (take(catalogue[:, 1], histories) * first.unsqueeze(2)).cumsum(dim=1)
        return sums / first.cumsum(dim=1).sqrt().unsqueeze(2)

    def scoring_vectors(self, catalogue: Tensor) -> Tensor:
        """[N, Q]."""
        return catalogue[:, 0]

    def score(
        self, histories: Tensor, lengths: Tensor, catalogue: Tensor, keys: Tensor, users: Tensor | None = None
    ) -> Tensor:
        """Every item's score [B, N]: of the `users` themselves where they are known, else of their `histories`."""
        if users is None:
            return super().score(histories, lengths, catalogue, keys)
        scores = self.nodes()[0][users] @ keys.T
        new = self.graph.user_degrees()[users] == 0  # they were not trained on
        if new.any():
            scores[new] = super().score(histories[new], lengths[new], catalogue, keys)
        return scores

    @classmethod
    def inputs_of(cls, sizes: Mapping[str, Any], state: Mapping[str, Tensor]) -> Inputs:
        histories = state["graph.items"], state["graph.offsets"]
        return Inputs(sizes["n_items"], sizes["n_users"], histories)


class MultimodalGraphModel(GraphModel):
    """A graph model that reads the items' features, each modality through a network of its own (`content`).

    Raises InputError where no item has features, or features of another number of items are given.
    """

    uses_features = True

    def __init__(self, config: GraphConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        features = {name: rows for name, rows in inputs.features.items() if len(rows[0])}
        if not features:
            raise InputError(f"{type(self).__name__} needs features: the catalogue has no text and no picture")
        for name, (_, offsets) in features.items():
            if len(offsets) != self.n_items + 1:
                raise InputError(
                    f"features of {name} describe {len(offsets) - 1} items, the catalogue has {self.n_items}"
                )
        self.modalities = tuple(features)
        self.content = nn.ModuleDict(
            {name: ItemContent(rows, config.dim, self.network(rows[0].shape[1])) for name, rows in features.items()}
        )
        for layer in self.content.modules():
            if isinstance(layer, nn.Linear):  # no bias at first: it would make all items alike
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    @abstractmethod
    def network(self, dim_in: int) -> nn.Module:
        """A new network from features of this width to `dim`."""

    def sizes(self) -> dict[str, Any]:
        return super().sizes() | {"modalities": self.modalities}

    @classmethod
    def inputs_of(cls, sizes: Mapping[str, Any], state: Mapping[str, Tensor]) -> Inputs:
        features = {name: stored_rows(state, f"content.{name}.means") for name in sizes["modalities"]}
        return replace(super().inputs_of(sizes, state), features=features)
