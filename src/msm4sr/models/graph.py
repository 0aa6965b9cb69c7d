"""The user-item graph, and what the models that propagate over it share.

An edge joins a user and an item that the user took in training, once however often. All sums over neighbours run over
the edges in the order of the receiver (`torch.embedding_bag`), forwards and backwards, so that neither a dense matrix
nor a copy of the vectors for each edge exists, and a seed gives the same digits on any number of threads.

Shape letters: U users, N items, E edges, D width of a node's vector, Q width of what is multiplied for a score.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from scipy import sparse
from torch import Tensor, nn

from msm4sr.errors import InputError
from msm4sr.models.base import Inputs, ProductModel, Ragged, stored_rows
from msm4sr.models.layers import ItemMeans, take

OVERLAPS_AT_ONCE = 1 << 24  # common neighbours that are counted in one block
Ints = npt.NDArray[Any]


class Direction(NamedTuple):
    """One way along the edges, listed by receiver: `sender[starts[r]:starts[r + 1]]` send to receiver r."""

    sender: Tensor  # [E]
    starts: Tensor  # [receivers]
    order: Tensor | None  # [E]: which edge stands at each place; None: edge e at place e
    receiver: Tensor  # [E], of each edge


class UserItemGraph(nn.Module):
    """Who took what. Edges are numbered by user, then by item.

    Args:
        histories: item rows of user 0, of user 1, ..., and offsets [U + 1]; repeats are one edge.
        n_items: N.
    """

    items: Tensor
    offsets: Tensor
    users: Tensor
    by_item: Tensor
    users_by_item: Tensor
    item_offsets: Tensor

    def __init__(self, histories: Ragged, n_items: int) -> None:
        super().__init__()
        taken, offsets = histories
        n_users = len(offsets) - 1
        user = torch.repeat_interleave(torch.arange(n_users), offsets.diff())
        edges = torch.unique(user * n_items + taken)  # sorted
        users, items = edges // n_items, edges % n_items
        self.register_buffer("items", items)  # [E], stored with the model
        self.register_buffer("offsets", _ends(users, n_users))  # [U + 1], stored with the model
        self.register_buffer("users", users, persistent=False)  # [E]
        by_item = torch.argsort(items, stable=True)
        self.register_buffer("by_item", by_item, persistent=False)  # [E]
        self.register_buffer("users_by_item", users[by_item], persistent=False)  # [E]
        self.register_buffer("item_offsets", _ends(items, n_items), persistent=False)  # [N + 1]

    @property
    def to_users(self) -> Direction:
        return Direction(self.items, self.offsets[:-1], None, self.users)

    @property
    def to_items(self) -> Direction:
        return Direction(self.users_by_item, self.item_offsets[:-1], self.by_item, self.items)

    def user_degrees(self) -> Tensor:
        """How many items each user took: int64 [U]."""
        return self.offsets.diff()

    def item_degrees(self) -> Tensor:
        """How many users took each item: int64 [N]."""
        return self.item_offsets.diff()

    def sum_to_users(self, weights: Tensor, vectors: Tensor) -> Tensor:
        """sum_i w_ui x_i for each user u: weights [E], item vectors [N, D], to [U, D]."""
        return _Sum.apply(weights, vectors, self.to_users, self.to_items)  # type: ignore[no-any-return, no-untyped-call]

    def sum_to_items(self, weights: Tensor, vectors: Tensor) -> Tensor:
        """sum_u w_ui x_u for each item i: weights [E], user vectors [U, D], to [N, D]."""
        return _Sum.apply(weights, vectors, self.to_items, self.to_users)  # type: ignore[no-any-return, no-untyped-call]

    def products(self, users: Tensor, items: Tensor) -> Tensor:
        """x_u . x_i for each edge: [U, D], [N, D] to [E]."""
        return _Products.apply(users, items, self.to_users, self.to_items)  # type: ignore[no-any-return, no-untyped-call]

    def at_users(self, values: Tensor) -> Tensor:
        """What each edge's user has: [U, D] to [E, D]."""
        return _Spread.apply(values, self.to_users)  # type: ignore[no-any-return, no-untyped-call]

    def at_items(self, values: Tensor) -> Tensor:
        """What each edge's item has: [N, D] to [E, D]."""
        return _Spread.apply(values, self.to_items)  # type: ignore[no-any-return, no-untyped-call]

    def softmax_by_user(self, scores: Tensor) -> Tensor:
        """exp(s_ui) / sum_i' exp(s_ui') over each user's edges: [E] to [E]. For scores of a small range (cosines)."""
        return _softmax(scores, self.to_users)

    def softmax_by_item(self, scores: Tensor) -> Tensor:
        """exp(s_ui) / sum_u' exp(s_u'i) over each item's edges: [E] to [E]. For scores of a small range (cosines)."""
        return _softmax(scores, self.to_items)


def _ends(sorted_or_not: Tensor, rows: int) -> Tensor:
    """Offsets [rows + 1] of how often each row number occurs."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(sorted_or_not, minlength=rows).cumsum(0)])


def _sum(weights: Tensor, vectors: Tensor, into: Direction) -> Tensor:
    weights = weights if into.order is None else weights[into.order]
    return F.embedding_bag(into.sender, vectors, into.starts, mode="sum", per_sample_weights=weights)


def _collect(values: Tensor, into: Direction) -> Tensor:
    """The sum over each receiver's edges: [E, D] to [receivers, D]."""
    order = torch.arange(len(values), device=values.device) if into.order is None else into.order
    return F.embedding_bag(order, values, into.starts, mode="sum")


def _softmax(scores: Tensor, into: Direction) -> Tensor:
    powers = scores.exp().unsqueeze(1)
    totals = _Collect.apply(powers, into)  # type: ignore[no-untyped-call]
    return (powers / _Spread.apply(totals, into)).squeeze(1)  # type: ignore[no-any-return, no-untyped-call]


def _products(users: Tensor, items: Tensor, to_users: Direction) -> Tensor:
    """x_u . x_i for each edge, which is the gradient of the weighted sum for its weights.

    Asked for as that, torch makes it edge by edge; gathering both ends of each edge takes eight times as long.
    """
    with torch.inference_mode(False), torch.enable_grad():
        users, items, sender, starts = (
            tensor.clone() if tensor.is_inference() else tensor.detach()
            for tensor in (users, items, to_users.sender, to_users.starts)
        )
        weights = users.new_ones(len(sender), requires_grad=True)
        sums = F.embedding_bag(sender, items, starts, mode="sum", per_sample_weights=weights)
        return torch.autograd.grad(sums, weights, users)[0]


class _Sum(torch.autograd.Function):
    """Weighted sums over neighbours; the gradient for the vectors is the same sum the other way along the edges."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, vectors: Tensor, into: Direction, back: Direction) -> Tensor:
        ctx.save_for_backward(weights, vectors)
        ctx.into, ctx.back = into, back
        return _sum(weights, vectors, into)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        weights, vectors = ctx.saved_tensors
        given = gradients[0].contiguous()
        to_weights = to_vectors = None
        if ctx.needs_input_grad[0]:
            if ctx.into.order is None:
                to_weights = _products(given, vectors, ctx.into)
            else:
                to_weights = _products(vectors, given, ctx.back)
        if ctx.needs_input_grad[1]:
            to_vectors = _sum(weights, given, ctx.back)
        return to_weights, to_vectors, None, None


class _Products(torch.autograd.Function):
    """Dot products over edges; their gradients are weighted sums over neighbours."""

    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor, to_users: Direction, to_items: Direction) -> Tensor:
        ctx.save_for_backward(users, items)
        ctx.to_users, ctx.to_items = to_users, to_items
        return _products(users, items, to_users)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        users, items = ctx.saved_tensors
        given = gradients[0].contiguous()
        return _sum(given, items, ctx.to_users), _sum(given, users, ctx.to_items), None, None


class _Spread(torch.autograd.Function):
    """To every edge what its receiver has; the gradient is collected by receiver."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, into: Direction) -> Tensor:
        ctx.into = into
        return values[into.receiver]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _collect(gradients[0].contiguous(), ctx.into), None


class _Collect(torch.autograd.Function):
    """Sums by receiver of what the edges have; the gradient is spread to the edges."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, into: Direction) -> Tensor:
        ctx.into = into
        return _collect(values, into)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.into.receiver], None


def symmetric_weights(graph: UserItemGraph) -> Tensor:
    """1 / sqrt(|N_u| |N_i|) for each edge: [E]."""
    degrees = graph.user_degrees()[graph.users] * graph.item_degrees()[graph.items]
    return degrees.float().rsqrt()


def propagated(graph: UserItemGraph, weights: Tensor, users: Tensor, items: Tensor, hops: int) -> list[Ragged]:
    """Node vectors after 0, 1, ..., `hops` steps of x_u <- sum_i w_ui x_i, x_i <- sum_u w_ui x_u: [U, D], [N, D]."""
    steps = [(users, items)]
    for _ in range(hops):
        users, items = graph.sum_to_users(weights, items), graph.sum_to_items(weights, users)
        steps.append((users, items))
    return steps


def nearest_by_overlap(
    graph: UserItemGraph,
    of: Literal["users", "items"],
    k: int,
    weigh: Callable[[Ints, Ints, Ints], npt.NDArray[np.float64]],
) -> tuple[Tensor, Tensor]:
    """For each item the k others that most share its users (for each user: its items), by a weight of one's own.

    The square of the graph is made a block of rows at a time, and only where it is not 0.

    Args:
        graph: R rows, the items or the users.
        of: which.
        k: how many are kept, fewer where there are fewer than k others.
        weigh: the weights, all > 0, of rows and others (row numbers) and how many neighbours they have in common.

    Returns:
        Row numbers int32 [R, k], heaviest first, ties by row number, and their weights float32 [R, k]. Places that
        are left over have row number 0 and weight 0.
    """
    users, items = graph.users.numpy(), graph.items.numpy()
    rows, columns = (users, items) if of == "users" else (items, users)
    degrees = (graph.user_degrees(), graph.item_degrees())
    own, other = (d.numpy() for d in (degrees if of == "users" else degrees[::-1]))
    matrix = sparse.csr_array((np.ones(len(rows), np.int32), (rows, columns)), shape=(len(own), len(other)))
    transposed = matrix.T.tocsr()
    k = max(1, min(k, len(own) - 1))
    nearest, weights = np.zeros((len(own), k), np.int32), np.zeros((len(own), k), np.float32)
    work = np.bincount(rows, other[columns], minlength=len(own)).cumsum()  # at least the numbers that are not 0
    for block in np.split(np.arange(len(own)), np.flatnonzero(np.diff(work // OVERLAPS_AT_ONCE)) + 1):
        if not len(block):
            continue
        common = (matrix[block[0] : block[-1] + 1] @ transposed).tocoo()
        row, column, both = common.row.astype(np.int64) + block[0], common.col.astype(np.int64), common.data
        row, column, both = (part[row != column] for part in (row, column, both))
        weight = weigh(row, column, both)
        order = np.lexsort((column, -weight, row))
        row, column, weight = row[order], column[order], weight[order]
        place = np.arange(len(row)) - np.searchsorted(row, row)
        kept = place < k
        nearest[row[kept], place[kept]] = column[kept]
        weights[row[kept], place[kept]] = weight[kept]
    return torch.from_numpy(nearest), torch.from_numpy(weights)


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

    ranks_history = False
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
