"""DualGNN against its equations, and its user graph against counts over sets."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from builders import INTERACTIONS, make_dualgnn, make_inputs, random_sequences
from torch import Tensor

from msm4sr.errors import InputError
from msm4sr.models.baselines.dualgnn import co_occurrence
from msm4sr.models.graph import UserItemGraph

N_ITEMS = 12
CROWD = random_sequences(users=40, n_items=N_ITEMS, longest=6)


def slow_user_graph(histories: list[list[int]], k: int) -> list[dict[int, float]]:
    """The weight of each of the k users with the most items in common."""
    graph = []
    for u, own in enumerate(histories):
        common = {
            v: len(set(own) & set(other)) for v, other in enumerate(histories) if v != u and set(own) & set(other)
        }
        nearest = sorted(common, key=lambda v: (-common[v], v))[:k]
        total = sum(math.exp(common[v]) for v in nearest)
        graph.append({v: math.exp(common[v]) / total for v in nearest})
    return graph


@pytest.mark.parametrize("histories", [INTERACTIONS, CROWD, [[0, 1], [2], [0, 1]]], ids=["few", "many", "one alone"])
@pytest.mark.parametrize("k", [1, 3, 100])
def test_a_user_receives_from_those_with_the_most_common_items_by_a_softmax_of_their_number(
    histories: list[list[int]], k: int
) -> None:
    neighbours, shares = co_occurrence(UserItemGraph(make_inputs(histories).histories, N_ITEMS), k)
    for u, expected in enumerate(slow_user_graph(histories, k)):
        heard = {v: s for v, s in zip(neighbours[u].tolist(), shares[u].tolist(), strict=True) if s > 0}
        assert heard == pytest.approx(expected)
        assert u not in heard


def neighbourhood_mean(rows: Tensor, dense: Tensor) -> Tensor:
    """D^-1/2 A D^-1/2 x with a dense matrix; nodes without a neighbour receive nothing."""
    degrees = dense.sum(dim=1)
    scale = torch.where(degrees > 0, degrees, torch.inf).rsqrt()
    return scale[:, None] * (dense @ (scale[:, None] * rows))


@pytest.mark.parametrize("hops", [2, 1])
def test_node_vectors_are_those_of_the_equations(hops: int) -> None:
    model = make_dualgnn(hops=hops)
    n_users = len(INTERACTIONS)
    dense = torch.zeros(n_users + N_ITEMS, n_users + N_ITEMS)
    for user, items in enumerate(INTERACTIONS):
        for item in items:
            dense[user, n_users + item] = dense[n_users + item, user] = 1
    with torch.no_grad():
        single = {}
        for name in ("text", "visual"):
            content = model.content[name]
            vectors, lengths = model.features[name]()
            first, _, second = content.network
            rows = iter(vectors)
            f = torch.stack(
                [
                    second.weight @ F.leaky_relu(first.weight @ next(rows) + first.bias) + second.bias
                    if present
                    else content.missing
                    for present in lengths.tolist()
                ]
            )
            x = torch.cat([model.preferences[name], f])
            z = x = x / x.norm(dim=1, keepdim=True)
            for _ in range(hops):
                x = neighbourhood_mean(x, dense)
                z = z + x
            single[name] = z
        mixed = []
        for user in range(n_users):
            powers = model.attention[user].exp()
            mixed.append(sum(powers[m] / powers.sum() * z[user] for m, z in enumerate(single.values())))
        users = []
        for user, received in enumerate(slow_user_graph(INTERACTIONS, 2)):
            users.append(mixed[user] + sum(share * mixed[v] for v, share in received.items()))
        ours_of_users, ours_of_items = model.propagate()
    torch.testing.assert_close(ours_of_users, torch.stack(users))  # type: ignore[arg-type]
    torch.testing.assert_close(ours_of_items, (single["text"] + single["visual"])[n_users:])


def test_a_catalogue_without_texts_and_images_is_an_input_error() -> None:
    with pytest.raises(InputError, match="DualGNN needs features"):
        make_dualgnn(make_inputs(modalities=()))
