"""The user-item graph and sums over its edges.

An edge joins a user and an item of the user's training history, once however often they interacted. All sums over
neighbours run over the edges in the order of the receiver (`torch.embedding_bag`), forwards and backwards: without a
dense matrix or a copy of the vectors for each edge, and bit-identical on any number of threads.

Shape letters: U users, N items, E edges, D dimension of a node's vector.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, nn

from msm4sr.ragged import Ragged

OVERLAPS_AT_ONCE = 1 << 24  # common neighbours that are counted in one block

Ints = npt.NDArray[Any]
EdgeMap = Callable[[Tensor, "Direction"], Tensor]


class Direction(NamedTuple):
    """The edges in one direction, listed by receiver: `sender[starts[r]:starts[r + 1]]` send to receiver r."""

    sender: Tensor  # [E]
    starts: Tensor  # [receivers]
    order: Tensor | None  # [E]: the edge number of each place in the list; None: in order
    receiver: Tensor  # [E], by edge number


class UserItemGraph(nn.Module):
    """The interactions as a graph. Edges are numbered by user, then by item.

    Args:
        histories: the item numbers of each user, U rows; repeated items are one edge.
        n_items: N.
    """

    items: Tensor  # [E], stored with the model
    offsets: Tensor  # [U + 1], stored with the model
    users: Tensor  # [E]
    by_item: Tensor  # [E]
    users_by_item: Tensor  # [E]
    item_offsets: Tensor  # [N + 1]

    def __init__(self, histories: Ragged, n_items: int) -> None:
        super().__init__()
        n_users = len(histories)
        user = torch.repeat_interleave(torch.arange(n_users), histories.offsets.diff())
        edges = torch.unique(user * n_items + histories.values)  # sorted
        users, items = edges // n_items, edges % n_items
        by_item = torch.argsort(items, stable=True)
        self.register_buffer("items", items)
        self.register_buffer("offsets", F.pad(torch.bincount(users, minlength=n_users).cumsum(0), (1, 0)))
        self.register_buffer("users", users, persistent=False)
        self.register_buffer("by_item", by_item, persistent=False)
        self.register_buffer("users_by_item", users[by_item], persistent=False)
        item_offsets = F.pad(torch.bincount(items, minlength=n_items).cumsum(0), (1, 0))
        self.register_buffer("item_offsets", item_offsets, persistent=False)

    @property
    def to_users(self) -> Direction:
        return Direction(self.items, self.offsets[:-1], None, self.users)

    @property
    def to_items(self) -> Direction:
        return Direction(self.users_by_item, self.item_offsets[:-1], self.by_item, self.items)

    def user_degrees(self) -> Tensor:
        """The number of items of each user: int64 [U]."""
        return self.offsets.diff()

    def item_degrees(self) -> Tensor:
        """The number of users of each item: int64 [N]."""
        return self.item_offsets.diff()

    def has_edges(self, users: Tensor, items: Tensor) -> Tensor:
        """Whether users [B] have edges to items [B, L]: bool [B, L]."""
        n_items = len(self.item_offsets) - 1
        edges, wanted = self.users * n_items + self.items, users.unsqueeze(1) * n_items + items
        place = torch.searchsorted(edges, wanted).clamp(max=max(0, len(edges) - 1))
        return edges[place] == wanted

    def sum_to_users(self, weights: Tensor, vectors: Tensor) -> Tensor:
        """sum_i w_ui x_i for each user u: weights [E], item vectors [N, D], to [U, D]."""
        return _Sum.apply(*_of_one_type(weights, vectors), self.to_users, self.to_items)  # type: ignore[no-any-return, no-untyped-call]

    def sum_to_items(self, weights: Tensor, vectors: Tensor) -> Tensor:
        """sum_u w_ui x_u for each item i: weights [E], user vectors [U, D], to [N, D]."""
        return _Sum.apply(*_of_one_type(weights, vectors), self.to_items, self.to_users)  # type: ignore[no-any-return, no-untyped-call]

    def products(self, users: Tensor, items: Tensor) -> Tensor:
        """x_u . x_i for each edge: [U, D], [N, D] to [E]."""
        return _Products.apply(*_of_one_type(users, items), self.to_users, self.to_items)  # type: ignore[no-any-return, no-untyped-call]

    def at_users(self, values: Tensor) -> Tensor:
        """The value of each edge's user: [U, D] to [E, D]."""
        return _spread(values, self.to_users)

    def at_items(self, values: Tensor) -> Tensor:
        """The value of each edge's item: [N, D] to [E, D]."""
        return _spread(values, self.to_items)

    def softmax_by_user(self, scores: Tensor) -> Tensor:
        """exp(s_ui) / sum_i' exp(s_ui') over each user's edges: [E] to [E], for a small range of scores (cosines)."""
        return _softmax(scores, self.to_users)

    def softmax_by_item(self, scores: Tensor) -> Tensor:
        """exp(s_ui) / sum_u' exp(s_u'i) over each item's edges: [E] to [E], for a small range of scores (cosines)."""
        return _softmax(scores, self.to_items)


def _of_one_type(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """In mixed precision a product may be bfloat16 where the other operand is float32; embedding_bag needs one type."""
    dtype = torch.promote_types(one.dtype, other.dtype)
    return one.to(dtype), other.to(dtype)


def _sum(weights: Tensor, vectors: Tensor, into: Direction) -> Tensor:
    weights = weights if into.order is None else weights[into.order]
    return F.embedding_bag(into.sender, vectors, into.starts, mode="sum", per_sample_weights=weights)


def _at_edges(values: Tensor, into: Direction) -> Tensor:
    """The receiver's value for every edge: [receivers, D] to [E, D]."""
    return values[into.receiver]


def _by_receiver(values: Tensor, into: Direction) -> Tensor:
    """The sum over each receiver's edges: [E, D] to [receivers, D]."""
    order = torch.arange(len(values), device=values.device) if into.order is None else into.order
    return F.embedding_bag(order, values, into.starts, mode="sum")


def _spread(values: Tensor, into: Direction) -> Tensor:
    return _Linear.apply(values, into, _at_edges, _by_receiver)  # type: ignore[no-any-return, no-untyped-call]


def _softmax(scores: Tensor, into: Direction) -> Tensor:
    powers = scores.exp().unsqueeze(1)
    totals = _Linear.apply(powers, into, _by_receiver, _at_edges)  # type: ignore[no-untyped-call]
    return (powers / _spread(totals, into)).squeeze(1)


def _products(users: Tensor, items: Tensor, to_users: Direction) -> Tensor:
    """x_u . x_i for each edge, computed as the gradient of a weighted sum with respect to its weights.

    torch computes that gradient edge by edge; gathering both ends of each edge takes eight times as long.
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
    """Weighted sums over neighbours; the gradient of the vectors is the same sum in the other direction."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, vectors: Tensor, into: Direction, back: Direction) -> Tensor:
        ctx.save_for_backward(weights, vectors)
        ctx.into, ctx.back = into, back
        return _sum(weights, vectors, into)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        weights, vectors = ctx.saved_tensors
        given = gradients[0].contiguous()
        to_weights = None
        if ctx.needs_input_grad[0]:  # by user, whatever the direction
            to_users = ctx.into.order is None
            to_weights = _products(given, vectors, ctx.into) if to_users else _products(vectors, given, ctx.back)
        return to_weights, _sum(weights, given, ctx.back) if ctx.needs_input_grad[1] else None, None, None


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


class _Linear(torch.autograd.Function):
    """A linear map of values over the edges, whose gradient is the transposed map."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, into: Direction, apply: EdgeMap, transposed: EdgeMap) -> Tensor:
        ctx.into, ctx.transposed = into, transposed
        return apply(values, into)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.transposed(gradients[0].contiguous(), ctx.into), None, None, None


def symmetric_weights(graph: UserItemGraph) -> Tensor:
    """1 / sqrt(|N_u| |N_i|) for each edge: [E]."""
    degrees = graph.user_degrees()[graph.users] * graph.item_degrees()[graph.items]
    return degrees.float().rsqrt()


def propagated(graph: UserItemGraph, weights: Tensor, users: Tensor, items: Tensor, hops: int) -> tuple[Tensor, Tensor]:
    """Node vectors after 0 ... H = `hops` steps of x_u <- sum_i w_ui x_i, x_i <- sum_u w_ui x_u.

    `users` [U, D] and `items` [N, D] to [H + 1, U, D] and [H + 1, N, D].
    """
    of_users, of_items = [users], [items]
    for _ in range(hops):
        users, items = graph.sum_to_users(weights, items), graph.sum_to_items(weights, users)
        of_users.append(users)
        of_items.append(items)
    return torch.stack(of_users), torch.stack(of_items)


def nearest_by_overlap(
    graph: UserItemGraph,
    of: Literal["users", "items"],
    k: int,
    weigh: Callable[[Ints, Ints, Ints], npt.NDArray[np.float64]],
) -> tuple[Tensor, Tensor]:
    """The k items that share the most users with each item (or users that share the most items), by a given weight.

    The square of the graph is computed a block of rows at a time, and only where it is not 0.

    Args:
        graph: with R items or users.
        of: which of both.
        k: number of neighbours; fewer than k others give fewer.
        weigh: weights > 0 of pairs, from their row numbers and their numbers of common neighbours.

    Returns:
        Row numbers int32 [R, k], the largest weight first, ties by row number, and their weights float32 [R, k]; both
        are 0 in empty places.
    """
    users, items = graph.users.numpy(), graph.items.numpy()
    rows, columns = (users, items) if of == "users" else (items, users)
    own, other = graph.user_degrees().numpy(), graph.item_degrees().numpy()
    own, other = (own, other) if of == "users" else (other, own)
    matrix = sparse.csr_array((np.ones(len(rows), np.int32), (rows, columns)), shape=(len(own), len(other)))
    transposed = matrix.T.tocsr()
    k = max(1, min(k, len(own) - 1))
    nearest, weights = np.zeros((len(own), k), np.int32), np.zeros((len(own), k), np.float32)
    work = np.bincount(rows, other[columns], minlength=len(own)).cumsum()  # an upper bound of the non-zero values
    for block in np.split(np.arange(len(own)), np.flatnonzero(np.diff(work // OVERLAPS_AT_ONCE)) + 1):
        common = (matrix[block] @ transposed).tocoo()
        row, column, both = block[common.row], common.col.astype(np.int64), common.data
        row, column, both = (part[row != column] for part in (row, column, both))
        weight = weigh(row, column, both)
        order = np.lexsort((column, -weight, row))
        row, column, weight = row[order], column[order], weight[order]
        place = np.arange(len(row)) - np.searchsorted(row, row)
        kept = place < k
        nearest[row[kept], place[kept]] = column[kept]
        weights[row[kept], place[kept]] = weight[kept]
    return torch.from_numpy(nearest), torch.from_numpy(weights)
