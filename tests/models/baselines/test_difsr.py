"""DIF-SR against its equations, one position and one head at a time."""

from __future__ import annotations

import math

import pytest
import torch
from builders import CATEGORIES, N_ITEMS, every_input, finetune_loss, make_batch, make_model
from pydantic import ValidationError
from torch import Tensor, nn

from msm4sr.models.base import Inputs, empty_rows
from msm4sr.models.baselines.difsr import DIFSR, DecoupledAttention, DIFSRConfig

HISTORY = [1, 5, 0, 7, 2]  # 5 and 0 have categories, 2 has none


def make_difsr(inputs: Inputs | None = None, **changes: object) -> DIFSR:
    model = make_model("difsr", inputs, **changes)
    assert isinstance(model, DIFSR)
    return model.eval()


def queries_and_keys(linear: nn.Linear, x: Tensor, head: int, heads: int) -> tuple[Tensor, Tensor]:
    """The query and the key of one vector for one head, from concatenated weights."""
    width = len(x) // heads
    rows = slice(head * width, (head + 1) * width)
    both = [linear.weight[part * len(x) :][rows] @ x + linear.bias[part * len(x) :][rows] for part in range(2)]
    return both[0], both[1]


def attention_slowly(attention: DecoupledAttention, ids: Tensor, sources: list[Tensor]) -> Tensor:
    """ids [L, D]; sources: positions [L, D], attributes [L, D_a]."""
    heads, dim = attention.heads, ids.shape[1]
    width, outputs = dim // heads, []
    for now in range(len(ids)):
        mixed = []
        for head in range(heads):
            scores = []
            for other in range(now + 1):
                score = 0.0
                pairs = [(attention.qkv, ids), *zip(attention.side, sources, strict=True)]
                for linear, vectors in pairs:
                    query, _ = queries_and_keys(linear, vectors[now], head, heads)
                    _, key = queries_and_keys(linear, vectors[other], head, heads)
                    score += float(query @ key)
                scores.append(score / math.sqrt(width))
            total = sum(math.exp(score) for score in scores)
            rows = slice(2 * dim + head * width, 2 * dim + (head + 1) * width)
            values = [attention.qkv.weight[rows] @ x + attention.qkv.bias[rows] for x in ids]
            terms = zip(scores, values, strict=False)
            mixed.append(sum((math.exp(score) / total * value for score, value in terms), torch.zeros(width)))
        outputs.append(attention.out.weight @ torch.cat(mixed) + attention.out.bias)
    return torch.stack(outputs)


@torch.no_grad()
def test_scores_of_id_position_and_attributes_are_added_and_only_ids_are_mixed() -> None:
    attention = make_difsr().layers[0].attention
    generator = torch.Generator().manual_seed(0)
    ids, positions, attributes = (torch.randn(5, width, generator=generator) for width in (8, 8, 4))
    ours = attention(ids[None], torch.cat([positions, attributes], dim=1)[None])[0]
    expected = attention_slowly(attention, ids, [positions, attributes])
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_every_layer_has_the_same_positions_and_attributes_and_the_first_one_ids_alone() -> None:
    model = make_difsr()
    ids = model.item_embedding.weight[HISTORY]
    sums = [[model.category_embedding.weight[c] for c in CATEGORIES[item]] for item in HISTORY]
    attributes = torch.stack([sum(vectors, torch.zeros(4)) for vectors in sums])
    x = model.norm(ids)
    for layer in model.layers:
        mixed = attention_slowly(layer.attention, x, [model.position.weight[:5], attributes])
        x = layer.attention_norm(x + mixed)
        x = layer.feed_forward_norm(x + layer.feed_forward(x))
    ours = model.encode_histories(torch.tensor([HISTORY]), model.encode_items())[0]
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_item_is_scored_by_its_id_embedding_alone() -> None:
    model = make_difsr()
    keys = model.scoring_vectors(model.encode_items())
    assert torch.equal(keys, model.item_embedding.weight)


@torch.no_grad()
def test_attributes_change_the_scores_through_the_attention() -> None:
    model = make_difsr()
    history = torch.tensor([HISTORY])
    before = model.encode_histories(history, model.encode_items())
    model.category_embedding.weight += 1
    assert (model.encode_histories(history, model.encode_items()) - before).abs().max() > 1e-3


def test_the_predictor_learns_the_categories_of_the_next_item() -> None:
    model = make_difsr(attribute_weight=3.0)
    prefixes = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    targets = [0, 2, 4, 1]  # two categories, none, three, one
    term = model.auxiliary_loss(prefixes, torch.tensor(targets), model.encode_items()[targets])
    losses = []
    for prefix, target in zip(prefixes, targets, strict=True):
        for category in range(3):
            logit = float((model.predictor.weight[category] @ prefix + model.predictor.bias[category]).detach())
            chance = 1 / (1 + math.exp(-logit))
            losses.append(-math.log(chance if category in CATEGORIES[target] else 1 - chance))
    assert term is not None
    assert float(term.detach()) == pytest.approx(3.0 * sum(losses) / 12, rel=1e-4)


def test_the_prediction_of_attributes_is_added_to_the_loss() -> None:
    batch = make_batch([HISTORY, [3, 4, 11, 7]])
    with_term, without = finetune_loss(make_difsr(), batch), finetune_loss(make_difsr(attribute_weight=0), batch)
    assert float(with_term.detach()) > float(without.detach())


@pytest.mark.parametrize("categories", [None, "none has one"])
def test_without_categories_ids_and_positions_remain(categories: str | None) -> None:
    nothing = empty_rows(N_ITEMS)
    model = make_difsr(every_input(categories=nothing if categories else None, n_categories=0))
    assert not any("category" in name or "predictor" in name for name, _ in model.named_parameters())
    finetune_loss(model, make_batch([HISTORY, [3, 4, 11, 7]])).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters())


def test_heads_that_do_not_divide_the_attribute_dimension_are_refused() -> None:
    with pytest.raises(ValidationError, match="attribute_dim must be a multiple of heads: 10"):
        DIFSRConfig(attribute_dim=10, heads=4)
