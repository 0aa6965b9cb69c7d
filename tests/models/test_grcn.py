"""GRCN against its equations node by node, over dictionaries of neighbours."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from builders import INTERACTIONS, make_grcn, make_inputs
from torch import Tensor

from msm4sr.errors import InputError
from msm4sr.models.baselines.grcn import GRCN
from msm4sr.models.layers import ItemMeans

N_ITEMS = 12
USERS = range(len(INTERACTIONS))
ITEMS_OF = {user: sorted(set(items)) for user, items in enumerate(INTERACTIONS)}
USERS_OF = {item: [user for user in USERS if item in INTERACTIONS[user]] for item in range(N_ITEMS)}
Edge = tuple[int, int]


def unit(vector: Tensor) -> Tensor:
    return vector / vector.norm()


def shares(scores: dict[int, Tensor]) -> dict[int, Tensor]:
    """A softmax over a dictionary."""
    total = sum(score.exp() for score in scores.values())
    return {key: score.exp() / total for key, score in scores.items()}


def slow_content(model: GRCN, name: str) -> list[Tensor]:
    """f_i of every item: from the mean of its rows, or the missing-modality embedding."""
    features = make_inputs(modalities=("text", "visual")).features[name]
    means = {i: rows.mean(dim=0) for i, rows in enumerate(features) if len(rows)}
    assert len(means) < N_ITEMS  # some item lacks the modality
    middle = sum(means.values()) / len(means)
    length = sum((mean - middle).norm() for mean in means.values()) / len(means)
    content, linear = model.content[name], model.content[name].network[0]
    features = []
    for item in range(N_ITEMS):
        if item in means:
            made = F.leaky_relu(linear.weight @ ((means[item] - middle) / length) + linear.bias)
        else:
            made = content.missing
        features.append(unit(made))
    return features


def slow_grcn(model: GRCN, routings: int, hops: int, pruning: str) -> tuple[list[Tensor], list[Tensor]]:
    a: dict[str, dict[Edge, Tensor]] = {}  # how a user attends to its items, by modality
    b: dict[str, dict[Edge, Tensor]] = {}  # how an item attends to its users
    content: dict[tuple[str, str, int], Tensor] = {}
    for name in model.modalities:
        f = slow_content(model, name)
        p = [unit(model.preferences[name][user]) for user in USERS]
        for _ in range(routings):
            for user in USERS:
                attention = shares({item: p[user] @ f[item] for item in ITEMS_OF[user]})
                p[user] = unit(p[user] + sum(share * f[item] for item, share in attention.items()))
        a[name], b[name] = {}, {}
        for user in USERS:
            for item, share in shares({i: p[user] @ f[i] for i in ITEMS_OF[user]}).items():
                a[name][user, item] = share
        for item in range(N_ITEMS):
            if USERS_OF[item]:
                for user, share in shares({u: p[u] @ f[item] for u in USERS_OF[item]}).items():
                    b[name][user, item] = share
        for user in USERS:
            content["u", name, user] = p[user] + sum(a[name][user, i] * f[i] for i in ITEMS_OF[user])
        for item in range(N_ITEMS):
            content["i", name, item] = f[item] + sum(b[name][u, item] * p[u] for u in USERS_OF[item])

    def weigh(attention: dict[str, dict[Edge, Tensor]], confidence: Tensor, edge: Edge, sender: int) -> Tensor:
        weight = max(confidence[sender, m] * attention[name][edge] for m, name in enumerate(model.modalities))
        return weight.clamp(min=0) if pruning == "hard" else weight

    users = [unit(row) for row in model.user_embedding.weight]
    items = [unit(row) for row in model.item_embedding.weight]
    user_sums, item_sums = list(users), list(items)
    zero = torch.zeros_like(users[0])
    for _ in range(hops):
        users, items = (
            [sum((weigh(a, model.item_confidence, (u, i), i) * items[i] for i in ITEMS_OF[u]), zero) for u in USERS],
            [sum((weigh(b, model.user_confidence, (u, i), u) * users[u] for u in USERS_OF[i]), zero)
             for i in range(N_ITEMS)],
        )  # fmt: skip
        user_sums = [x + y for x, y in zip(user_sums, users, strict=True)]
        item_sums = [x + y for x, y in zip(item_sums, items, strict=True)]
    return (
        [torch.cat([user_sums[u], *(content["u", m, u] for m in model.modalities)]) for u in USERS],
        [torch.cat([item_sums[i], *(content["i", m, i] for m in model.modalities)]) for i in range(N_ITEMS)],
    )


@pytest.mark.parametrize("pruning", ["soft", "hard"])
@pytest.mark.parametrize(("routings", "hops"), [(3, 2), (0, 1)])
def test_refined_node_vectors_are_those_of_the_equations(
    routings: int, hops: int, pruning: Literal["soft", "hard"]
) -> None:
    model = make_grcn(routings=routings, hops=hops, pruning=pruning)
    with torch.no_grad():
        for confidence in (model.user_confidence, model.item_confidence):
            confidence.copy_(torch.randn_like(confidence))  # of both signs: some edges are cut
        users, items = model.propagate()
        slow_users, slow_items = slow_grcn(model, routings, hops, pruning)
    torch.testing.assert_close(users, torch.stack(slow_users))
    torch.testing.assert_close(items, torch.stack(slow_items))


def test_hard_pruning_cuts_edges_of_which_no_modality_is_confident() -> None:
    model = make_grcn(pruning="hard", hops=1)
    ids = slice(0, 8)
    with torch.no_grad():
        model.item_confidence.fill_(-1.0)  # no item sends
        users, _ = model.propagate()
        torch.testing.assert_close(users[:, ids], F.normalize(model.user_embedding.weight))
        model.item_confidence[5, 1] = 1.0  # item 5 sends, by its images
        users, _ = model.propagate()
    moved = (users[:, ids] - F.normalize(model.user_embedding.weight)).norm(dim=1) > 1e-3
    assert moved.tolist() == [5 in items for items in INTERACTIONS]


def test_routing_moves_a_preference_towards_its_items() -> None:
    def nearness(routings: int) -> float:
        model = make_grcn(routings=routings, hops=0)
        with torch.no_grad():
            f = F.normalize(model.encode_content("text"))
            users, _ = model.propagate()
            preferences = users[:, 8:16]  # of the text, after the IDs
            return sum(float(F.cosine_similarity(preferences[u], f[ITEMS_OF[u]].mean(0), dim=0)) for u in USERS)

    assert nearness(3) > nearness(1) > nearness(0)


def test_a_catalogue_without_texts_and_images_is_refused() -> None:
    with pytest.raises(InputError, match="GRCN needs features"):
        make_grcn(make_inputs(modalities=()))


def test_the_stored_features_are_one_mean_per_item() -> None:
    features = make_inputs(modalities=("text",)).features["text"]
    means = ItemMeans(features)
    assert means.rows.lengths.tolist() == (features.lengths > 0).long().tolist()
    torch.testing.assert_close(means.values.mean(dim=0), torch.zeros(5), atol=1e-6, rtol=0)
    assert float(means.values.norm(dim=1).mean()) == pytest.approx(1.0)
