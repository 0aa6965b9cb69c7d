"""Both stages on small data: the two kinds of batches agree, planted patterns are found."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from builders import (
    cycle_dataset,
    finetune_loss,
    generator,
    make_batch,
    make_dataset,
    make_msm4sr,
    make_popularity,
    make_sasrec,
    pretrain_loss,
    ragged,
    random_sequences,
    sampled_finetune_loss,
)
from torch import Tensor

from msm4sr.data.batches import Batch, epoch_batches
from msm4sr.data.dataset import Dataset, training_histories
from msm4sr.errors import InputError
from msm4sr.evaluation.evaluate import evaluate
from msm4sr.models.base import Inputs, Scorer
from msm4sr.models.baselines.sasrec import SASRec, SASRecConfig
from msm4sr.models.msm4sr import MSM4SR, MSM4SRConfig
from msm4sr.ragged import Ragged
from msm4sr.training.checkpoint import weights_of
from msm4sr.training.device import Device
from msm4sr.training.settings import FinetuneSettings, PretrainSettings
from msm4sr.training.stages import finetune, pretrain
from msm4sr.training.tasks.next_item import stratified_log_weights
from msm4sr.training.trainer import TrainerOptions

CPU = Device(accelerator="cpu")
N_ITEMS = 12
MAKERS = {"sasrec": make_sasrec, "msm4sr": make_msm4sr}


def one_batch(sequences: list[list[int]], pairs: Literal["all", "last"], max_history: int = 6) -> Batch:
    """Everything in one batch, nothing dropped."""
    batches = epoch_batches(
        ragged(sequences), max_history=max_history, batch_pairs=10_000, pairs=pairs, rng=np.random.default_rng(0)
    )
    (batch,) = batches
    return batch


CYCLE = cycle_dataset(users=120, n_items=30)
QUICK: dict[str, Any] = {"learning_rate": 1e-2, "batch_pairs": 128, "select": "recall@5", "patience": 50}


# Two kinds of batches


@pytest.mark.parametrize("name", MAKERS)
def test_both_kinds_of_batches_score_a_prefix_the_same(name: str) -> None:
    model = MAKERS[name]()
    sequences = [[10, 1, 5, 0, 7], [2, 3, 4], [6, 8, 9, 11, 1, 3, 2]]  # no prefix twice
    scores: list[dict[tuple[int, ...], Tensor]] = []
    for pairs in ("all", "last"):
        batch = one_batch(sequences, pairs)  # type: ignore[arg-type]
        catalogue = model.encode_items()
        every = model.encode_histories(batch.items, catalogue) @ model.scoring_vectors(catalogue).T
        scores.append(
            {
                (*batch.items[row, : slot + 1].tolist(), int(batch.targets[row, slot])): every[row, slot].detach()
                for row, slot in batch.mask.nonzero().tolist()
            }
        )
    assert scores[0].keys() == scores[1].keys()
    assert len(scores[0]) == 4 + 2 + 6
    for prefix in scores[0]:
        torch.testing.assert_close(scores[0][prefix], scores[1][prefix], rtol=1e-4, atol=1e-4)


def losses_and_gradients(model: Scorer, loss: Tensor) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("stage", ["sasrec", "msm4sr", "pretrain"])
def test_both_kinds_of_batches_have_the_same_loss_and_gradients(stage: str) -> None:
    sequences = random_sequences(10, N_ITEMS, longest=7)
    model = make_sasrec() if stage == "sasrec" else make_msm4sr()
    results = []
    for pairs in ("all", "last"):
        batch = one_batch(sequences, pairs)  # type: ignore[arg-type]
        if stage == "pretrain":
            loss = pretrain_loss(model, batch, PretrainSettings(mixup=0.0, cmcl_weight=0.5), generator())  # type: ignore[arg-type]
        else:
            loss = finetune_loss(model, batch)  # type: ignore[arg-type]
        results.append(losses_and_gradients(model, loss))
    (all_loss, all_gradients), (last_loss, last_gradients) = results
    assert all_loss == pytest.approx(last_loss, rel=1e-4)
    assert all_gradients.keys() == last_gradients.keys()
    for name, gradient in all_gradients.items():
        torch.testing.assert_close(gradient, last_gradients[name], rtol=1e-3, atol=1e-4, msg=name)


# Sampled candidates


def uniform(n_items: int) -> Tensor:
    return torch.full((n_items,), 1 / n_items)


@pytest.mark.parametrize("name", MAKERS)
def test_a_sample_of_all_items_has_the_loss_and_the_gradients_of_all_items(name: str) -> None:
    model, batch = MAKERS[name](), one_batch(random_sequences(10, N_ITEMS, longest=7), "all")
    full, gradients = losses_and_gradients(model, finetune_loss(model, batch))
    shuffled = torch.randperm(N_ITEMS, generator=generator())
    loss, sampled = losses_and_gradients(model, sampled_finetune_loss(model, batch, shuffled, uniform(N_ITEMS)))
    assert loss == pytest.approx(full, rel=1e-5)
    assert gradients.keys() == sampled.keys()
    for weight, gradient in gradients.items():
        torch.testing.assert_close(sampled[weight], gradient, rtol=1e-4, atol=1e-5, msg=weight)


def test_the_sampled_loss_approaches_the_full_one_with_more_samples() -> None:
    model = make_sasrec(n_items=200)
    batch = one_batch(random_sequences(10, 200, longest=7), "all")
    full, draw = finetune_loss(model, batch).item(), generator()
    errors = []
    for size in (10, 40, 160, 200):
        samples = (torch.randperm(200, generator=draw)[:size] for _ in range(40))
        losses = [sampled_finetune_loss(model, batch, sample, uniform(200)).item() for sample in samples]
        errors.append(np.mean(np.abs(np.array(losses) - full)))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[3] < 1e-5


@pytest.mark.parametrize("probabilities", [[1 / 6] * 6, [0.3, 0.05, 0.2, 0.15, 0.1, 0.2]])
def test_the_denominator_over_candidates_is_the_full_one_in_expectation(probabilities: list[float]) -> None:
    """Over all draws of which some are outside of the batch: items 1 and 3 of 6 are its own."""
    scores, own, every = torch.randn(6, generator=generator()).double().exp(), [1, 3], torch.tensor(probabilities)
    mean, total = 0.0, 0.0
    for draws in itertools.product(range(6), repeat=3):
        if set(draws) <= set(own):
            continue
        chance = math.prod(probabilities[item] for item in draws)
        needed, place = torch.unique(torch.tensor([*own, *draws]), return_inverse=True)
        weights = stratified_log_weights(place[:2], place[2:], every[needed]).double().exp()
        assert weights[place[:2]].tolist() == [1, 1]
        mean, total = mean + chance * float((scores[needed] * weights).sum()), total + chance
    assert mean / total == pytest.approx(float(scores.sum()), rel=1e-5)


def test_only_items_that_the_step_needs_are_encoded() -> None:
    model, batch = make_msm4sr(n_items=50), make_batch([[1, 2, 3], [4, 2]])
    asked: list[list[int]] = []
    encode = model.encode_content
    model.encode_content = lambda a, items, fill: asked.append(items.numbers.tolist()) or encode(a, items, fill)  # type: ignore
    sampled_finetune_loss(model, batch, torch.tensor([7, 3]), uniform(50))
    assert asked == [[0, 1, 2, 3, 4, 7]] * 2  # 0 pads the shorter history


def test_candidates_are_sampled_by_option_or_over_two_thousand_items() -> None:
    assert FinetuneSettings().samples_of(2000) is None
    assert FinetuneSettings().samples_of(2001) == 1536
    assert FinetuneSettings(candidates="all").samples_of(10**6) is None
    assert FinetuneSettings(candidates="sampled", samples=50).samples_of(30) == 50


def test_sasrec_learns_a_cycle_from_samples() -> None:
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(dim=16, inner_dim=32, max_history=12), Inputs(CYCLE.n_items))
    finetune(
        model, CYCLE, FinetuneSettings(epochs=15, candidates="sampled", samples=8, **QUICK), TrainerOptions(device=CPU)
    )
    assert evaluate(model, CYCLE, "test")["recall@5"] > 0.95


# Complete stages

SMALL = make_dataset(random_sequences(40, N_ITEMS, longest=9), N_ITEMS)
STAGES: dict[str, tuple[Callable[[], Scorer], Callable[..., Any], Any]] = {
    "pretrain": (lambda: make_msm4sr(dropout=0.3), pretrain, PretrainSettings(epochs=2, batch_pairs=32)),
    "finetune": (lambda: make_msm4sr(dropout=0.3), finetune, FinetuneSettings(epochs=2, batch_pairs=32)),
    "finetune sasrec": (lambda: make_sasrec(dropout=0.3), finetune, FinetuneSettings(epochs=2, batch_pairs=32)),
}


def run_stage(name: str, seed: int = 0, global_seed: int = 0, **changes: Any) -> tuple[Scorer, list[float]]:
    make, train, settings = STAGES[name]
    model = make()
    torch.manual_seed(global_seed)
    records = train(model, SMALL, settings.model_copy(update=changes), TrainerOptions(seed=seed, device=CPU))
    return model, [r.loss for r in records]


@pytest.mark.parametrize("stage", STAGES)
def test_a_seed_makes_the_same_model_whatever_the_global_random_state(stage: str) -> None:
    (one, losses), (again, losses_again), (_, other) = (
        run_stage(stage, seed=3, global_seed=1),
        run_stage(stage, seed=3, global_seed=2),
        run_stage(stage, seed=4, global_seed=1),
    )
    assert losses == losses_again
    assert losses != other
    weights = weights_of(again)
    assert all(torch.equal(weights[name], weight) for name, weight in weights_of(one).items())


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_leaves_the_global_random_state_as_it_was(stage: str) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    run_stage(stage, global_seed=7)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("pairs", ["all", "last"])
def test_a_stage_lowers_its_loss(stage: str, pairs: str) -> None:
    _, losses = run_stage(stage, pairs=pairs, epochs=5, learning_rate=5e-3)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("stage", STAGES)
def test_mixed_precision_trains_to_about_the_same_loss(stage: str) -> None:
    make, train, settings = STAGES[stage]
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        device = Device(accelerator="cpu", precision=precision)  # type: ignore[arg-type]
        records = train(make(), SMALL, settings, TrainerOptions(device=device))
        losses.append([r.loss for r in records])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]


def test_pretraining_leaves_the_id_embedding_and_fine_tuning_the_projections() -> None:
    first = weights_of(make_msm4sr(dropout=0.3))
    for stage, untouched in (("pretrain", "item_embedding."), ("finetune", "projections.")):
        trained = weights_of(run_stage(stage)[0])
        for name, weight in trained.items():
            assert torch.equal(weight, first[name]) == name.startswith(untouched), name


@pytest.mark.parametrize("setting", [{"drop": 0.9}, {"mixup": 0.5}, {"cmcl_weight": 0.5}, {"negatives": "within"}])
def test_each_setting_of_pretraining_reaches_it(setting: dict[str, Any]) -> None:
    plain: dict[str, Any] = {"drop": 0.0, "mixup": 0.0, "cmcl_weight": 0.1, "epochs": 1}
    losses = [
        pretrain(make_msm4sr(), SMALL, PretrainSettings(**(plain | changed)), TrainerOptions(device=CPU))[0].loss
        for changed in ({}, {}, setting)
    ]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_validation_during_training_sees_no_test_item() -> None:
    """The same but for every user's last item: training and validation must not notice."""
    changed = make_dataset([[*SMALL.histories[u][:-1].tolist(), 0] for u in range(SMALL.n_users)], N_ITEMS)
    records = [
        finetune(make_sasrec(), data, FinetuneSettings(epochs=2, batch_pairs=32), TrainerOptions(device=CPU))
        for data in (SMALL, changed)
    ]
    assert [r.loss for r in records[0]] == [r.loss for r in records[1]]
    assert [r.validation for r in records[0]] == [r.validation for r in records[1]]
    assert evaluate(make_sasrec(), SMALL, "test") != evaluate(make_sasrec(), changed, "test")


@pytest.mark.parametrize("projections", ["pretrain", "none"])
def test_the_content_matcher_scores_by_the_cosines_of_equation_7(projections: str) -> None:
    model = make_msm4sr(modalities=("text", "visual", "audio"), projections=projections).eval()
    matcher, history = model.pretrained_scorer(), torch.tensor([[1, 5, 0, 7]])
    with torch.no_grad():
        catalogue = matcher.encode_items()
        ours = matcher.scoring_vectors(catalogue) @ matcher.encode_histories(history, catalogue)[0, -1]
        expected = torch.zeros(N_ITEMS)
        for a in model.modalities:
            z = model.encode_content(a)
            for b in model.modalities if model.projections else (a,):
                hidden = model.transformer(model.encode_content(b)[history])[0, -1]
                view = model.projections[a](hidden) if model.projections else hidden
                expected += torch.stack([torch.cosine_similarity(view, z[i], dim=0) for i in range(N_ITEMS)])
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


# Planted patterns


def popularity(dataset: Dataset) -> float:
    counts = np.bincount(training_histories(dataset).values, minlength=dataset.n_items)
    return evaluate(make_popularity(counts.tolist()), dataset, "test")["recall@5"]


@pytest.mark.parametrize("pairs", ["all", "last"])
def test_sasrec_learns_a_cycle(pairs: str) -> None:
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(dim=16, inner_dim=32, max_history=12), Inputs(CYCLE.n_items))
    finetune(model, CYCLE, FinetuneSettings(epochs=15, pairs=pairs, **QUICK), TrainerOptions(device=CPU))  # type: ignore[arg-type]
    assert evaluate(model, CYCLE, "test")["recall@5"] > 0.95
    assert popularity(CYCLE) < 0.5


def chain_features(n_items: int, dim: int = 6, ordered: bool = True) -> Ragged:
    """Item i's content is its place on a circle or, not `ordered`, one vector for all items."""
    angle = torch.arange(n_items) * 2 * torch.pi / n_items
    waves = [f(k * angle) for k in range(1, dim // 2 + 1) for f in (torch.sin, torch.cos)]
    vectors = torch.stack(waves, dim=1) if ordered else torch.ones(n_items, dim)
    return Ragged(vectors, torch.arange(n_items + 1))


def content_model(text: bool, visual: bool, **changes: Any) -> MSM4SR:
    torch.manual_seed(0)
    config: dict[str, Any] = {"dim": 16, "inner_dim": 32, "experts": 4, "max_history": 12, "dropout": 0.1}
    features = {
        "text": chain_features(CYCLE.n_items, ordered=text),
        "visual": chain_features(CYCLE.n_items, ordered=visual),
    }
    return MSM4SR(MSM4SRConfig(**(config | changes)), Inputs(CYCLE.n_items, features=features))


def pretrained_recall(model: MSM4SR) -> float:
    pretrain(model, CYCLE, PretrainSettings(epochs=12, **QUICK), TrainerOptions(device=CPU))
    return evaluate(model.pretrained_scorer(), CYCLE, "test")["recall@5"]


def test_pretraining_finds_a_chain_that_content_shows_without_any_id() -> None:
    assert pretrained_recall(content_model(text=True, visual=True)) > 0.8


def test_a_chain_that_only_images_show_is_found_through_them_and_lost_without_them() -> None:
    assert pretrained_recall(content_model(text=False, visual=True)) > 0.8
    assert pretrained_recall(content_model(text=False, visual=False)) < 0.5


def test_fine_tuning_after_pretraining_learns_the_chain() -> None:
    model = content_model(text=True, visual=True)
    pretrain(model, CYCLE, PretrainSettings(epochs=4, **QUICK), TrainerOptions(device=CPU))
    finetune(model, CYCLE, FinetuneSettings(epochs=8, **QUICK), TrainerOptions(device=CPU))
    assert evaluate(model, CYCLE, "test")["recall@5"] > 0.95


# Determinism


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_seed_gives_bit_identical_weights_on_two_threads(stage: str) -> None:
    dataset = make_dataset(random_sequences(users=60, n_items=40, longest=30), n_items=40)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        trained = []
        for _ in range(2):
            # 600 pairs of width 64: more than torch sums on one thread
            model = make_msm4sr(n_items=40, dim=64, max_history=30)
            if stage == "pretrain":
                pretrain(model, dataset, PretrainSettings(epochs=1, batch_pairs=600), TrainerOptions(device=CPU))
            else:
                finetune(model, dataset, FinetuneSettings(epochs=1, batch_pairs=600), TrainerOptions(device=CPU))
            trained.append(weights_of(model))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


@pytest.mark.parametrize("modalities", [("text",), ("text", "visual")])
def test_pre_training_without_any_loss_is_refused(modalities: tuple[str, ...]) -> None:
    model = make_msm4sr(modalities=modalities)
    weight = 0.01 if len(modalities) == 1 else 0.0  # of one modality there is no contrast, whatever its weight
    with pytest.raises(InputError, match=r"pretrain\.nip_weight is 0"):
        pretrain(
            model, cycle_dataset(4, 12), PretrainSettings(nip_weight=0, cmcl_weight=weight), TrainerOptions(device=CPU)
        )
