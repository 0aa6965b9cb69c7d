"""The systems that the method is compared with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from builders import make_batch, make_msm4sr, make_popularity, make_sasrec
from pydantic import ValidationError

from msm4sr.models.base import Model
from msm4sr.models.baselines.sasrec import SASRec, SASRecConfig
from msm4sr.training.finetune import finetune_loss

N_ITEMS = 12
HISTORIES = torch.tensor([[1, 5, 0, 7], [3, 4, 11, 7], [2, 2, 2, 9]])
COUNTS = torch.tensor([3, 0, 5, 1, 1, 0, 9, 2, 4, 4, 7, 8])
MODELS = {"msm4sr": make_msm4sr, "sasrec": make_sasrec, "popularity": lambda: make_popularity(COUNTS.tolist())}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Model:
    return MODELS[request.param]().eval()


def scores(model: Model, histories: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        catalogue = model.encode_items()
        return model.encode_histories(histories, catalogue) @ model.scoring_vectors(catalogue).T


# What every model keeps


def test_a_model_is_a_sequence_model_that_scores_every_item_at_every_prefix(model: Model) -> None:
    assert isinstance(model, Model)
    assert scores(model, HISTORIES).shape == (3, 4, N_ITEMS)


def test_a_score_does_not_depend_on_what_comes_later_nor_on_the_other_histories(model: Model) -> None:
    together = scores(model, HISTORIES)
    for row in range(3):
        for end in range(1, 5):
            alone = scores(model, HISTORIES[row : row + 1, :end])[0, -1]
            torch.testing.assert_close(alone, together[row, end - 1], rtol=1e-4, atol=1e-5)


def test_a_stored_model_scores_the_same_to_the_last_bit(model: Model, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(scores(model, HISTORIES), scores(again, HISTORIES))
    assert again.config == model.config


# SASRec


def test_sasrec_scores_by_the_product_with_the_item_embedding() -> None:
    model = make_sasrec().eval()
    with torch.no_grad():
        hidden = model.transformer(model.item_embedding.weight[HISTORIES])
        for row in range(3):
            for item in range(N_ITEMS):
                expected = hidden[row, -1] @ model.item_embedding.weight[item]
                torch.testing.assert_close(scores(model, HISTORIES)[row, -1, item], expected)


def test_training_reaches_every_weight_of_sasrec_but_positions_that_no_history_has() -> None:
    model = make_sasrec()
    finetune_loss(model, make_batch([[1, 5, 0, 7, 2], [3, 4, 11, 7]])).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters())
    assert model.item_embedding.weight.grad.any(dim=1).all()  # the softmax reaches all items
    assert model.transformer.position.weight.grad.any(dim=1).tolist() == [True] * 4 + [False] * 2


def test_sasrec_refuses_heads_that_do_not_divide_its_width() -> None:
    with pytest.raises(ValidationError, match="10 is not a multiple of 4"):
        SASRecConfig(dim=10, heads=4)


def test_a_seed_makes_the_same_sasrec() -> None:
    one, two = (list(make_sasrec(seed=4).parameters()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert isinstance(make_sasrec(), SASRec)


# Popularity


def test_popularity_ranks_by_training_interactions_whatever_the_history() -> None:
    ranked = scores(make_popularity(COUNTS.tolist()), HISTORIES)
    assert torch.equal(ranked, COUNTS.float().expand(3, 4, -1))
