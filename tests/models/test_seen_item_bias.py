"""`model.seen_item_bias`: one learned number for seen items, in training and in ranking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from builders import (
    finetune_loss,
    generator,
    make_batch,
    make_dataset,
    make_model,
    random_sequences,
    sampled_finetune_loss,
)
from torch import Tensor

from msm4sr.errors import InputError
from msm4sr.evaluation.evaluate import EvaluationSettings, evaluate
from msm4sr.experiments.stages import start_from
from msm4sr.models.base import FactorizedModel
from msm4sr.models.registry import from_pretrained
from msm4sr.tensor_files import save_tensors
from msm4sr.training.checkpoint import best_file, weights_of
from msm4sr.training.device import Device
from msm4sr.training.settings import FinetuneSettings
from msm4sr.training.stages import finetune
from msm4sr.training.trainer import TrainerOptions

CPU = Device(accelerator="cpu")
N_ITEMS = 12
WITHOUT_AUXILIARY_LOSS = {
    "difsr": {"attribute_weight": 0.0},
    "sine": {"prototype_weight": 0.0},
    "mvrnn": {"reconstruction_weight": 0.0, "corruption": 0.0},
}
HISTORIES = [[3, 1, 3, 5, 3, 7], [2, 2, 4], [0, 11, 0]]
WITH_BIAS = ["sasrec", "sasrecm", "s3rec", "difsr", "sine", "mvrnn", "msm4sr"]


def make(name: str = "msm4sr", **changes: Any) -> FactorizedModel:
    model = make_model(name, seen_item_bias=True, **changes).eval()
    assert isinstance(model, FactorizedModel)
    return model


def scores(model: FactorizedModel, histories: list[list[int]]) -> Tensor:
    """[B, N]; padded with an item that is in no history."""
    lengths = torch.tensor([len(history) for history in histories])
    rows = torch.full((len(histories), int(lengths.max())), 9)
    for row, history in zip(rows, histories, strict=True):
        row[: len(history)] = torch.tensor(history)
    catalogue = model.encode_items()
    return model.score(rows, lengths, catalogue, model.scoring_vectors(catalogue))


@pytest.mark.parametrize("name", WITH_BIAS)
def test_the_bias_is_added_once_to_each_seen_item(name: str) -> None:
    model, histories = make(name), [[3, 1, 3], [2]]
    with torch.no_grad():
        model.seen_item_bias.zero_()  # type: ignore[union-attr]
        without = scores(model, histories)
        model.seen_item_bias.fill_(-0.05)  # type: ignore[union-attr]
        added = scores(model, histories) - without
    expected = torch.zeros(2, N_ITEMS)
    expected[0, [1, 3]] = expected[1, 2] = -0.5
    torch.testing.assert_close(added, expected, atol=1e-5, rtol=0)


def test_with_cosine_it_is_divided_by_the_temperature() -> None:
    model = make(similarity="cosine", temperature=0.1)
    with torch.no_grad():
        model.seen_item_bias.fill_(0.2)  # type: ignore[union-attr]
        assert float(model.seen_bias) == pytest.approx(10 * 0.2 / 0.1)  # type: ignore[arg-type]
    assert make_model("msm4sr").seen_bias is None  # type: ignore[union-attr]


@pytest.mark.parametrize("name", WITH_BIAS)
def test_fine_tuning_is_cross_entropy_of_the_scores_that_are_ranked(name: str) -> None:
    model, batch = make(name, **WITHOUT_AUXILIARY_LOSS.get(name, {})), make_batch(HISTORIES)
    pairs = [(history[:end], history[end]) for history in HISTORIES for end in range(1, len(history))]
    losses = [F.cross_entropy(scores(model, [prefix]), torch.tensor([target])) for prefix, target in pairs]
    expected = torch.stack(losses).mean()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    gradients = torch.autograd.grad(expected, list(trained.values()), allow_unused=True)
    every = torch.randperm(N_ITEMS, generator=generator())
    for loss in (
        finetune_loss(model, batch),
        sampled_finetune_loss(model, batch, every, torch.full((N_ITEMS,), 1 / N_ITEMS)),
    ):
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
        ours = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        for (weight, _), mine, theirs in zip(trained.items(), ours, gradients, strict=True):
            if theirs is not None and mine is not None:
                torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4, msg=weight)
    assert model.seen_item_bias is not None
    assert float(torch.autograd.grad(finetune_loss(model, batch), model.seen_item_bias)[0].abs()) > 1e-3


@pytest.mark.parametrize(("repeats", "sign"), [(True, 1), (False, -1)])
def test_it_learns_whether_users_repeat_items(repeats: bool, sign: int) -> None:
    rng = np.random.default_rng(0)
    histories = [
        rng.choice(rng.choice(N_ITEMS, 3, replace=False), 9) if repeats else rng.permutation(N_ITEMS)[:9]
        for _ in range(150)
    ]
    dataset = make_dataset([[int(item) for item in history] for history in histories], N_ITEMS)
    settings = FinetuneSettings(epochs=12, learning_rate=2e-2, batch_pairs=128, select="recall@5")
    biased, plain = (make_model("sasrec", seen_item_bias=on, max_history=12) for on in (True, False))
    for model in (biased, plain):
        finetune(model, dataset, settings, TrainerOptions(device=CPU))  # type: ignore[arg-type]
    assert isinstance(biased, FactorizedModel)
    assert float(biased.seen_bias.detach()) * sign > 0.5  # type: ignore[arg-type]
    if not repeats:  # as good as excluding seen items
        excluded = evaluate(biased, dataset, "test", EvaluationSettings(exclude_seen=True))["recall@5"]
        assert evaluate(biased, dataset, "test")["recall@5"] > excluded - 0.1


def test_a_stored_model_keeps_it(tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    assert isinstance(again, FactorizedModel)
    assert torch.equal(scores(model, HISTORIES[1:]), scores(again, HISTORIES[1:]))


def test_transfer_to_another_data_set_drops_it(tmp_path: Path) -> None:
    """It is a habit of the users there; and a run without the bias can be transferred."""
    for here, there in ((True, False), (False, True)):
        model, source = (make_model("msm4sr", seen_item_bias=on, seed=seed) for on, seed in ((here, 0), (there, 1)))
        before = model.seen_item_bias.clone() if here else None  # type: ignore[union-attr, operator]
        file = best_file(tmp_path / f"{here}" / "checkpoints", "pretrain")
        file.parent.mkdir(parents=True)
        save_tensors(weights_of(source), file, {})
        start_from(tmp_path / f"{here}", model)
        assert torch.equal(model.transformer.position.weight, source.transformer.position.weight)  # type: ignore
        assert before is None or torch.equal(model.seen_item_bias, before)  # type: ignore[arg-type]


def test_it_is_refused_where_there_is_no_softmax() -> None:
    dataset = make_dataset(random_sequences(10, N_ITEMS, longest=6), N_ITEMS)
    model = make("sasrec", loss="bce")
    with pytest.raises(InputError, match=r"model.seen_item_bias needs a softmax.*is bce; change either"):
        finetune(model, dataset, FinetuneSettings(epochs=1), TrainerOptions(device=CPU))
