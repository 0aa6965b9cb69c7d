"""SINE against its equations, one prefix and one item at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from builders import finetune_loss, make_batch, make_model
from torch import Tensor

from msm4sr.models.baselines.sine import SINE

HISTORY = [1, 5, 0, 7]


def make_sine(**changes: Any) -> SINE:
    model = make_model("sine", **({"prototypes": 6, "interests": 3} | changes))
    assert isinstance(model, SINE)
    return model.eval()


def softmax(numbers: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in numbers)
    return [math.exp(x) / total for x in numbers]


def weighted(weights: list[float], vectors: list[Tensor]) -> Tensor:
    return sum((w * v for w, v in zip(weights, vectors, strict=True)), torch.zeros(len(vectors[0])))


def normed(v: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    centred = v - v.mean()
    return centred / torch.sqrt((centred**2).mean() + norm.eps) * norm.weight + (0 if norm.bias is None else norm.bias)


def activated_slowly(model: SINE, z: Tensor) -> list[Tensor]:
    """The prototypes with the K largest s = c . z, largest first, each times sigmoid(s)."""
    scores = [float(c @ z) for c in model.prototypes.weight]
    best = sorted(range(len(scores)), key=lambda i: -scores[i])[: model.config.interests]
    return [model.prototypes.weight[i] / (1 + math.exp(-scores[i])) for i in best]


def prefix_slowly(model: SINE, history: list[int]) -> Tensor:
    """v of one history."""
    x = [model.item_embedding.weight[i] for i in history]
    back = [model.recency.weight[len(x) - 1 - t] if model.config.recency else torch.zeros(9) for t in range(len(x))]
    dim, n_interests = model.config.dim, model.config.interests
    w1, w2, w3, w4 = (
        model.activation.inner.weight,
        model.activation.outer[0],
        model.concept.weight,
        model.next_concept.weight[0],
    )
    z = weighted(softmax([float(torch.tanh(w1 @ v) @ w2 + r[0]) for v, r in zip(x, back, strict=True)]), x)
    concepts = activated_slowly(model, z)

    belongs = []  # [t][k]
    for v in x:
        direction = w3 @ v / (w3 @ v).norm()
        belongs.append(softmax([float(direction @ normed(c, model.concept_norm)) for c in concepts]))
    interests = []
    for k in range(n_interests):
        w_k1, w_k2 = model.importance.inner.weight[k * dim : (k + 1) * dim], model.importance.outer[k]
        matters = softmax([float(torch.tanh(w_k1 @ v) @ w_k2 + r[2 + k]) for v, r in zip(x, back, strict=True)])
        phi = weighted([belongs[t][k] * matters[t] for t in range(len(x))], x)
        interests.append(phi / phi.norm())

    as_concepts = [weighted(row, concepts) for row in belongs]
    leads = softmax([float(torch.tanh(w3 @ v) @ w4 + r[1]) for v, r in zip(as_concepts, back, strict=True)])
    expected = normed(weighted(leads, as_concepts), model.next_norm)
    fits = softmax([float(expected @ phi) / model.config.interest_temperature for phi in interests])
    return weighted(fits, interests)


@torch.no_grad()
@pytest.mark.parametrize("recency", [True, False])
def test_every_prefix_is_encoded_by_the_equations(recency: bool) -> None:
    model = make_sine(recency=recency)
    ours = model.encode_histories(torch.tensor([HISTORY, [3, 3, 9, 2]]), model.encode_items())
    for row, history in enumerate((HISTORY, [3, 3, 9, 2])):
        for end in range(1, 5):
            expected = prefix_slowly(model, history[:end])
            torch.testing.assert_close(ours[row, end - 1], expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_prefixes_that_are_encoded_some_at_a_time_are_those_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, histories = make_sine(), torch.tensor([[1, 5, 0, 7, 2], [2, 2, 4, 0, 0]])
    at_once = model.encode_histories(histories, model.encode_items())
    monkeypatch.setattr("msm4sr.models.baselines.sine.PREFIXES_AT_ONCE", 2)
    torch.testing.assert_close(model.train().encode_histories(histories, model.encode_items()), at_once)


def test_the_nearest_prototypes_are_activated_and_the_others_are_not() -> None:
    model = make_sine()
    z = torch.randn(2, 3, model.config.dim, generator=torch.Generator().manual_seed(1))
    active = model.activate(z)
    assert active.shape == (2, 3, 3, model.config.dim)
    for b in range(2):
        for e in range(3):
            torch.testing.assert_close(active[b, e], torch.stack(activated_slowly(model, z[b, e])))


@torch.no_grad()
def test_different_histories_activate_different_prototypes() -> None:
    model = make_sine(interests=1)
    model.prototypes.weight[0], model.prototypes.weight[1] = 10.0, -10.0
    ones = torch.ones(1, 1, model.config.dim)
    assert model.activate(ones)[0, 0, 0, 0] > 9
    assert model.activate(-ones)[0, 0, 0, 0] < -9


def test_similar_prototypes_cost_the_squares_of_their_covariances() -> None:
    model = make_sine(prototype_weight=0.3)
    term = model.auxiliary_loss(torch.zeros(0), torch.zeros(0), torch.zeros(0))
    assert term is not None
    prototypes = [c - c.mean() for c in model.prototypes.weight.detach()]
    expected = sum(
        float(a @ b / model.config.dim) ** 2
        for i, a in enumerate(prototypes)
        for j, b in enumerate(prototypes)
        if i != j
    )
    assert float(term.detach()) == pytest.approx(0.3 / 2 * expected, rel=1e-4)


def test_the_term_is_added_to_the_loss_with_its_weight() -> None:
    batch = make_batch([[1, 5, 0, 7, 2], [3, 4, 11, 7]])
    model, without = make_sine(prototype_weight=0.3), make_sine(prototype_weight=0)
    term = model.auxiliary_loss(torch.zeros(0), torch.zeros(0), torch.zeros(0))
    assert term is not None
    difference = finetune_loss(model, batch) - finetune_loss(without, batch)
    torch.testing.assert_close(difference, term, rtol=1e-3, atol=1e-5)


def test_interests_are_at_most_the_prototypes() -> None:
    model = make_sine(prototypes=2, interests=5)
    assert model.encode_histories(torch.tensor([HISTORY]), model.encode_items()).isfinite().all()
