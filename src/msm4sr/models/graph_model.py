"""The base classes of the models that propagate over the user-item graph.

Shape letters: U users, N items, E edges, D dimension of a node's vector, Q dimension of a scoring vector.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from msm4sr.models.base import FactorizedModel, Inputs, ModelConfig
from msm4sr.models.graph import UserItemGraph
from msm4sr.models.layers import ItemMeans, fill_missing, first_occurrence, rows_of, take


class ItemContent(nn.Module):
    """Item embeddings in one modality: `network` from D_in to D of the mean of an item's frozen embeddings."""

    def __init__(self, dim: int, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.missing = nn.Parameter(torch.randn(dim) / dim**0.5)

    def forward(self, means: Tensor, lengths: Tensor) -> Tensor:
        """As `fill_missing`: [n, D_in] to [N, D]."""
        return fill_missing(self.network(means), lengths, self.missing)


class GraphConfig(ModelConfig):
    """The settings that all graph models share."""

    dim: int = Field(64, ge=1, description="dimension of a node's vector")
    l2: float = Field(1e-4, ge=0, description="weight of the squared length of the trained vectors of a batch")
    max_history: int = Field(50, ge=1, description="latest items of a history that are folded in")
    fold_in_new_items: bool = Field(
        False, description="fold in a user's items that are not in the graph, such as the validation item before test"
    )


class GraphModel(FactorizedModel):
    """Users and items are nodes of a graph with one vector each; the score is the product of two vectors.

    A user of the training data has a node, whatever the given history. The history of an unknown user is **folded in**
    as a new node, by one more propagation step from the items' final vectors: a weighted sum over its distinct items
    (`fold_in_weights`), divided by the square root of their number. The order is ignored, so seen items are excluded.
    With `fold_in_new_items` a known user's node moves by the difference that the items outside of the graph make to
    this sum.
    """

    ranks_seen_items = False
    tasks = {"finetune": "bpr"}
    folds_in_by_degree: ClassVar[bool] = True
    """Whether folding in weighs an item by 1 / sqrt(its degree), as propagation does; if not, all weigh the same."""
    config: GraphConfig
    fold_in_weights: Tensor  # [N]

    def __init__(self, config: GraphConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.graph = UserItemGraph(inputs.histories, inputs.n_items)
        weights = self.graph.item_degrees().clamp(min=1).float().rsqrt()
        weights = weights if self.folds_in_by_degree else torch.ones_like(weights)
        self.register_buffer("fold_in_weights", weights, persistent=False)
        self._cache: tuple[list[tuple[Any, ...]], tuple[Tensor, Tensor]] | None = None

    def draw_user_rows(self, dim: int, std: float | None = None) -> Tensor:
        """Initial weights of the users, from N(0, `std`): [U, `dim`]; None: Xavier's, of the users in the graph.

        The other users, who are folded in, are drawn apart, so that they change no other weight.
        """
        known = self.graph.user_degrees() > 0
        number = int(known.sum())
        std = std or (2 / (number + dim)) ** 0.5
        rows = torch.empty(len(known), dim)
        rows[known] = nn.init.normal_(torch.empty(number, dim), std=std)
        with torch.random.fork_rng(devices=[]):
            rows[~known] = nn.init.normal_(torch.empty(len(known) - number, dim), std=std)
        return rows

    @abstractmethod
    def propagate(self) -> tuple[Tensor, Tensor]:
        """The final vectors of all users and items, from the current weights: [U, Q], [N, Q]."""

    @abstractmethod
    def trained_vectors(self, users: Tensor, items: Tensor) -> Sequence[Tensor]:
        """The trained vectors of these users and items, for the L2 penalty of a batch: [rows, D] each."""

    def nodes(self) -> tuple[Tensor, Tensor]:
        """`propagate()`, cached without gradients as long as no weight changes.

        A training step drops the cache; any other write to a weight changes the version or the address of a tensor,
        except one through `.data`.
        """
        if torch.is_grad_enabled():
            self._cache = None
            return self.propagate()
        tensors = [*self.parameters(), *self.buffers()]
        if any(tensor.is_inference() for tensor in tensors):  # torch does not track their version
            return self.propagate()
        stamp = [(tensor.data_ptr(), tensor._version, tensor.device, tensor.dtype) for tensor in tensors]
        if self._cache is None or self._cache[0] != stamp:
            self._cache = stamp, self.propagate()
        return self._cache[1]

    def encode_items(self) -> Tensor:
        """Each item's final vector, and its weighted vector for folding in: [N, 2, Q]."""
        items = self.nodes()[1]
        return torch.stack([items, items * self.fold_in_weights.unsqueeze(1)], dim=1)

    def encode_histories(self, histories: Tensor, embeddings: Tensor) -> Tensor:
        """Each prefix, folded in as a new user: [B, L, Q]."""
        first = first_occurrence(histories)
        sums = (take(embeddings[:, 1], histories) * first.unsqueeze(2)).cumsum(dim=1)
        return sums / first.cumsum(dim=1).sqrt().unsqueeze(2)

    def _moved(self, users: Tensor, histories: Tensor, lengths: Tensor, embeddings: Tensor) -> Tensor:
        """How far folding in moves when the items that are not in the graph join the others: [B, Q]."""
        counted = torch.arange(histories.shape[1], device=histories.device) < lengths.unsqueeze(1)
        counted = counted & first_occurrence(histories)
        new = counted & ~self.graph.has_edges(users, histories)
        added = (take(embeddings[:, 1], histories) * new.unsqueeze(2)).sum(dim=1)
        edges, degrees = rows_of(self.graph.offsets, users)
        starts = degrees.cumsum(0) - degrees
        known = F.embedding_bag(self.graph.items[edges], embeddings[:, 1], starts, mode="sum")
        before, after = (count.unsqueeze(1).clamp(min=1).sqrt() for count in (degrees, degrees + new.sum(dim=1)))
        return (known + added) / after - known / before

    def scoring_vectors(self, embeddings: Tensor) -> Tensor:
        """[N, Q]."""
        return embeddings[:, 0]

    def score(
        self, histories: Tensor, lengths: Tensor, embeddings: Tensor, item_vectors: Tensor, users: Tensor | None = None
    ) -> Tensor:
        """[B, N]; by the nodes of `users` with training items, otherwise by their `histories`."""
        if users is None:
            return super().score(histories, lengths, embeddings, item_vectors)
        vectors = self.nodes()[0][users]
        if self.config.fold_in_new_items:
            vectors = vectors + self._moved(users, histories, lengths, embeddings)
        scores = vectors @ item_vectors.T
        new = self.graph.user_degrees()[users] == 0  # without training items
        if new.any():
            scores[new] = super().score(histories[new], lengths[new], embeddings, item_vectors)
        return scores


class MultimodalGraphModel(GraphModel):
    """A graph model with one network per modality of the items' features; InputError if no item has any."""

    uses_features = True

    def __init__(self, config: GraphConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        present = inputs.present_features(needed_by=self.label)
        self.modalities = tuple(present)
        self.features = nn.ModuleDict({name: ItemMeans(rows) for name, rows in present.items()})
        self.content = nn.ModuleDict(
            {name: ItemContent(config.dim, self.network(rows.values.shape[1])) for name, rows in present.items()}
        )
        for layer in self.content.modules():
            if isinstance(layer, nn.Linear):  # zero biases: random ones would make all items similar
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    @abstractmethod
    def network(self, dim_in: int) -> nn.Module:
        """A new network from features of this dimension to `dim`."""

    def encode_content(self, modality: str) -> Tensor:
        """[N, D]."""
        return self.content[modality](*self.features[modality]())  # type: ignore[no-any-return]
