"""The contract of all models. A new model is tested here once it is registered.

Each model is tiny, with inputs of every kind: features in two modalities (some items lack one), categories (some items
have none), users and their histories. Other tests cover what is special to a model.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import (
    HISTORIES,
    N_ITEMS,
    as_ragged,
    cycle_dataset,
    every_input,
    finetune_loss,
    generator,
    make_batch,
    make_dataset,
    make_model,
    pretrain_loss,
    ragged,
    s3rec_loss,
    sampled_finetune_loss,
    tiny_config,
    training_inputs,
)
from torch import Tensor

from msm4sr.data.dataset import Dataset
from msm4sr.evaluation.evaluate import evaluate
from msm4sr.models.base import Inputs, Model, RowKind
from msm4sr.models.carry_over import Common, carry_over
from msm4sr.models.graph_model import GraphModel
from msm4sr.models.registry import MODELS, build, from_pretrained
from msm4sr.ragged import Ragged
from msm4sr.training.checkpoint import weights_of
from msm4sr.training.device import Device
from msm4sr.training.settings import FinetuneSettings
from msm4sr.training.stages import finetune
from msm4sr.training.tasks.bpr import bpr_loss, pair_batches
from msm4sr.training.tasks.next_item import NextItemTask
from msm4sr.training.trainer import TrainerOptions

CPU = Device(accelerator="cpu")
SEQUENCES = [[1, 5, 0, 7, 2], [3, 4, 11, 7], [6, 8, 9, 10, 2], [0, 1]]
ROWS = torch.tensor([[1, 5, 0, 7], [3, 4, 11, 7], [2, 2, 2, 9]])

TRAINED = [name for name in MODELS if list(make_model(name).parameters())]
SEQUENTIAL = [name for name in TRAINED if MODELS[name].ranks_seen_items]
"""Their scores depend on the order of a history."""
EXTENDING = ["sasrec", "sasrecm", "s3rec", "msm4sr"]
"""They continue a history that was read before."""


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Model:
    return make_model(request.param).eval()


def scores(model: Model, rows: Tensor, lengths: list[int], users: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        catalogue = model.encode_items()
        return model.score(rows, torch.tensor(lengths), catalogue, model.scoring_vectors(catalogue), users)


def test_the_lists_of_these_tests_are_not_empty() -> None:
    assert {"sasrec", "msm4sr"} <= set(SEQUENTIAL)


# Scores


def test_a_model_scores_every_item_after_every_history(model: Model) -> None:
    answer = scores(model, ROWS, [4, 4, 4])
    assert answer.shape == (3, N_ITEMS)
    assert answer.isfinite().all()


def test_a_score_does_not_depend_on_the_batch_nor_on_what_comes_later_nor_on_padding(model: Model) -> None:
    for end in range(1, 5):
        together = scores(model, ROWS, [end] * 3)  # positions after `end` are later items or padding
        for row in range(3):
            alone = scores(model, ROWS[row : row + 1, :end], [end])[0]
            torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_one_pass_over_a_history_gives_the_scores_after_each_of_its_prefixes(name: str) -> None:
    model = make_model(name).eval()
    with torch.no_grad():
        catalogue = model.encode_items()
        every = model.encode_histories(ROWS, catalogue) @ model.scoring_vectors(catalogue).T  # [B, L, N]
    for end in range(1, 5):
        torch.testing.assert_close(every[:, end - 1], scores(model, ROWS[:, :end], [end] * 3), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SEQUENTIAL)
@pytest.mark.parametrize("ends", [[4, 4, 4], [1, 2, 4], [3, 1, 1]])
def test_the_vector_of_a_history_is_that_of_its_last_prefix(name: str, ends: list[int]) -> None:
    model = make_model(name).eval()
    lengths = torch.tensor(ends)
    with torch.no_grad():
        catalogue = model.encode_items()
        prefixes = model.encode_histories(ROWS, catalogue)  # [B, L, Q]
        last = model.encode_last(ROWS, lengths, catalogue)
    torch.testing.assert_close(last, prefixes[torch.arange(3), lengths - 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EXTENDING)
@pytest.mark.parametrize("parts", [[1, 1, 1, 1], [4], [2, 2], [1, 3]])
def test_a_history_read_in_parts_has_the_vector_of_the_complete_one(name: str, parts: list[int]) -> None:
    model, past, begin = make_model(name).eval(), (), 0
    with torch.no_grad():
        catalogue = model.encode_items()
        for length in parts:
            vector, past = model.extend_history(ROWS[:1, begin : begin + length], catalogue, past)
            begin += length
            complete = model.encode_last(ROWS[:1], torch.tensor([begin]), catalogue)
            torch.testing.assert_close(vector, complete, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_the_latest_item_of_a_history_matters(name: str) -> None:
    model = make_model(name).eval()
    other = torch.tensor([[1, 5, 0, 8]])
    assert (scores(model, ROWS[:1], [4]) - scores(model, other, [4])).abs().max() > 1e-3


def test_an_unknown_user_and_an_item_without_interactions_get_finite_scores(model: Model) -> None:
    assert 11 not in {item for history in HISTORIES for item in history}  # and it has neither text nor category
    known, unknown = scores(model, ROWS, [4, 4, 4], torch.tensor([0, 1, 2])), scores(model, ROWS, [4, 4, 4])
    assert known.isfinite().all()
    assert unknown.isfinite().all()
    assert scores(model, torch.tensor([[11]]), [1]).isfinite().all()


# Storing


def test_the_scores_of_a_stored_model_are_bit_identical(model: Model, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    users = torch.tensor([0, 1, 2])
    assert torch.equal(scores(model, ROWS, [4, 4, 4], users), scores(again, ROWS, [4, 4, 4], users))
    assert type(again) is type(model)
    assert again.config == model.config


# Training

# A softmax over an item's sentences is invariant to a constant: the true gradients of b1 and b2 of equation 3 are zero.
NO_GRADIENT = {"msm4sr": {f"encoders.{a}.pooling.{b}.bias" for a in ("text", "visual") for b in ("inner", "outer")}}


def loss_of_training(model: Model) -> Tensor:
    """The fine-tuning loss of all training histories in one batch."""
    if not isinstance(model, GraphModel):
        return finetune_loss(model, make_batch(SEQUENCES), generator())
    (batch,) = pair_batches(ragged(SEQUENCES), N_ITEMS, 100, np.random.default_rng(0))
    return bpr_loss(model, batch)


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_reach_every_trainable_weight(name: str) -> None:
    model = make_model(name)
    loss = loss_of_training(model)
    if name in PRETRAINING:
        loss = loss + PRETRAINING[name](model)
    loss.backward()
    missed = {
        n
        for n, weight in model.named_parameters()
        if weight.requires_grad and (weight.grad is None or weight.grad.abs().max() < 1e-8)
    }
    assert missed - NO_GRADIENT.get(name, set()) == set()


def pretraining_of_msm4sr(model: Any) -> Tensor:
    from msm4sr.training.settings import PretrainSettings

    return pretrain_loss(model, make_batch(SEQUENCES), PretrainSettings(), generator())


def pretraining_of_s3rec(model: Any) -> Tensor:
    return s3rec_loss(model, make_batch(SEQUENCES), generator())


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_a_sample_of_all_items_in_another_order_gives_the_loss_of_all_items(name: str) -> None:
    """The model must read an item's row among the encoded items, and not its number."""
    model = make_model(name).eval()
    batch, shuffled = make_batch(SEQUENCES), torch.randperm(N_ITEMS, generator=generator(1))
    uniform = torch.full((N_ITEMS,), 1 / N_ITEMS)
    torch.testing.assert_close(sampled_finetune_loss(model, batch, shuffled, uniform), finetune_loss(model, batch))
    some = sampled_finetune_loss(model, batch, torch.tensor([2, 7, 10]), uniform)
    assert some.isfinite()


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_a_sampled_step_reads_each_row_of_an_item_table_once_in_ascending_order(name: str) -> None:
    """The optimiser relies on it: it does not sort the rows of a sparse gradient."""
    task = NextItemTask(make_model(name), FinetuneSettings(candidates="sampled", samples=5))  # type: ignore[arg-type]
    for table in task.sparse_tables:
        table.sparse = True
    uniform = torch.full((N_ITEMS,), 1 / N_ITEMS)
    sampled_finetune_loss(task.model, make_batch(SEQUENCES), torch.tensor([11, 3, 11]), uniform).backward()
    gradients = [table.weight.grad for table in task.sparse_tables]
    assert gradients
    for gradient in gradients:
        rows = gradient._indices()[0].tolist()  # type: ignore[union-attr]
        assert rows == sorted({item for history in SEQUENCES for item in history} | {0, 3, 11})


PRETRAINING = {"msm4sr": pretraining_of_msm4sr, "s3rec": pretraining_of_s3rec}
"""The losses of pre-training, which train what fine-tuning does not."""


@pytest.mark.parametrize("name", MODELS)
def test_a_seed_makes_the_same_model_and_another_seed_another(name: str) -> None:
    one, same, other = (build(tiny_config(name), every_input(), seed) for seed in (4, 4, 5))
    assert torch.equal(scores(one.eval(), ROWS, [4] * 3), scores(same.eval(), ROWS, [4] * 3))
    if name in TRAINED:
        assert not torch.equal(scores(one, ROWS, [4] * 3), scores(other.eval(), ROWS, [4] * 3))


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_of_a_model_moves_to_its_device(name: str) -> None:
    whitened = [{"whiten": 4}] if "whiten" in MODELS[name].Config.model_fields else []
    for changes in [{}, *whitened]:
        model = make_model(name, **changes).to("meta")
        stay = {key for module in model.modules() for key, value in vars(module).items() if isinstance(value, Tensor)}
        assert stay <= {"_embeddings"}  # which may be mapped from a file


def trained(name: str, dataset: Dataset, epochs: int, **changes: Any) -> Model:
    """The model, trained on the data set if it has weights."""
    model = build(tiny_config(name, dim=16, inner_dim=32, max_history=12, **changes), training_inputs(dataset), seed=1)
    settings = FinetuneSettings(
        epochs=epochs,
        learning_rate=1e-2,
        batch_pairs=128,
        select="recall@5",
        patience=50,
        validate_every=max(1, epochs),
    )
    if name in TRAINED:
        finetune(model, dataset, settings, TrainerOptions(seed=2, device=CPU))
    return model


CYCLE = cycle_dataset(users=120, n_items=30)
"""Item i + 1 follows item i for every user."""


@pytest.mark.parametrize("name", TRAINED)
def test_training_with_a_seed_is_bit_identical_whatever_the_global_random_state(name: str) -> None:
    runs = []
    for state in (1, 2):
        torch.manual_seed(state)
        runs.append(weights_of(trained(name, CYCLE, epochs=1, dropout=0.3)))
    assert all(torch.equal(runs[0][weight], runs[1][weight]) for weight in runs[0])


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_a_model_learns_a_planted_order(name: str) -> None:
    assert evaluate(trained(name, CYCLE, epochs=30), CYCLE, "test")["recall@5"] > 0.9
    assert evaluate(trained("popularity", CYCLE, 0), CYCLE, "test")["recall@5"] < 0.5


def communities() -> Dataset:
    """Five groups of users, who interact with the six items of their group in any order."""
    rng = np.random.default_rng(0)
    return make_dataset([(6 * (user % 5) + rng.permutation(6)).tolist() for user in range(100)], n_items=30)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "popularity"])
def test_a_model_learns_which_items_go_together(name: str) -> None:
    dataset = communities()
    assert evaluate(trained(name, dataset, epochs=20), dataset, "test")["recall@10"] > 0.95
    assert evaluate(trained("popularity", dataset, 0), dataset, "test")["recall@10"] < 0.5


# The same model over other items, users and categories

OTHERS = {
    "items": [14, 3, 0, 13, 5, 1, 7, 2, 12, 4, 6, 9, 8, 11, 10],
    "users": [5, 2, 0, 3, 1, 4],
    "categories": [2, 0, 3, 1],
}
"""The rows of the new model: numbers of the trained one, and from its size on what is new."""


def common_rows(inputs: Inputs) -> dict[RowKind, Common]:
    sizes = {"items": inputs.n_items, "users": inputs.n_users, "categories": inputs.n_categories}
    return {
        kind: Common.of([str(n) for n in range(sizes[kind])], [str(n) for n in numbers])  # type: ignore[misc]
        for kind, numbers in OTHERS.items()
    }


def renumbered(inputs: Inputs) -> Inputs:
    """The same inputs in another order, with new items, users and categories; these have no interactions."""
    items, users, categories = OTHERS.values()
    assert inputs.categories is not None

    def rows(table: Ragged, order: list[int], values_of: list[int] | None = None) -> Ragged:
        """`order` of the rows; a new one is a copy of row 0, if it has vectors, else empty."""
        found = [table[n] if n < len(table) else table[0] if values_of is None else table.values[:0] for n in order]
        values = torch.cat(found)
        if values_of is not None:
            values = torch.tensor([values_of.index(int(value)) for value in values], dtype=torch.int64)
        return Ragged(values, torch.tensor([0, *map(len, found)]).cumsum(0))

    return replace(
        inputs,
        n_items=len(items),
        n_users=len(users),
        n_categories=len(categories),
        histories=rows(inputs.histories, users, items),
        features={name: rows(table, items) for name, table in inputs.features.items()},
        categories=rows(inputs.categories, items, categories),
    )


@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_new_items_and_users_scores_the_others_as_before(name: str) -> None:
    """All have other numbers, and the new items other content: what the rows of a weight belong to is declared."""
    inputs, items, users = every_input(), OTHERS["items"], OTHERS["users"]
    model, other = make_model(name, inputs).eval(), build(tiny_config(name), renumbered(inputs), seed=5).eval()
    carry_over(dict(model.named_parameters()), other, common_rows(inputs), zero_new=True)
    rows = torch.tensor([[items.index(int(item)) for item in row] for row in ROWS])
    number = torch.tensor([items.index(item) for item in range(N_ITEMS)])
    before = scores(model, ROWS, [4, 4, 4], torch.tensor([0, 1, 3]))
    after = scores(other, rows, [4, 4, 4], torch.tensor([users.index(user) for user in (0, 1, 3)]))
    torch.testing.assert_close(after[:, number], before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TRAINED)
def test_new_rows_are_zero_or_as_initialised_and_those_of_what_left_are_dropped(name: str) -> None:
    inputs = every_input()
    trained = dict(make_model(name, inputs).named_parameters())
    few = replace(inputs, n_users=2, histories=as_ragged(HISTORIES[:2]))
    for zero_new in (True, False):
        other = build(tiny_config(name), renumbered(inputs), seed=5)
        initial = weights_of(other)
        carry_over(trained, other, common_rows(inputs), zero_new=zero_new)
        for weight_name, weight in other.named_parameters():
            if (kind := other.row_kind(weight_name)) is None:
                continue
            size = len(trained[weight_name])
            for row, number in enumerate(OTHERS[kind]):
                new = torch.zeros_like(weight[row]) if zero_new else initial[weight_name][row]
                assert torch.equal(weight[row], trained[weight_name][number] if number < size else new)
        fewer = build(tiny_config(name), few, seed=5)
        same = {
            kind: Common(torch.arange(n), torch.arange(n))
            for kind, n in (("items", N_ITEMS), ("users", 2), ("categories", 3))
        }
        carry_over(trained, fewer, same, zero_new=zero_new)  # type: ignore[arg-type]
        for weight_name, weight in fewer.named_parameters():
            assert torch.equal(weight, trained[weight_name][: len(weight)] if weight.dim() else trained[weight_name])


@pytest.mark.parametrize("name", TRAINED)
def test_a_model_trains_on_from_carried_weights(name: str) -> None:
    """New items and users must not stop it: a gradient through the length of a row of 0 would be enormous."""
    inputs = every_input()
    other = build(tiny_config(name), renumbered(inputs), seed=5)
    trained = dict(make_model(name, inputs).named_parameters())
    carry_over(trained, other, common_rows(inputs), zero_new=type(other).zero_new_rows)
    loss = loss_of_training(other)
    loss.backward()
    gradients = [weight.grad for weight in other.parameters() if weight.grad is not None]
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e4


@pytest.mark.parametrize("name", [name for name in MODELS if issubclass(MODELS[name], GraphModel)])
def test_a_user_without_training_items_is_scored_by_the_history(name: str) -> None:
    histories = [HISTORIES[0], [], *HISTORIES[2:]]
    model = make_model(name, every_input(histories=as_ragged(histories))).eval()
    lengths = [4, 4, 4]
    by_user, by_history = scores(model, ROWS, lengths, torch.tensor([0, 1, 2])), scores(model, ROWS, lengths)
    torch.testing.assert_close(by_user[1], by_history[1])
    assert not torch.allclose(by_user[0], by_history[0])
