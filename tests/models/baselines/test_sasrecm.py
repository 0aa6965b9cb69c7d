"""SASRecM: the sum that is an item's embedding."""

from __future__ import annotations

import torch
from builders import N_ITEMS, every_input, make_model, make_rows
from torch import Tensor

from msm4sr.models.layers import ItemMeans
from msm4sr.ragged import Ragged


def standardised_slowly(features: Ragged) -> dict[int, Tensor]:
    """The mean of each item's rows, minus the mean of those means, divided by the mean of their lengths."""
    means = {i: sum(rows) / len(rows) for i, rows in enumerate(features) if len(rows)}
    centre = sum(means.values()) / len(means)
    length = sum(float(((mean - centre) ** 2).sum()) ** 0.5 for mean in means.values()) / len(means)
    return {i: (mean - centre) / length for i, mean in means.items()}


def test_an_item_is_the_sum_of_its_id_and_projected_means_or_missing_modality_embeddings() -> None:
    inputs = every_input(("text", "visual", "audio"))
    model = make_model("sasrecm", inputs)
    with torch.no_grad():
        encoded = model.encode_items()[:, 0]
        for i in range(N_ITEMS):
            expected = model.item_embedding.weight[i]
            for modality, features in inputs.features.items():
                content, means = model.content[modality], standardised_slowly(features)
                if i in means:
                    expected = expected + content.linear.weight @ means[i] / len(means[i]) ** 0.5 + content.linear.bias
                else:
                    expected = expected + content.missing
            torch.testing.assert_close(encoded[i], expected, rtol=1e-4, atol=1e-5)


def test_the_transformer_and_the_score_use_the_sum() -> None:
    model = make_model("sasrecm").eval()
    history = torch.tensor([[1, 5, 0, 7]])
    with torch.no_grad():
        catalogue = model.encode_items()
        ours = model.encode_histories(history, catalogue)[0, -1] @ model.scoring_vectors(catalogue).T
        items = catalogue[:, 0]
        torch.testing.assert_close(ours, items @ model.transformer(items[history])[0, -1])


def test_without_any_features_it_is_sasrec() -> None:
    model = make_model("sasrecm", every_input(()))
    assert torch.equal(model.encode_items()[:, 0], model.item_embedding.weight)
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"item_embedding", "transformer"}


def test_equal_features_of_all_items_are_zero_means() -> None:
    vectors, lengths = ItemMeans(Ragged(torch.ones(4, 3), torch.tensor([0, 2, 3, 3, 4])))()
    assert torch.equal(vectors, torch.zeros(3, 3))
    assert lengths.tolist() == [1, 1, 0, 1]


def test_the_means_of_means_are_themselves() -> None:
    """A stored model is built from them again."""
    means = ItemMeans(make_rows([2, 0, 3, 1], 5))
    again = ItemMeans(means.rows)
    torch.testing.assert_close(again.values, means.values)
    assert torch.equal(again.offsets, means.offsets)
