"""The building blocks against slow formulas, one item and one row at a time."""

from __future__ import annotations

import math

import pytest
import torch
from builders import enlarge, make_rows
from torch import Tensor

from msm4sr.models.item_encoder import AttentionPooling, ItemEncoder, MixtureOfExperts
from msm4sr.models.layers import Dropout, ItemFeatures, initialise, take
from msm4sr.models.located_items import Segments
from msm4sr.models.transformer import CausalAttention, CausalTransformer, TransformerConfig

LENGTHS = [2, 1, 4, 3]


def attention_weights(rows: Tensor, pooling: AttentionPooling) -> list[float]:
    """alpha_j = exp(s_j) / sum exp(s), s_j = (x_j W1 + b1) W2 + b2, for the rows of one item."""
    scores = []
    for row in rows:
        inner = [float(w @ row + b) for w, b in zip(pooling.inner.weight, pooling.inner.bias, strict=True)]
        outer = zip(pooling.outer.weight[0].tolist(), inner, strict=True)
        scores.append(sum(w * number for w, number in outer) + float(pooling.outer.bias))
    total = sum(math.exp(score) for score in scores)
    return [math.exp(score) / total for score in scores]


def pooled_slowly(rows: Tensor, lengths: list[int], pooling: AttentionPooling) -> Tensor:
    result = []
    for own in rows.split(lengths):
        weights = attention_weights(own, pooling)
        result.append(sum((w * row for w, row in zip(weights, own, strict=True)), torch.zeros(rows.shape[1])))
    return torch.stack(result)


def expert_mixture_slowly(pooled: Tensor, moe: MixtureOfExperts) -> Tensor:
    """E_k(e) = LayerNorm(e W_k + b_k), g = softmax(e W3), z = sum_k g_k E_k(e)."""
    n_experts, dim = moe.shape
    result = torch.zeros(len(pooled), dim)
    for n, e in enumerate(pooled):
        gates = [math.exp(float(moe.gate.weight[k] @ e)) for k in range(n_experts)]
        for k in range(n_experts):
            value = moe.weight.weight[k * dim : (k + 1) * dim] @ e
            if moe.weight.bias is not None:
                value = value + moe.weight.bias[k * dim : (k + 1) * dim]
            centred = value - value.mean()
            normed = centred / torch.sqrt((centred**2).mean() + 1e-5) * moe.scale[k] + moe.shift[k]
            result[n] += gates[k] / sum(gates) * normed
    return result


def make_pooling() -> AttentionPooling:
    torch.manual_seed(1)
    pooling = AttentionPooling(5, 4)
    enlarge(pooling)
    return pooling


def make_item_encoder(dropout: float = 0.0) -> ItemEncoder:
    torch.manual_seed(2)
    encoder = ItemEncoder(AttentionPooling(5, 4), MixtureOfExperts(5, 4, experts=3, dropout=dropout))
    enlarge(encoder)
    return encoder


def make_transformer() -> CausalTransformer:
    torch.manual_seed(3)
    transformer = CausalTransformer(
        TransformerConfig(
            name="test", dim=8, layers=2, heads=2, inner_dim=16, dropout=0.3, attention_dropout=0.3, max_history=7
        )
    )
    enlarge(transformer)
    return transformer.eval()


# Ragged features


def test_features_follow_the_order_of_the_items_with_repeated_and_empty_ones() -> None:
    features = make_rows([2, 0, 3, 1], 5)
    rows, lengths = ItemFeatures(features)(torch.tensor([3, 1, 0, 2, 0, 1]))
    assert lengths.tolist() == [1, 0, 2, 3, 2, 0]
    assert torch.equal(rows, features.values[[5, 0, 1, 2, 3, 4, 0, 1]])


def test_items_without_the_modality_have_no_rows() -> None:
    rows, lengths = ItemFeatures(make_rows([2, 0, 0], 5))(torch.tensor([2, 1, 2]))
    assert rows.shape == (0, 5)
    assert lengths.tolist() == [0, 0, 0]


def test_features_of_all_items_are_the_complete_table() -> None:
    given = make_rows([2, 0, 3, 1], 5)
    features = ItemFeatures(given)
    rows, lengths = features()
    assert torch.equal(rows, given.values)
    assert lengths.tolist() == [2, 0, 3, 1]


def test_features_are_never_trained() -> None:
    assert not list(ItemFeatures(make_rows([2, 1], 5)).parameters())


# Dropout


@pytest.mark.parametrize("p", [0.1, 0.2, 0.9])
def test_dropout_keeps_each_value_with_probability_one_minus_p_and_scales_it_up(p: float) -> None:
    torch.manual_seed(0)
    x = torch.rand(301, 333) + 1  # not a multiple of the four draws of a random number
    dropped = Dropout(p)(x)
    kept = dropped != 0
    assert kept.double().mean().item() == pytest.approx(1 - p, abs=0.005)
    torch.testing.assert_close(dropped[kept], x[kept] / (1 - p), rtol=1e-3, atol=0)
    assert kept[:, 1:][kept[:, :-1]].double().mean().item() == pytest.approx(1 - p, abs=0.005)  # whatever its neighbour


def test_dropout_passes_the_gradient_of_the_kept_values() -> None:
    torch.manual_seed(0)
    x = torch.rand(50, requires_grad=True)
    dropped = Dropout(0.5)(x)
    dropped.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, (dropped != 0) * 2.0)


def test_dropout_is_drawn_from_the_seeded_generator_and_does_nothing_in_evaluation() -> None:
    x, dropout = torch.ones(100), Dropout(0.5)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(dropout(x))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert dropout.eval()(x) is x


def test_attention_with_almost_no_dropout_is_attention() -> None:
    torch.manual_seed(0)
    attention = CausalAttention(8, 2, dropout=1e-9)
    x = torch.randn(3, 7, 8)
    torch.testing.assert_close(attention.train()(x), attention.eval()(x))


# Attention pooling, equation 3


def test_attention_pooling_is_equation_3() -> None:
    pooling, rows = make_pooling(), make_rows(LENGTHS, 5).values
    with torch.no_grad():
        torch.testing.assert_close(
            pooling(rows, Segments.of(torch.tensor(LENGTHS))),
            pooled_slowly(rows, LENGTHS, pooling),
            rtol=1e-5,
            atol=1e-6,
        )


def test_an_item_is_pooled_from_its_own_rows_only() -> None:
    pooling, rows = make_pooling(), make_rows(LENGTHS, 5).values
    together = pooling(rows, Segments.of(torch.tensor(LENGTHS)))
    for item, own in enumerate(rows.split(LENGTHS)):
        alone = pooling(own, Segments.of(torch.tensor([len(own)])))[0]
        torch.testing.assert_close(together[item], alone, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_an_item_reaches_its_own_rows_only() -> None:
    pooling, rows = make_pooling(), make_rows(LENGTHS, 5).values
    rows.requires_grad_()
    pooling(rows, Segments.of(torch.tensor(LENGTHS)))[2].sum().backward()
    assert rows.grad is not None
    assert rows.grad.abs().sum(dim=1).bool().tolist() == [False] * 3 + [True] * 4 + [False] * 3


def test_the_attention_weights_of_an_item_sum_to_one() -> None:
    pooling, rows = make_pooling(), make_rows(LENGTHS, 5).values
    rows[:, 0] = 1.0
    torch.testing.assert_close(pooling(rows, Segments.of(torch.tensor(LENGTHS)))[:, 0], torch.ones(4))


def test_pooling_gradients_are_those_of_a_padded_softmax() -> None:
    """Against autograd through dense matrices, item by item, in float64."""
    pooling = make_pooling().double()
    rows = make_rows(LENGTHS, 5).values.double()
    goal = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    names = dict(pooling.named_parameters())
    ours = torch.autograd.grad((pooling(rows, Segments.of(torch.tensor(LENGTHS))) * goal).sum(), list(names.values()))
    pooled = []
    for own in rows.split(LENGTHS):
        inner = own @ pooling.inner.weight.T + pooling.inner.bias
        alpha = (inner @ pooling.outer.weight.T + pooling.outer.bias).softmax(dim=0)
        pooled.append((alpha * own).sum(dim=0))
    reference = torch.autograd.grad((torch.stack(pooled) * goal).sum(), list(names.values()))
    for name, a, b in zip(names, ours, reference, strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")
    assert ours[0].abs().max() > 1e-3  # W1
    assert ours[2].abs().max() > 1e-3  # W2
    assert ours[1].abs().max() < 1e-12  # b1: a softmax is invariant to a constant


# Experts, equations 4 and 5


@pytest.mark.parametrize("bias", [False, True])
def test_the_mixture_of_experts_is_equations_4_and_5(bias: bool) -> None:
    torch.manual_seed(0)
    moe = MixtureOfExperts(5, 4, experts=3, dropout=0.0, bias=bias)
    enlarge(moe)
    pooled = torch.randn(6, 5)
    assert {name for name, _ in moe.named_parameters() if "bias" in name} == ({"weight.bias"} if bias else set())
    with torch.no_grad():
        torch.testing.assert_close(moe(pooled), expert_mixture_slowly(pooled, moe), rtol=1e-4, atol=1e-5)


def test_dropout_of_the_experts_comes_before_their_normalisation() -> None:
    """Dropped values enter the LayerNorm as 0, so its output still has mean 0 over the dimensions."""
    torch.manual_seed(0)
    moe = MixtureOfExperts(5, 64, experts=1, dropout=0.5)
    pooled = torch.randn(3, 5)
    dropped = moe(pooled)
    torch.testing.assert_close(dropped.mean(dim=1), torch.zeros(3), atol=1e-5, rtol=0)
    assert not torch.allclose(dropped, moe.eval()(pooled))


# LocatedItems without the modality


def test_an_item_without_the_modality_has_the_missing_modality_embedding() -> None:
    encoder, lengths = make_item_encoder(), [2, 0, 4, 0, 1]
    rows = make_rows(lengths, 5).values
    with torch.no_grad():
        encoded = encoder(rows, Segments.of(torch.tensor(lengths)))
        pooled = pooled_slowly(rows, [2, 4, 1], encoder.pooling)
        torch.testing.assert_close(
            encoded[[0, 2, 4]], expert_mixture_slowly(pooled, encoder.experts), rtol=1e-4, atol=1e-5
        )
        assert torch.equal(encoded[1], encoder.missing)
        assert torch.equal(encoded[3], encoder.missing)


def test_a_catalogue_without_the_modality_has_the_missing_modality_embedding_everywhere() -> None:
    encoder = make_item_encoder()
    encoded = encoder(torch.zeros(0, 5), Segments.of(torch.zeros(3, dtype=torch.int64)))
    assert torch.equal(encoded, encoder.missing.expand(3, -1))
    encoded.sum().backward()
    assert encoder.missing.grad is not None
    torch.testing.assert_close(encoder.missing.grad, torch.full((4,), 3.0))


def test_the_missing_modality_embedding_gets_the_gradients_of_the_missing_items_only() -> None:
    encoder, lengths = make_item_encoder(), [2, 0, 4, 0, 1]
    weight = torch.arange(5.0)[:, None].expand(5, 4)
    (encoder(make_rows(lengths, 5).values, Segments.of(torch.tensor(lengths))) * weight).sum().backward()
    assert encoder.missing.grad is not None
    torch.testing.assert_close(encoder.missing.grad, torch.full((4,), 1.0 + 3.0))


# The Transformer


def test_the_transformer_is_causal_attention_and_a_feed_forward_network() -> None:
    """One history, one head and one position at a time."""
    transformer = make_transformer()
    x = torch.randn(5, 8)
    with torch.no_grad():
        result = transformer(x[None])[0]
        state = [transformer.norm(x[p] + transformer.position.weight[p]) for p in range(5)]
        for layer in transformer.layers:
            weight, bias = layer.attention.qkv.weight, layer.attention.qkv.bias
            q, k, v = ([weight[o : o + 8] @ s + bias[o : o + 8] for s in state] for o in (0, 8, 16))
            attended = []
            for p in range(5):
                heads = []
                for head in (slice(0, 4), slice(4, 8)):
                    strength = [math.exp(float(q[p][head] @ k[j][head]) / 2) for j in range(p + 1)]  # sqrt(4)
                    heads.append(sum(s / sum(strength) * v[j][head] for j, s in enumerate(strength)))
                attended.append(layer.attention.out(torch.cat(heads)))
            state = [layer.attention_norm(s + a) for s, a in zip(state, attended, strict=True)]
            state = [layer.feed_forward_norm(s + layer.feed_forward(s)) for s in state]
        torch.testing.assert_close(result, torch.stack(state), rtol=1e-4, atol=1e-5)


def test_later_items_never_change_an_earlier_output() -> None:
    transformer, x = make_transformer(), torch.randn(2, 6, 8)
    changed = x.clone()
    changed[:, 4:] = 100 * torch.randn(2, 2, 8)
    before, after = transformer(x), transformer(changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4], after[:, 4])


def test_padding_on_the_right_changes_no_output_before_it() -> None:
    transformer, x = make_transformer(), torch.randn(2, 4, 8)
    padded = torch.cat([x, torch.randn(2, 3, 8)], dim=1)
    torch.testing.assert_close(transformer(x), transformer(padded)[:, :4])


def test_other_histories_of_the_batch_do_not_change_an_encoding() -> None:
    transformer, x = make_transformer(), torch.randn(5, 6, 8)
    together = transformer(x)
    for row in range(5):
        torch.testing.assert_close(transformer(x[row : row + 1])[0], together[row])


def test_the_order_of_a_history_matters() -> None:
    transformer, x = make_transformer(), torch.randn(1, 6, 8)
    swapped = x[:, [1, 0, 2, 3, 4, 5]]
    assert not torch.allclose(transformer(x)[:, -1], transformer(swapped)[:, -1])


def test_initial_weights_are_small_and_biases_zero() -> None:
    torch.manual_seed(0)
    transformer = CausalTransformer(TransformerConfig(name="test")).apply(initialise)
    layer = transformer.layers[0]
    assert layer.attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert transformer.position.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not layer.attention.qkv.bias.any()


def test_take_is_indexing_with_the_same_gradient() -> None:
    table, rows = torch.randn(5, 2, 3, requires_grad=True), torch.tensor([[1, 1], [4, 0]])
    upstream = torch.randn(2, 2, 2, 3)
    assert torch.equal(take(table, rows), table[rows])
    ours, plain = (torch.autograd.grad((x * upstream).sum(), table)[0] for x in (take(table, rows), table[rows]))
    assert torch.allclose(ours, plain)


# Not causal: masked tasks


def test_a_position_attends_to_the_visible_positions_only() -> None:
    transformer, x = make_transformer(), torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    visible = torch.tensor([[True, False, True, True, False]])
    changed = torch.where(visible[..., None], x, x.flip(2))
    first, other = transformer(x, visible), transformer(changed, visible)
    torch.testing.assert_close(first[visible], other[visible])
    later = x.clone()
    later[0, 3] = x[0, 3].flip(0)
    assert (transformer(later, visible)[0, 0] - first[0, 0]).abs().max() > 1e-3  # later items are visible


@pytest.mark.parametrize("layers", [1, 2])
def test_last_is_forward_at_the_last_position(layers: int) -> None:
    torch.manual_seed(0)
    transformer = CausalTransformer(
        TransformerConfig(
            name="test", dim=8, heads=2, layers=layers, inner_dim=16, max_history=6, dropout=0, attention_dropout=0
        )
    )
    for weight in transformer.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    x, lengths = torch.randn(4, 6, 8), torch.tensor([1, 6, 3, 2])
    expected = transformer(x)[torch.arange(4), lengths - 1]
    torch.testing.assert_close(transformer.last(x, lengths), expected, atol=1e-6, rtol=1e-5)
