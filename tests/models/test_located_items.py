"""Where a step finds the features of its items, with and without padding, against loops over items."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from builders import make_rows
from torch import Tensor, nn

from msm4sr.models.item_encoder import AttentionPooling, ItemEncoder, MixtureOfExperts
from msm4sr.models.layers import ItemFeatures
from msm4sr.models.located_items import Limits, LocatedItems, Segments, map_tensors, pad_slots, padded_size, to_device

CATALOGUES = {
    "none, one or several rows": [2, 0, 4, 1, 0, 3, 1],
    "one or several rows": [2, 1, 4, 1, 1, 3, 1],
    "none or one row": [1, 0, 1, 1, 0, 0, 1],
    "one row each": [1] * 7,
    "no rows of the chosen items": [0, 0, 0, 2, 1, 0, 0],
}


def make_encoder() -> ItemEncoder:
    torch.manual_seed(0)
    encoder = ItemEncoder(AttentionPooling(5, 4), MixtureOfExperts(5, 4, experts=3, dropout=0.0))
    nn.init.normal_(encoder.pooling.inner.weight)
    nn.init.normal_(encoder.pooling.outer.weight)
    return encoder


@pytest.mark.parametrize("name", CATALOGUES)
@pytest.mark.parametrize("padded", [False, True])
def test_some_items_are_encoded_as_they_are_among_all(name: str, padded: bool) -> None:
    features, encoder = ItemFeatures(make_rows(CATALOGUES[name], 5)), make_encoder()
    chosen = torch.tensor([0, 1, 2, 5])
    items = LocatedItems(chosen, {"text": features.locate(chosen)})
    where = (items.pad() if padded else items).features["text"]
    some = encoder(*features.read(where))
    assert len(some) == (8 if padded else 4)
    assert some.isfinite().all()
    torch.testing.assert_close(some[:4], encoder(*features.read())[chosen])


@pytest.mark.parametrize("name", CATALOGUES)
def test_padding_changes_no_gradient(name: str) -> None:
    features, encoder = ItemFeatures(make_rows(CATALOGUES[name], 5)), make_encoder()
    chosen = torch.tensor([0, 1, 2, 5])
    items = LocatedItems(chosen, {"text": features.locate(chosen)})
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    found = []
    for each in (items, items.pad()):
        encoder.zero_grad()
        (encoder(*features.read(each.features["text"]))[:4] * weight).sum().backward()
        found.append({n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None and p.grad.any()})
    assert found[0]
    assert found[0].keys() == found[1].keys()
    for parameter, gradient in found[0].items():
        torch.testing.assert_close(found[1][parameter], gradient, rtol=1e-4, atol=1e-6)


def test_the_rows_of_items_without_and_with_several() -> None:
    features = make_rows([2, 0, 3, 1], 5)
    rows, segments = ItemFeatures(features).read(ItemFeatures(features).locate(torch.tensor([0, 1, 2])))
    assert torch.equal(rows, features.values[:5])
    assert segments.items == 3
    fields = (segments.present, segments.item, segments.slot, segments.starts)
    assert [f.tolist() for f in fields if f is not None] == [[0, 2], [0, 0, 1, 1, 1], [0, 1, 0, 1, 2], [0, 2]]
    assert segments.longest == 3


def test_features_follow_their_module_but_only_the_given_ones_are_stored() -> None:
    features = ItemFeatures(make_rows([2, 0, 3, 1], 5))
    assert set(features.state_dict()) == {"values", "offsets"}
    moved = features.to("meta")
    _, segments = moved.read()
    assert segments.item is not None
    assert segments.item.device.type == "meta"


def test_padded_sizes_are_powers_of_two() -> None:
    assert [padded_size(n) for n in (0, 1, 2, 3, 4, 5, 1000, 1024, 1025)] == [1, 1, 2, 4, 4, 8, 1024, 1024, 2048]
    assert Segments(3).pad(8, 3) == (Segments(8), 8)


def test_pairs_keep_their_slots_when_histories_are_padded() -> None:
    histories = torch.arange(15).view(3, 5)
    pairs = torch.tensor([0, 4, 7, 14])
    shape, places = Limits(pairs=6, history=7).pad_pairs(histories, pairs)
    assert shape == (4, 7)
    assert pad_slots(histories, shape).flatten()[places].tolist() == [0, 4, 7, 14, 0, 0]


@dataclass
class Nested:
    parts: dict[str, LocatedItems]
    absent: Tensor | None
    count: int


def test_all_tensors_of_a_nested_value_are_moved() -> None:
    features = ItemFeatures(make_rows([2, 0, 3], 5))
    items = LocatedItems(torch.tensor([0, 2]), {"text": features.locate(torch.tensor([0, 2]))})
    moved = to_device(Nested({"a": items}, None, 3), torch.device("meta"))
    devices: list[str] = []
    map_tensors(moved, lambda tensor: devices.append(tensor.device.type) or tensor)  # type: ignore[func-returns-value]
    assert devices == ["meta"] * 6
    assert (moved.absent, moved.count) == (None, 3)
