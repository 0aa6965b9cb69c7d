"""S3-Rec: each task of its pre-training against its formula, the masking and sampling, and fine-tuning after it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from builders import (
    CATEGORIES,
    N_ITEMS,
    cycle_dataset,
    every_input,
    finetune_loss,
    generator,
    make_batch,
    make_model,
    s3rec_loss,
    tiny_config,
)
from torch import Tensor

from msm4sr.errors import InputError
from msm4sr.evaluation.evaluate import evaluate
from msm4sr.models.base import Inputs, empty_rows
from msm4sr.models.baselines.s3rec import S3Rec
from msm4sr.models.registry import build
from msm4sr.ragged import Ragged
from msm4sr.training.checkpoint import weights_of
from msm4sr.training.device import Device
from msm4sr.training.negatives import draw_absent
from msm4sr.training.settings import FinetuneSettings, PretrainSettings
from msm4sr.training.stages import finetune, pretrain
from msm4sr.training.tasks.mutual_information import (
    attributes,
    complete_windows,
    draw_segments,
    masked_items,
    segment_of,
)
from msm4sr.training.trainer import TrainerOptions

CPU = Device(accelerator="cpu")
SEQUENCES = [[1, 5, 0, 7, 2], [3, 4, 11, 7], [6, 8], [9, 10, 2, 0, 1]]


def make_s3rec(inputs: Inputs | None = None, **changes: Any) -> S3Rec:
    model = make_model("s3rec", inputs, **changes)
    assert isinstance(model, S3Rec)
    return model.eval()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def product(model: S3Rec, task: str, context: Tensor, other: Tensor) -> float:
    """f = sigmoid(c W e) of a task."""
    return sigmoid(float(sum(c * v for c, v in zip(model.maps[task].weight @ context, other, strict=True)).detach()))


def hidden(count: int) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(1))


# The tasks


@pytest.mark.parametrize("task", ["aap", "map"])
def test_an_attribute_task_classifies_every_category_at_every_position(task: str) -> None:
    model, context, items = make_s3rec(), hidden(4), [0, 2, 4, 1]  # two categories, none, three, one
    expected = 0.0
    for vector, item in zip(context, items, strict=True):
        for category in range(3):
            chance = product(model, task, vector, model.category_embedding.weight[category])
            expected -= math.log(chance if category in CATEGORIES[item] else 1 - chance)
    assert float(attributes(model, task, context, torch.tensor(items)).detach()) == pytest.approx(expected, rel=1e-4)


def test_masked_item_prediction_contrasts_the_item_with_another() -> None:
    model, context, items, others = make_s3rec(), hidden(3), [4, 4, 7], [1, 0, 2]
    expected = 0.0
    for vector, item, other in zip(context, items, others, strict=True):
        own, wrong = (product(model, "mip", vector, model.item_embedding.weight[i]) for i in (item, other))
        expected -= math.log(math.exp(own) / (math.exp(own) + math.exp(wrong)))
    value = masked_items(model, context, torch.tensor(items), torch.tensor(others))
    assert float(value.detach()) == pytest.approx(expected, rel=1e-4)


def test_segment_prediction_contrasts_the_segment_with_another() -> None:
    model = make_s3rec()
    contexts, segments, others = hidden(9).chunk(3)
    expected = 0.0
    for context, segment, other in zip(contexts, segments, others, strict=True):
        own, wrong = product(model, "sp", context, segment), product(model, "sp", context, other)
        expected -= math.log(math.exp(own) / (math.exp(own) + math.exp(wrong)))
    assert float(segment_of(model, contexts, segments, others).detach()) == pytest.approx(expected, rel=1e-4)


def encoded_slowly(model: S3Rec, items: list[int], masked: list[bool]) -> Tensor:
    """F of one history alone, without padding: [L, D]."""
    vectors = [model.mask if hide else model.item_embedding.weight[i] for i, hide in zip(items, masked, strict=True)]
    return model.transformer(torch.stack(vectors)[None], torch.ones(1, len(items), dtype=torch.bool))[0]


WEIGHTS = {"aap": 0.3, "mip": 0.7, "map": 0.5, "sp": 0.9}


@pytest.mark.parametrize("only", [*WEIGHTS, None])
def test_the_loss_is_the_weighted_sum_of_the_tasks_history_by_history(only: str | None) -> None:
    weights = {task: weight if only in (task, None) else 0.0 for task, weight in WEIGHTS.items()}
    model = make_s3rec(mask_probability=0.4, **{f"{task}_weight": weight for task, weight in weights.items()})
    batch = make_batch(SEQUENCES)
    ours = float(s3rec_loss(model, batch, generator(5)).detach())

    histories, draws = complete_windows(batch), generator(5)  # the same draws, in the same order
    masked = histories.real & (torch.rand(histories.items.shape, generator=draws) < 0.4)
    drawn_inside, drawn_other = draw_segments(histories, draws)
    absent = draw_absent(histories.items, histories.real, N_ITEMS, draws)
    assert 0 < masked.sum() < histories.real.sum()
    total = 0.0
    with torch.no_grad():
        for row, items in enumerate(SEQUENCES):
            hide, inside = masked[row].tolist()[: len(items)], drawn_inside[row].tolist()[: len(items)]
            for slot, vector in enumerate(encoded_slowly(model, items, hide)):
                item = torch.tensor(items[slot : slot + 1])
                if hide[slot]:
                    total += weights["mip"] * float(
                        masked_items(model, vector[None], item, absent[row, slot : slot + 1])
                    )
                task = "map" if hide[slot] else "aap"
                total += weights[task] * float(attributes(model, task, vector[None], item))
            outside = [not within for within in inside]
            context = encoded_slowly(model, items, inside)[-1:]
            segment = encoded_slowly(model, items, outside)[-1:]
            other = encoded_slowly(model, drawn_other[row].tolist()[: len(items)], outside)[-1:]
            total += weights["sp"] * float(segment_of(model, context, segment, other))
    assert ours == pytest.approx(total / sum(map(len, SEQUENCES)), rel=1e-4)
    assert total > 0


# Masking and sampling


def test_a_batch_of_pairs_becomes_the_histories_that_it_comes_from() -> None:
    histories = complete_windows(make_batch(SEQUENCES))
    for row, items in enumerate(SEQUENCES):
        assert histories.items[row][histories.real[row]].tolist() == items
        assert histories.real[row].tolist() == [True] * len(items) + [False] * (5 - len(items))


def test_a_segment_has_at_most_half_of_the_history_and_the_other_one_is_from_the_batch() -> None:
    histories = complete_windows(make_batch(SEQUENCES))
    starts, lengths = set(), set()
    for seed in range(200):
        drawn_inside, drawn_other = draw_segments(histories, generator(seed))
        for row, items in enumerate(SEQUENCES):
            places = drawn_inside[row].nonzero().flatten().tolist()
            assert places == list(range(places[0], places[-1] + 1))
            assert 1 <= len(places) <= len(items) // 2
            assert places[-1] < len(items)
            drawn = drawn_other[row][places].tolist()
            assert str(drawn)[1:-1] in str([item for sequence in SEQUENCES for item in sequence])
            if row == 0:
                starts.add(places[0])
                lengths.add(len(places))
    assert starts == {0, 1, 2, 3, 4}  # of five items a segment has one or two
    assert lengths == {1, 2}


def test_no_position_attends_to_a_masked_item() -> None:
    model = make_s3rec()
    rows, real = torch.tensor([[1, 5, 0, 7], [1, 5, 3, 7]]), torch.ones(2, 4, dtype=torch.bool)
    masked = torch.tensor([[False, False, True, False]] * 2)
    with torch.no_grad():
        one, other = model.encode_bidirectional(rows, masked, real)
        torch.testing.assert_close(one, other)
        one, other = model.encode_bidirectional(rows, ~masked, real)
        assert (one - other).abs().min(dim=1).values.max() > 1e-4  # unmasked items are visible from both sides


# The stage


CYCLE = cycle_dataset(users=120, n_items=30)


WITH_CATEGORIES = Inputs(30, categories=Ragged(torch.arange(30) % 5, torch.arange(31)), n_categories=5)
WIDER: dict[str, Any] = {"dim": 16, "inner_dim": 32, "max_history": 12}


def of_the_cycle(**changes: Any) -> S3Rec:
    return make_s3rec(WITH_CATEGORIES, **(WIDER | changes))


QUICK: dict[str, Any] = {"learning_rate": 1e-2, "batch_pairs": 128, "select": "recall@5", "validate_every": 10}


@pytest.mark.slow
def test_pretraining_learns_a_planted_order_before_any_fine_tuning() -> None:
    """Slowly, since gradients pass two sigmoids."""
    model = build(tiny_config("s3rec", **WIDER), WITH_CATEGORIES, seed=1)
    assert isinstance(model, S3Rec)
    assert evaluate(model.pretrained_scorer(), CYCLE, "test")["recall@10"] < 0.45
    pretrain(model, CYCLE, PretrainSettings(epochs=25, **(QUICK | {"batch_pairs": 64})), TrainerOptions(device=CPU))
    assert evaluate(model.pretrained_scorer(), CYCLE, "test")["recall@10"] > 0.6


def test_fine_tuning_starts_from_it_and_does_not_train_the_pretraining_weights() -> None:
    model = of_the_cycle()
    fresh = weights_of(model)
    pretrain(model, CYCLE, PretrainSettings(epochs=1, **QUICK), TrainerOptions(device=CPU))
    pretrained = weights_of(model)
    assert not any(torch.equal(weight, fresh[name]) for name, weight in pretrained.items())
    finetune(model, CYCLE, FinetuneSettings(epochs=1, **QUICK), TrainerOptions(device=CPU))
    for name, weight in weights_of(model).items():
        own = name.startswith(("maps.", "category_embedding.", "mask"))
        assert torch.equal(weight, pretrained[name]) == own, name


def test_the_pretrained_scorer_reads_the_mask_behind_a_history_whatever_the_padding() -> None:
    model = make_s3rec()
    ranker = model.pretrained_scorer()
    assert ranker.max_history == model.max_history - 1
    with torch.no_grad():
        catalogue = ranker.encode_items()
        keys = ranker.scoring_vectors(catalogue)
        ours = ranker.score(torch.tensor([[1, 5, 0, 9], [3, 4, 2, 8]]), torch.tensor([3, 2]), catalogue, keys)
        for row, items in enumerate(([1, 5, 0], [3, 4])):
            vector = encoded_slowly(model, [*items, 0], [False] * len(items) + [True])[-1]
            expected = model.item_embedding.weight @ (model.maps["mip"].weight @ vector)
            torch.testing.assert_close(ours[row], expected, rtol=1e-4, atol=1e-5)


def test_without_categories_items_and_segments_remain() -> None:
    nothing = empty_rows(N_ITEMS)
    model = make_s3rec(every_input(categories=nothing, n_categories=0))
    assert list(model.maps) == ["mip", "sp"]
    loss = s3rec_loss(model, make_batch(SEQUENCES), generator())
    (loss + finetune_loss(model, make_batch(SEQUENCES))).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters())


def test_pretraining_without_any_task_is_refused() -> None:
    model = of_the_cycle(aap_weight=0, mip_weight=0, map_weight=0, sp_weight=0)
    with pytest.raises(InputError, match=r"model\.aap_weight and .* are 0"):
        pretrain(model, CYCLE, PretrainSettings(epochs=1), TrainerOptions(device=CPU))


def test_pretraining_on_prefixes_is_refused() -> None:
    with pytest.raises(InputError, match=r"pretrain\.pairs=last: S3-Rec is pre-trained on windows of histories"):
        pretrain(of_the_cycle(), CYCLE, PretrainSettings(epochs=1, pairs="last"), TrainerOptions(device=CPU))
