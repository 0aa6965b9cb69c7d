"""LightGCN's propagation, against node-by-node sums over dictionaries."""

from __future__ import annotations

import pytest
import torch
from builders import INTERACTIONS, make_lightgcn
from torch import Tensor

N_ITEMS = 12
Node = tuple[str, int]


def slow_lightgcn(users: Tensor, items: Tensor, hops: int) -> dict[Node, Tensor]:
    """The mean of each node's vectors over hops 0 ... K."""
    neighbours: dict[Node, set[Node]] = {
        ("u", u): {("i", i) for i in INTERACTIONS[u]} for u in range(len(INTERACTIONS))
    }
    for item in range(N_ITEMS):
        neighbours["i", item] = {("u", u) for u in range(len(INTERACTIONS)) if item in INTERACTIONS[u]}
    vectors: dict[Node, Tensor] = {("u", u): users[u] for u in range(len(users))}
    vectors |= {("i", i): items[i] for i in range(N_ITEMS)}
    history = {node: [vector] for node, vector in vectors.items()}
    for _ in range(hops):
        received = {}
        for node, around in neighbours.items():
            received[node] = torch.zeros(users.shape[1])
            for other in around:
                received[node] = received[node] + vectors[other] / (len(around) * len(neighbours[other])) ** 0.5
        vectors = received
        for node, vector in vectors.items():
            history[node].append(vector)
    return {node: sum(steps) / (hops + 1) for node, steps in history.items()}  # type: ignore[misc]


@pytest.mark.parametrize("hops", [0, 1, 3])
def test_a_node_is_the_mean_of_its_vectors_over_the_hops(hops: int) -> None:
    model = make_lightgcn(hops=hops)
    users, items = model.propagate()
    expected = slow_lightgcn(model.user_embedding.weight.detach(), model.item_embedding.weight.detach(), hops)
    for (kind, row), vector in expected.items():
        torch.testing.assert_close((users if kind == "u" else items)[row].detach(), vector)


def test_an_item_without_interactions_has_a_vector_at_hop_0_alone() -> None:
    model = make_lightgcn(hops=3)
    torch.testing.assert_close(model.propagate()[1][10], model.item_embedding.weight[10] / 4)
