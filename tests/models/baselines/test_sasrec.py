"""SASRec: its scores, and the sampled losses."""

from __future__ import annotations

import math

import pytest
import torch
from builders import finetune_loss, generator, make_batch, make_sasrec
from pydantic import ValidationError

from msm4sr.models.baselines.sasrec import SASRecConfig
from msm4sr.training.negatives import absent_items, draw_absent

HISTORIES = torch.tensor([[1, 5, 0, 7], [3, 4, 11, 7], [2, 2, 2, 9]])


def test_sasrec_scores_by_the_product_with_the_item_embedding() -> None:
    model = make_sasrec().eval()
    with torch.no_grad():
        catalogue = model.encode_items()
        scores = model.encode_histories(HISTORIES, catalogue) @ model.scoring_vectors(catalogue).T
        hidden = model.transformer(model.item_embedding.weight[HISTORIES])
        for row in range(3):
            for item in range(model.n_items):
                torch.testing.assert_close(scores[row, -1, item], hidden[row, -1] @ model.item_embedding.weight[item])


def test_the_softmax_reaches_all_items_and_the_positions_that_a_history_has() -> None:
    model = make_sasrec()
    finetune_loss(model, make_batch([[1, 5, 0, 7, 2], [3, 4, 11, 7]])).backward()
    assert model.item_embedding.weight.grad.any(dim=1).all()
    assert model.transformer.position.weight.grad.any(dim=1).tolist() == [True] * 4 + [False] * 2


def test_heads_that_do_not_divide_the_dimension_are_refused() -> None:
    with pytest.raises(ValidationError, match="10 is not a multiple of 4"):
        SASRecConfig(dim=10, heads=4)


# The loss of the authors: one negative per pair


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("loss", ["bce", "bpr"])
def test_a_sampled_loss_is_its_formula_pair_by_pair(loss: str) -> None:
    """BPR on SASRec in place of MV-RNN, whose authors train by it."""
    model = make_sasrec()
    model.loss = loss  # type: ignore[assignment]
    batch = make_batch([[1, 5, 0, 7, 2], [3, 4, 11, 7]])
    value = float(finetune_loss(model, batch, generator(3)).detach())
    drawn = absent_items(batch, model.n_items, generator(3))
    losses = []
    with torch.no_grad():
        for row, slot in batch.mask.nonzero().tolist():
            prefix = model.transformer(model.item_embedding.weight[batch.items[row : row + 1, : slot + 1]])[0, -1]
            positive, negative = (
                float(prefix @ model.item_embedding.weight[rows[row, slot]]) for rows in (batch.targets, drawn)
            )
            if loss == "bce":
                losses.append(-math.log(sigmoid(positive)) - math.log(1 - sigmoid(negative)))
            else:
                losses.append(-math.log(sigmoid(positive - negative)))
    assert value == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_the_setting_chooses_the_loss() -> None:
    assert make_sasrec().loss == "softmax"
    assert make_sasrec(loss="bce").loss == "bce"


def test_negatives_are_uniform_over_the_items_that_a_row_lacks() -> None:
    rows = torch.tensor([[5, 2, 5, 0, 7], [3, 3, 3, 9, 9]]).repeat(1, 2000)
    real = torch.tensor([[True, True, True, True, False], [True, True, True, False, False]]).repeat(1, 2000)
    drawn = draw_absent(rows, real, 8, generator())
    for row, seen in enumerate(({5, 2, 0}, {3})):
        counts = drawn[row].bincount(minlength=8)
        assert set(counts.nonzero().flatten().tolist()) == set(range(8)) - seen
        expected = 10_000 / (8 - len(seen))
        assert all(abs(int(count) - expected) < 5 * expected**0.5 for count in counts[counts > 0])


def test_a_row_with_every_item_gets_any_negative() -> None:
    rows = torch.tensor([[2, 0, 1, 1]]).repeat(1, 100)
    assert set(draw_absent(rows, torch.ones_like(rows, dtype=torch.bool), 3, generator()).unique().tolist()) == {
        0,
        1,
        2,
    }


def test_negatives_are_neither_in_the_prefix_nor_later_in_the_window() -> None:
    batch = make_batch([[0, 1, 2, 3, 4], [5, 0]])
    batch.mask[0, :3] = False  # one pair per row, as with `pairs: last`
    drawn = torch.cat([absent_items(batch, 7, generator(seed)) for seed in range(50)], dim=1)
    assert set(drawn[0].tolist()) == {5, 6}
    assert set(drawn[1].tolist()) == {1, 2, 3, 4, 6}
