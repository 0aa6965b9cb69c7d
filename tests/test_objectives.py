"""The losses against formulas written out pair by pair, in value and gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from msm4sr import objectives
from msm4sr.objectives import (
    bayesian_personalised_ranking,
    cross_modality_contrast,
    next_item_cross_entropy,
    next_item_prediction,
    squared_length,
)

TAU = 0.3
NEXT = [0, 1, 2, 1, 3, 1, 0, 4]  # items 0 and 1 are the next item of several pairs


def random(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return values.requires_grad_()


def f(a: Tensor, b: Tensor) -> Tensor:
    return torch.exp((a @ b) / (a.norm() * b.norm()) / TAU)


def nip_pair_by_pair(views: list[Tensor], items: Tensor, next_item: list[int]) -> Tensor:
    """Equation 7 over all P x P, without other pairs with the same next item in the denominator."""
    losses = []
    for j, own in enumerate(next_item):
        top = sum(f(view[j], items[own]) for view in views)
        bottom = top
        for other in next_item:
            if other != own:
                bottom = bottom + sum(f(view[j], items[other]) for view in views)
        losses.append(-torch.log(top / bottom))
    return sum(losses[1:], losses[0]) / len(losses)


def cmcl_pair_by_pair(own: Tensor, other: Tensor, next_item: list[int], negatives: str) -> Tensor:
    """Equation 9 as printed (cross), or with the last sum inside the anchor's own view (within)."""
    pairs = range(len(next_item))

    def log_ratio(a: Tensor, b: Tensor, j: int) -> Tensor:
        bottom = f(a[j], b[j])
        for k in pairs:
            if next_item[k] != next_item[j]:
                bottom = bottom + f(a[j], b[k])
                bottom = bottom + (f(b[j], a[k]) if negatives == "cross" else f(a[j], a[k]))
        return torch.log(f(a[j], b[j]) / bottom)

    losses = [-(log_ratio(own, other, j) + log_ratio(other, own, j)) / 2 for j in pairs]
    return sum(losses[1:], losses[0]) / len(losses)


def nip(views: list[Tensor], items: Tensor, next_item: list[int]) -> Tensor:
    """The function under test, called as pre-training calls it: distinct next items with counts."""
    distinct, target, counts = torch.unique(torch.tensor(next_item), return_inverse=True, return_counts=True)
    return next_item_prediction(views, items[distinct], target, counts, TAU)


def assert_same_value_and_gradients(
    ours: Callable[[], Tensor], reference: Callable[[], Tensor], inputs: list[Tensor]
) -> None:
    value, expected = ours(), reference()
    torch.testing.assert_close(value, expected)
    gradients = torch.autograd.grad(value, inputs)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(gradient, wanted)
        assert wanted.abs().max() > 1e-6


# Next-item prediction, equation 7


@pytest.mark.parametrize("n_views", [1, 2, 3])
@pytest.mark.parametrize("next_item", [NEXT, [0, 1, 2, 3, 4]], ids=["repeats", "distinct"])
def test_next_item_prediction_is_equation_7_in_value_and_gradient(n_views: int, next_item: list[int]) -> None:
    views = [random(len(next_item), 6, seed=v) for v in range(n_views)]
    items = random(5, 6, seed=9)
    assert_same_value_and_gradients(
        lambda: nip(views, items, next_item), lambda: nip_pair_by_pair(views, items, next_item), [*views, items]
    )


def test_another_pair_with_the_same_next_item_is_no_negative() -> None:
    """With a single item there are no negatives and the loss is 0; a logit of 0 for each would cost log 2."""
    views, items = [random(2, 6), random(2, 6, seed=1)], random(1, 6, seed=2)
    assert nip(views, items, [0, 0]).item() == pytest.approx(0, abs=1e-12)


def test_an_item_that_is_next_in_two_other_pairs_is_a_negative_twice() -> None:
    view, items = random(3, 6).detach(), random(2, 6, seed=1).detach()
    a, b = f(view[0], items[0]), f(view[0], items[1])
    rest = nip([view], items, [0, 1, 1]) * 3 - nip_of_pair([view], items, [0, 1, 1], 1, 2)
    assert rest.item() == pytest.approx(math.log((a + 2 * b) / a))


def nip_of_pair(views: list[Tensor], items: Tensor, next_item: list[int], *pairs: int) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for j in pairs:
        own = next_item[j]
        top = sum(f(view[j], items[own]) for view in views)
        rest = [f(view[j], items[k]) for k in next_item if k != own for view in views]
        total = total - torch.log(top / (top + sum(rest)))
    return total


def test_next_item_prediction_depends_on_directions_not_lengths() -> None:
    views, items = [random(8, 6), random(8, 6, seed=1)], random(5, 6, seed=2)
    longer = nip([7 * views[0], 0.1 * views[1]], 3 * items, NEXT)
    torch.testing.assert_close(nip(views, items, NEXT), longer)


def test_next_item_prediction_stays_finite_at_the_papers_temperature_in_float32() -> None:
    view = F.normalize(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    loss = next_item_prediction([view, -view], view, torch.arange(64), torch.ones(64, dtype=torch.int64), 0.01)
    assert loss.isfinite()


# Cross-modality contrast, equation 9


@pytest.mark.parametrize("negatives", ["cross", "within"])
@pytest.mark.parametrize("next_item", [NEXT, [0, 1, 2, 3, 4]], ids=["repeats", "distinct"])
def test_the_contrast_is_equation_9_in_value_and_gradient(
    negatives: Literal["cross", "within"], next_item: list[int]
) -> None:
    own, other = random(len(next_item), 6), random(len(next_item), 6, seed=1)
    assert_same_value_and_gradients(
        lambda: cross_modality_contrast(own, other, torch.tensor(next_item), TAU, negatives),
        lambda: cmcl_pair_by_pair(own, other, next_item, negatives),
        [own, other],
    )


@pytest.mark.parametrize("negatives", ["cross", "within"])
def test_the_contrast_over_some_rows_has_the_other_pairs_as_negatives(negatives: Literal["cross", "within"]) -> None:
    """Each process computes its rows of a batch; their mean is the loss of the complete batch."""
    own, other, next_item = random(8, 6), random(8, 6, seed=1), torch.tensor(NEXT)

    def in_parts() -> Tensor:
        parts = [slice(0, 3), slice(3, 8)]
        losses = [cross_modality_contrast(own, other, next_item, TAU, negatives, rows) for rows in parts]
        return (3 * losses[0] + 5 * losses[1]) / 8

    def complete() -> Tensor:
        return cross_modality_contrast(own, other, next_item, TAU, negatives)

    assert_same_value_and_gradients(in_parts, complete, [own, other])


@pytest.mark.parametrize("negatives", ["cross", "within"])
def test_the_contrast_is_symmetric_in_its_two_views(negatives: Literal["cross", "within"]) -> None:
    own, other, next_item = random(8, 6), random(8, 6, seed=1), torch.tensor(NEXT)
    one = cross_modality_contrast(own, other, next_item, TAU, negatives)
    torch.testing.assert_close(one, cross_modality_contrast(other, own, next_item, TAU, negatives))


def test_the_printed_and_the_released_negatives_are_not_the_same_loss() -> None:
    own, other, next_item = random(8, 6), random(8, 6, seed=1), torch.tensor(NEXT)
    cross, within = (cross_modality_contrast(own, other, next_item, TAU, n) for n in ("cross", "within"))
    assert (cross - within).abs() > 1e-3


@pytest.mark.parametrize("negatives", ["cross", "within"])
@pytest.mark.parametrize("next_item", [[3], [3, 3, 3]], ids=["one pair", "one item"])
def test_a_batch_without_negatives_costs_nothing_and_has_finite_gradients(
    negatives: Literal["cross", "within"], next_item: list[int]
) -> None:
    own, other = random(len(next_item), 6), random(len(next_item), 6, seed=1)
    loss = cross_modality_contrast(own, other, torch.tensor(next_item), TAU, negatives)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    loss.backward()
    assert own.grad is not None
    torch.testing.assert_close(own.grad, torch.zeros_like(own), atol=1e-12, rtol=0)


# Means over pairs


def test_a_batch_given_twice_costs_the_same_where_there_are_no_in_batch_negatives() -> None:
    prefixes, items, target = random(8, 6), random(5, 6, seed=1), torch.tensor(NEXT)
    once = next_item_cross_entropy(prefixes, items, target)
    torch.testing.assert_close(once, next_item_cross_entropy(torch.cat([prefixes] * 2), items, torch.cat([target] * 2)))


def test_contrastive_losses_are_means_a_uniform_batch_of_p_pairs_costs_log_of_its_candidates() -> None:
    """All vectors alike: every candidate is as likely, and the loss does not increase with P as a sum would."""
    for p in (4, 8, 16):
        same, next_item = torch.ones(p, 6), torch.arange(p)
        loss = next_item_prediction([same, same], same, next_item, torch.ones(p, dtype=torch.int64), TAU)
        assert loss.item() == pytest.approx(math.log(p), rel=1e-5)
        for negatives in ("cross", "within"):
            contrast = cross_modality_contrast(same, same, next_item, TAU, negatives)
            assert contrast.item() == pytest.approx(math.log(2 * p - 1), rel=1e-5)


def test_next_item_prediction_of_a_doubled_batch_differs_by_its_doubled_negatives_only() -> None:
    """Twice the pairs, the same items: each pair's loss with every negative counted twice, still a mean."""
    view, items, next_item = random(5, 6), random(5, 6, seed=1), [0, 1, 2, 3, 4]
    doubled = nip([torch.cat([view, view])], items, next_item * 2)
    expected = []
    for j in next_item:
        top = f(view[j], items[j])
        rest = sum(f(view[j], items[k]) for k in next_item if k != j)
        expected.append(-torch.log(top / (top + 2 * rest)))
    torch.testing.assert_close(doubled, torch.stack(expected).mean())


# Softmax over the catalogue, equations 12 and 13


@pytest.fixture(params=[None, 1, 3 * 7, 4 * 7 + 1], ids=["one chunk", "a pair a chunk", "3 pairs", "4 pairs"])
def _chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param is not None:
        monkeypatch.setattr(objectives, "SCORES_AT_ONCE", request.param)


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_softmax_over_the_catalogue_is_cross_entropy_in_value_and_gradient(dtype: torch.dtype) -> None:
    prefixes, items = (
        random(8, 6).detach().to(dtype).requires_grad_(),
        random(7, 6, seed=1).detach().to(dtype).requires_grad_(),
    )
    target = torch.tensor(NEXT)
    assert_same_value_and_gradients(
        lambda: 3 * next_item_cross_entropy(prefixes, items, target),
        lambda: 3 * F.cross_entropy(prefixes @ items.T, target),
        [prefixes, items],
    )


@pytest.mark.usefixtures("_chunks")
def test_the_gradient_of_the_softmax_over_the_catalogue_agrees_with_differences() -> None:
    target = torch.tensor(NEXT)
    assert torch.autograd.gradcheck(
        lambda prefixes, items: next_item_cross_entropy(prefixes, items, target), (random(8, 6), random(7, 6, seed=1))
    )


def test_the_softmax_over_the_catalogue_stays_finite_for_huge_scores() -> None:
    prefixes = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    items = torch.tensor([[1.0], [0.0], [-1.0]], requires_grad=True)
    loss = next_item_cross_entropy(prefixes, items, torch.tensor([0, 2]))
    assert loss.item() == 0
    loss.backward()
    assert prefixes.grad is not None
    assert not prefixes.grad.any()


def test_the_softmax_over_the_catalogue_does_not_change_its_inputs() -> None:
    prefixes, items = random(8, 6), random(7, 6, seed=1)
    before = prefixes.detach().clone(), items.detach().clone()
    next_item_cross_entropy(prefixes, items, torch.tensor(NEXT)).backward()
    assert torch.equal(prefixes, before[0])
    assert torch.equal(items, before[1])


@pytest.mark.usefixtures("_chunks")
def test_in_mixed_precision_the_softmax_is_near_the_exact_one() -> None:
    prefixes, items = (random(*shape).detach().float().requires_grad_() for shape in ((8, 6), (7, 6)))
    target = torch.tensor(NEXT)
    exact = F.cross_entropy(prefixes @ items.T, target)
    with torch.autocast("cpu", torch.bfloat16):
        loss = next_item_cross_entropy(prefixes, items, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0.02)
    wanted = torch.autograd.grad(exact, [prefixes, items])
    for gradient, reference in zip(torch.autograd.grad(loss, [prefixes, items]), wanted, strict=True):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, reference, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_mixed_precision_contrastive_losses_are_the_exact_ones(dtype: torch.dtype) -> None:
    """Also where every other pair has the same next item, so that large sums nearly cancel."""
    next_item = [7 if pair % 2 else pair % 5 for pair in range(200)]
    items = random(8, 6, seed=9).detach().to(dtype)
    views = [(items[next_item] + 0.3 * random(200, 6, seed=v).detach()).to(dtype) for v in range(2)]
    losses: dict[str, Callable[[], Tensor]] = {
        "next-item prediction": lambda: nip(views, items, next_item),
        "contrast": lambda: cross_modality_contrast(*views, torch.tensor(next_item), TAU),
    }
    with torch.autocast("cpu", torch.bfloat16):
        mixed = {name: loss() for name, loss in losses.items()}
    views, items = [view.float() for view in views], items.float()
    for name, loss in losses.items():
        torch.testing.assert_close(mixed[name], loss(), msg=name)


# Softmax over a sample, with the log-q correction


def weighted_cross_entropy_pair_by_pair(prefixes: Tensor, items: Tensor, target: list[int], weights: Tensor) -> Tensor:
    losses = []
    for j, own in enumerate(target):
        top = torch.exp(prefixes[j] @ items[own])
        rest = sum(w * torch.exp(prefixes[j] @ items[k]) for k, w in enumerate(weights.tolist()) if k != own)
        losses.append(-torch.log(top / (top + rest)))
    return sum(losses[1:], losses[0]) / len(losses)


@pytest.mark.parametrize("at_once", [1 << 20, 7])
def test_an_item_counts_as_often_as_its_weight_says(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectives, "SCORES_AT_ONCE", at_once)
    weights = torch.tensor([1, 1, 1, 1, 1, 0.5, 0, 3]).double()  # the next items, 0 to 4, count once
    prefixes, items = random(8, 6), random(8, 6, seed=1)
    assert_same_value_and_gradients(
        lambda: next_item_cross_entropy(prefixes, items, torch.tensor(NEXT), weights.log()),
        lambda: weighted_cross_entropy_pair_by_pair(prefixes, items, NEXT, weights),
        [prefixes, items],
    )


# Bayesian personalised ranking


def test_bpr_is_the_mean_log_likelihood_that_seen_items_score_higher() -> None:
    seen, unseen = random(6), random(6, seed=1)
    probabilities = [1 / (1 + math.exp(float(b - a))) for a, b in zip(seen.detach(), unseen.detach(), strict=True)]
    loss = bayesian_personalised_ranking(seen, unseen)
    assert float(loss.detach()) == pytest.approx(-sum(map(math.log, probabilities)) / 6)
    loss.backward()
    expected = torch.tensor([(p - 1) / 6 for p in probabilities], dtype=torch.float64)
    torch.testing.assert_close(seen.grad, expected)
    torch.testing.assert_close(unseen.grad, -expected)


def test_bpr_stays_finite_for_huge_scores() -> None:
    assert float(bayesian_personalised_ranking(torch.tensor([-1e4]), torch.tensor([1e4]))) == 2e4


def test_the_squared_length_is_half_the_sum_of_all_squares() -> None:
    assert float(squared_length([torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]])])) == 15.0
