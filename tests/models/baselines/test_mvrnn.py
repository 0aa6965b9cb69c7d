"""MV-RNN against its equations, one history, step and gate at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from builders import N_ITEMS, every_input, finetune_loss, make_batch, make_model, random_sequences
from torch import Tensor, nn

from msm4sr.models.base import Inputs
from msm4sr.models.baselines.mvrnn import MVRNN
from msm4sr.ragged import Ragged

HISTORIES = [[1, 5, 0, 7], [3, 4, 11, 7]]


def make_mvrnn(inputs: Inputs | None = None, **changes: Any) -> MVRNN:
    model = make_model("mvrnn", inputs, **changes)
    assert isinstance(model, MVRNN)
    return model.eval()


def vector_of(model: MVRNN, modality: str, item: int) -> Tensor | None:
    vectors, lengths = model.features[modality](torch.tensor([item]))
    return vectors[0] if lengths[0] else None


def content_slowly(model: MVRNN, item: int, without: tuple[str, ...] = ()) -> Tensor:
    """m = sum_a V_a f^a / sqrt(D_a), over the modalities that the item has."""
    content = torch.zeros(model.config.dim)
    for modality, weight in model.weights.items():
        vector = vector_of(model, modality, item)
        if vector is not None and modality not in without:
            content = content + weight @ vector / weight.shape[1] ** 0.5
    return content


def gru_step_slowly(gru: nn.GRU, x: Tensor, h: Tensor) -> Tensor:
    """r, z = sigmoid(...), n = tanh(W x + b + r (U h + c)), h' = (1 - z) n + z h."""
    width = len(h)
    of_x, of_h = (
        [weight[g * width : (g + 1) * width] @ v + bias[g * width : (g + 1) * width] for g in range(3)]
        for weight, bias, v in ((gru.weight_ih_l0, gru.bias_ih_l0, x), (gru.weight_hh_l0, gru.bias_hh_l0, h))
    )
    r, z = torch.sigmoid(of_x[0] + of_h[0]), torch.sigmoid(of_x[1] + of_h[1])
    n = torch.tanh(of_x[2] + r * of_h[2])
    return (1 - z) * n + z * h


@torch.no_grad()
@pytest.mark.parametrize("structure", ["united", "separate"])
def test_every_prefix_is_scored_by_the_recurrence(structure: str) -> None:
    model = make_mvrnn(structure=structure)
    dim, catalogue = model.config.dim, model.encode_items()
    ours = model.encode_histories(torch.tensor(HISTORIES), catalogue) @ model.scoring_vectors(catalogue).T
    latent = list(model.item_embedding.weight)
    content = [content_slowly(model, item) for item in range(N_ITEMS)]
    for row, history in enumerate(HISTORIES):
        h, g, k = torch.zeros(2 * dim), torch.zeros(dim), torch.zeros(dim)
        for step, item in enumerate(history):
            if structure == "united":
                h = gru_step_slowly(model.recurrent[0], torch.cat([latent[item], content[item]]), h)
                expected = [h[:dim] @ x + h[dim:] @ m for x, m in zip(latent, content, strict=True)]
            else:
                g = gru_step_slowly(model.recurrent[0], latent[item], g)
                k = gru_step_slowly(model.recurrent[1], content[item], k)
                expected = [g @ x + k @ m for x, m in zip(latent, content, strict=True)]
            torch.testing.assert_close(ours[row, step], torch.stack(expected), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_missing_modality_adds_nothing_and_an_item_without_any_has_its_id() -> None:
    inputs = every_input()
    has = torch.stack([rows.lengths > 0 for rows in inputs.features.values()]).sum(dim=0)  # [N]
    model = make_mvrnn(inputs)
    catalogue = model.encode_items()
    assert (has == 1).any()
    for item in range(N_ITEMS):
        torch.testing.assert_close(catalogue[item, 1], content_slowly(model, item))
    alone = make_mvrnn(every_input(("text",)))  # items without a text have nothing else
    assert not alone.encode_items()[-1, 1].any()


def reconstruction_slowly(model: MVRNN, content: dict[int, Tensor], targets: list[int]) -> float:
    total = 0.0
    for item in targets:
        for modality, weight in model.weights.items():
            vector = vector_of(model, modality, item)
            if vector is not None:
                rebuilt = weight.T @ content[item] / weight.shape[1] ** 0.5
                total += float(((vector - rebuilt) ** 2).sum().detach())
    return total / len(targets)


def test_the_autoencoder_reconstructs_the_next_items_features_with_the_same_weights() -> None:
    model, targets = make_mvrnn(reconstruction_weight=0.6), [0, 7, 7, 11, 4]
    term = model.auxiliary_loss(torch.zeros(5, 16), torch.tensor(targets), model.encode_items()[targets])
    content = {item: content_slowly(model, item) for item in targets}
    assert term is not None
    assert float(term.detach()) == pytest.approx(0.6 / 2 * reconstruction_slowly(model, content, targets), rel=1e-4)


def test_corruption_removes_complete_modalities_and_all_are_reconstructed() -> None:
    inputs = every_input()
    model = make_mvrnn(inputs, corruption=0.5).train()
    item = next(i for i in range(N_ITEMS) if all(len(rows[i]) for rows in inputs.features.values()))
    possible = {
        without: content_slowly(model, item, without) for without in ((), ("text",), ("visual",), ("text", "visual"))
    }
    seen = set()
    torch.manual_seed(0)
    for _ in range(40):
        catalogue = model.encode_items()
        (left,) = [w for w, content in possible.items() if torch.allclose(content, catalogue[item, 1], atol=1e-5)]
        seen.add(left)
        term = model.auxiliary_loss(torch.zeros(1, 16), torch.tensor([item]), catalogue[[item]])
        expected = model.config.reconstruction_weight / 2 * reconstruction_slowly(model, {item: possible[left]}, [item])
        assert term is not None
        assert float(term.detach()) == pytest.approx(expected, rel=1e-4)
    assert seen == set(possible)


def test_evaluation_has_no_corruption() -> None:
    model = make_mvrnn(corruption=0.9)
    assert torch.equal(model.encode_items(), model.encode_items())
    torch.testing.assert_close(model.encode_items()[4, 1], content_slowly(model, 4))


def test_the_autoencoder_learns_to_reconstruct_a_text_from_an_image_of_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(N_ITEMS, 4, generator=generator)
    visual = text @ torch.randn(4, 6, generator=generator)  # images are a linear map of the texts
    offsets = torch.arange(N_ITEMS + 1)
    inputs = Inputs(N_ITEMS, features={"text": Ragged(text, offsets), "visual": Ragged(visual, offsets)})
    model = make_mvrnn(inputs, corruption=0.3, reconstruction_weight=10.0)

    @torch.no_grad()
    def error() -> float:
        texts = model.features["text"]()[0]
        seen = torch.stack([content_slowly(model, item, ("text",)) for item in range(N_ITEMS)])
        return float((texts - seen @ model.weight("text")).norm() / texts.norm())

    before = error()
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(300):
        term = model.train().auxiliary_loss(torch.zeros(1), torch.arange(N_ITEMS), model.encode_items())
        assert term is not None
        optimizer.zero_grad()
        term.backward()
        optimizer.step()
    assert before > 0.9
    assert error() < 0.6


@pytest.mark.parametrize("structure", ["united", "separate"])
def test_without_features_a_recurrent_network_over_ids_remains(structure: str) -> None:
    model = make_mvrnn(every_input(()), structure=structure)
    assert model.encode_items().shape == (N_ITEMS, 1, model.config.dim)
    finetune_loss(model, make_batch(random_sequences(6, N_ITEMS, 6))).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters() if weight.requires_grad)


@pytest.mark.parametrize("structure", ["united", "separate"])
def test_gradients_reach_every_weight_of_both_structures(structure: str) -> None:
    model = make_mvrnn(structure=structure)
    finetune_loss(model, make_batch([[1, 5, 0, 7, 2], [3, 4, 11, 7]])).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters() if weight.requires_grad)


def test_the_setting_chooses_the_loss_of_the_authors() -> None:
    assert make_mvrnn().loss == "softmax"
    assert make_mvrnn(loss="bpr").loss == "bpr"
