"""The method's model: what is trained in which stage, equation 12, any number of modalities, storing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import (
    enlarge,
    finetune_loss,
    generator,
    make_batch,
    make_dataset,
    make_features,
    make_msm4sr,
    make_rows,
    pretrain_loss,
)
from pydantic import ValidationError
from torch import Tensor

from msm4sr.errors import InputError
from msm4sr.experiments.settings import resolve_settings
from msm4sr.experiments.stages import build_model
from msm4sr.features.store import Features
from msm4sr.models.base import Inputs
from msm4sr.models.msm4sr import MSM4SR, MSM4SRConfig
from msm4sr.ragged import Ragged
from msm4sr.training.settings import PretrainSettings
from msm4sr.training.tasks.multimodal_contrastive import Mixup, mix_up

N_ITEMS = 12
HISTORIES = [[1, 5, 0, 7, 2], [3, 4, 11, 7], [6, 8, 9, 10, 2], [0, 1]]  # 2 and 7 are a next item more than once
MODALITIES = [("text",), ("text", "visual"), ("text", "visual", "audio")]


def zero_gradient_names(model: MSM4SR, loss: Tensor, tiny: float = 1e-7) -> set[str]:
    """Names of weights that the loss does not reach: no gradient, or one of rounding errors."""
    loss.backward()
    return {name for name, weight in model.named_parameters() if weight.grad is None or weight.grad.abs().max() <= tiny}


def idle_biases(modalities: Iterable[str]) -> set[str]:
    """b1 and b2 of equation 3: a softmax does not see a constant, which is all that they are."""
    return {f"encoders.{a}.pooling.{part}.bias" for a in modalities for part in ("inner", "outer")}


def loss_of_pretraining(model: MSM4SR, seed: int = 0, **settings: Any) -> Tensor:
    return pretrain_loss(model, make_batch(HISTORIES), PretrainSettings(**settings), generator(seed))


# Gradients reach every trainable weight


@pytest.mark.parametrize("modalities", MODALITIES)
def test_pretraining_trains_everything_but_the_id_embedding(modalities: tuple[str, ...]) -> None:
    model = make_msm4sr(modalities=modalities)
    without = zero_gradient_names(model, loss_of_pretraining(model), tiny=1e-6)
    assert without == {"item_embedding.weight"} | idle_biases(modalities)


@pytest.mark.parametrize("modalities", MODALITIES)
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_fine_tuning_trains_everything_but_the_projections(modalities: tuple[str, ...], similarity: str) -> None:
    model = make_msm4sr(modalities=modalities, similarity=similarity)
    without = zero_gradient_names(model, finetune_loss(model, make_batch(HISTORIES)), tiny=1e-6)
    projections = {f"projections.{a}.{part}" for a in modalities for part in ("weight", "bias")}
    assert without == projections | idle_biases(modalities)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_the_biases_of_the_pooling_have_a_gradient_and_it_is_zero(stage: str) -> None:
    model = make_msm4sr()
    loss = loss_of_pretraining(model) if stage == "pretrain" else finetune_loss(model, make_batch(HISTORIES))
    loss.backward()
    for encoder in model.encoders.values():
        for bias in (encoder.pooling.inner.bias, encoder.pooling.outer.bias):
            assert bias.grad is not None
            assert bias.grad.abs().max() < 1e-6
        for weight in (encoder.pooling.inner.weight, encoder.pooling.outer.weight, encoder.missing):
            assert weight.grad.abs().max() > 1e-5


def test_the_features_are_frozen() -> None:
    model = make_msm4sr()
    assert not any(name.startswith("features") for name, _ in model.named_parameters())


# Equation 12


def scores_slowly(model: MSM4SR, history: list[int]) -> Tensor:
    """Item by item: sum over modalities of sim(h, F_i + E_i), h the encoding of the history.

    Or the mean over the modalities that the item has, or over all if it has none.
    """
    scores = torch.zeros(N_ITEMS)
    modalities = model.content_modalities
    has = [{a for a in modalities if model.content_rows(a).lengths[item] > 0} for item in range(N_ITEMS)]
    counted = [names or set(modalities) for names in has]
    for name in modalities:
        content = model.encode_content(name)
        embedding = model.config.id_scale * model.item_embedding.weight
        steps = [content[i] + embedding[i] if model.config.id_in_input else content[i] for i in history]
        hidden = model.transformer(torch.stack(steps)[None])[0, -1]
        for item in range(N_ITEMS):
            other = content[item] + embedding[item]
            product = sum(float(a) * float(b) for a, b in zip(hidden.detach(), other.detach(), strict=True))
            if model.config.similarity == "cosine":
                product /= math.sqrt(float(hidden @ hidden)) * math.sqrt(float(other @ other))
                product /= model.config.temperature
            if model.config.modality_scores == "mean":
                product = product / len(counted[item]) if name in counted[item] else 0.0
            scores[item] += product
    return scores


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("id_in_input", [False, True])
@pytest.mark.parametrize("score_with", [(), ("text",), ("visual",), ("visual", "text")])
@pytest.mark.parametrize("modality_scores", ["sum", "mean"])
@pytest.mark.parametrize("id_scale", [1.0, 4.0])
def test_scores_are_equation_12(
    similarity: str, id_in_input: bool, score_with: tuple[str, ...], modality_scores: str, id_scale: float
) -> None:
    settings = {"similarity": similarity, "id_in_input": id_in_input, "modality_scores": modality_scores}
    model = make_msm4sr(score_with=score_with, id_scale=id_scale, **settings).eval()
    trained = model.encode_items()  # with gradients, as in training
    with torch.no_grad():
        catalogue = model.encode_items()
        torch.testing.assert_close(trained, catalogue)
        for history in ([4], [1, 5, 0, 7, 2]):
            last = model.encode_histories(torch.tensor([history]), catalogue)[0, -1]
            ours = model.scoring_vectors(catalogue) @ last
            torch.testing.assert_close(ours, scores_slowly(model, history), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(model.score_parts(last, catalogue).sum(1), ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("modalities", MODALITIES)
def test_without_projections_and_with_biases_everything_else_is_trained_too(modalities: tuple[str, ...]) -> None:
    model = make_msm4sr(modalities=modalities, projections="none", expert_bias=True)
    names = {name for name, _ in model.named_parameters()}
    assert not any(name.startswith("projections") for name in names)
    assert {f"encoders.{a}.experts.weight.bias" for a in modalities} < names
    for loss, ids in ((loss_of_pretraining(model), {"item_embedding.weight"}), (None, set())):
        model.zero_grad()
        loss = finetune_loss(model, make_batch(HISTORIES)) if loss is None else loss
        assert zero_gradient_names(model, loss, tiny=1e-6) == ids | idle_biases(modalities)


def test_a_stored_model_whitens_as_before(tmp_path: Path) -> None:
    """New items are whitened by the catalogue that was trained on, not by themselves."""
    model = make_msm4sr(whiten=3).eval()
    model.save_pretrained(tmp_path)
    again = MSM4SR.from_pretrained(tmp_path)
    new = make_features(5, seed=3)
    with torch.no_grad():
        assert torch.equal(model.encode_items(), again.encode_items())
        assert torch.equal(model.encode_new_items(new), again.encode_new_items(new))
        alone = {a: Ragged(rows.values[:1], torch.tensor([0, 1])) for a, rows in new.items()}
        several = {a: Ragged(rows.values, torch.tensor([0, 1, len(rows.values)])) for a, rows in new.items()}
        torch.testing.assert_close(model.encode_new_items(alone)[0], model.encode_new_items(several)[0])


def test_a_modality_that_is_not_scored_changes_no_score() -> None:
    model = make_msm4sr(score_with=("text",)).eval()
    with torch.no_grad():
        before = model.scoring_vectors(model.encode_items())
        model.features["visual"].values.mul_(-3)
        assert torch.equal(before, model.scoring_vectors(model.encode_items()))
        model.features["text"].values.mul_(-3)
        assert not torch.allclose(before, model.scoring_vectors(model.encode_items()))


def test_fine_tuning_loss_is_the_mean_negative_log_of_the_softmax_over_all_items() -> None:
    model = make_msm4sr().eval()
    losses = []
    with torch.no_grad():
        for history in HISTORIES:
            for end in range(1, len(history)):
                losses.append(-scores_slowly(model, history[:end]).log_softmax(0)[history[end]])
        loss = finetune_loss(model, make_batch(HISTORIES))
    torch.testing.assert_close(loss, torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)


# Equation 11


def pretrain_loss_slowly(model: MSM4SR, weight: float, negatives: str) -> Tensor:
    """Equations 6 (or m = h), 7, 9 and 11 without mixup, every pair from its own prefix, no item shared by pairs."""
    pairs = [(h[:end], h[end]) for h in HISTORIES for end in range(1, len(h))]
    tau, modalities = model.config.temperature, model.modalities
    z = {a: model.encode_content(a) for a in modalities}
    h = {a: [model.transformer(z[a][prefix][None])[0, -1] for prefix, _ in pairs] for a in modalities}

    def f(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(torch.cosine_similarity(a, b, dim=0) / tau)

    total = torch.zeros(())
    for a in modalities:
        if model.projections:
            linear, views = model.projections[a], modalities
            m = {b: [linear.weight @ x + linear.bias for x in h[b]] for b in modalities}
        else:
            m, views = h, (a,)
        nip, cmcl = torch.zeros(()), torch.zeros(())
        for j, (_, own) in enumerate(pairs):
            others = [k for k, (_, item) in enumerate(pairs) if item != own]
            top = sum(f(m[b][j], z[a][own]) for b in views)
            bottom = top + sum(f(m[b][j], z[a][pairs[k][1]]) for k in others for b in views)
            nip -= torch.log(top / bottom)
            for b in modalities:
                if b != a and (model.projections or a < b):  # in the space of each, or once
                    for first, second in ((m[a], m[b]), (m[b], m[a])):
                        top = f(first[j], second[j])
                        bottom = top + sum(f(first[j], second[k]) for k in others)
                        anchor = first if negatives == "within" else second
                        bottom = bottom + sum(f(anchor[j], first[k]) for k in others)
                        cmcl -= torch.log(top / bottom) / 2 / (len(modalities) - 1)
        total += (nip + weight * cmcl) / len(pairs)
    return total


@pytest.mark.parametrize("modalities", MODALITIES)
@pytest.mark.parametrize(
    ("negatives", "released"), [("cross", False), ("within", False), ("cross", True), ("within", True)]
)
def test_pretraining_loss_is_equation_11_in_value_and_gradient(
    modalities: tuple[str, ...], negatives: str, released: bool
) -> None:
    """Three modalities: each contrast is the mean over the two others, so that lambda means the same."""
    changes: dict[str, Any] = {"projections": "none", "expert_bias": True} if released else {}
    model = make_msm4sr(modalities=modalities, temperature=0.5, **changes)
    loss = loss_of_pretraining(model, mixup=0.0, cmcl_weight=0.3, negatives=negatives)
    expected = pretrain_loss_slowly(model, 0.3, negatives)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    names, weights = zip(*model.named_parameters(), strict=True)
    ours, reference = (
        torch.autograd.grad(value, weights, allow_unused=True, materialize_grads=True) for value in (loss, expected)
    )
    for name, gradient, wanted in zip(names, ours, reference, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-4, msg=name)


def test_each_part_of_the_pretraining_loss_can_be_switched_off() -> None:
    model = make_msm4sr().eval()
    both, nip, cmcl = (
        float(loss_of_pretraining(model, mixup=0.0, nip_weight=a, cmcl_weight=b).detach())
        for a, b in ((1, 0.5), (1, 0), (0, 0.5))
    )
    assert both == pytest.approx(nip + cmcl, rel=1e-5)
    assert nip > 0.1
    assert cmcl > 0.1


def test_mixup_changes_the_pretraining_loss_and_is_drawn_by_the_generator() -> None:
    model = make_msm4sr().eval()
    one, again, other = (float(loss_of_pretraining(model, seed=s).detach()) for s in (0, 0, 1))
    assert one == again
    assert one != other
    calm = {float(loss_of_pretraining(model, seed=s, mixup=0.0).detach()) for s in (0, 1)}
    assert len(calm) == 1
    assert one not in calm


def test_padding_does_not_change_the_pretraining_loss() -> None:
    model = make_msm4sr().eval()
    batch = make_batch(HISTORIES)
    wider = make_batch([*HISTORIES, [0, 0, 0, 0, 0, 0]])
    wider.items, wider.targets, wider.mask = wider.items[:-1], wider.targets[:-1], wider.mask[:-1]
    assert wider.items.shape[1] > batch.items.shape[1]
    wider.items[~wider.mask] = 9
    settings = PretrainSettings(mixup=0.0)
    narrow_loss, wide_loss = (pretrain_loss(model, b, settings, generator()) for b in (batch, wider))
    torch.testing.assert_close(narrow_loss, wide_loss)


# Complementary mixup


def tagged(modalities: int, rows: int = 40, length: int = 50) -> Tensor:
    """Vectors that say where they come from: (modality, row, position)."""
    places = torch.meshgrid(*(torch.arange(n) for n in (modalities, rows, length)), indexing="ij")
    return torch.stack(places, dim=-1).float()


def mixed_up(inputs: Tensor, rho: float) -> Tensor:
    draws = Mixup.draw(len(inputs), inputs.shape[1:3], 0.5, generator())
    return mix_up(inputs, replace(draws, rho=torch.tensor([rho])))


@pytest.mark.parametrize("modalities", [1, 2, 3, 4])
def test_mixup_loses_and_doubles_nothing(modalities: int) -> None:
    inputs = tagged(modalities)
    mixed = mixed_up(inputs, 0.5)
    # at each place, the modalities are a permutation of themselves; row and position stay
    assert torch.equal(mixed[..., 0].sort(dim=0).values, inputs[..., 0])
    assert torch.equal(mixed[..., 1:], inputs[..., 1:])


@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_mixup_with_probability_zero_changes_nothing(modalities: int) -> None:
    inputs = tagged(modalities)
    assert torch.equal(mixed_up(inputs, 0.0), inputs)


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("rho", [0.1, 0.5])
def test_mixup_swaps_a_position_with_its_probability_in_all_modalities_at_once(modalities: int, rho: float) -> None:
    inputs = tagged(modalities)
    moved = mixed_up(inputs, rho)[..., 0] != inputs[..., 0]  # [M, B, L]
    assert torch.equal(moved.any(dim=0), moved.all(dim=0))
    assert moved[0].float().mean().item() == pytest.approx(rho, abs=0.04)
    assert moved[0].float().mean(dim=0).std() > 0  # drawn for each position, not once for a batch


def test_three_modalities_exchange_in_both_directions() -> None:
    mixed = mixed_up(tagged(3), 0.5)
    sources = mixed[0, ..., 0]
    share_1, share_2 = (float((sources == m).float().mean()) for m in (1, 2))
    assert share_1 == pytest.approx(0.25, abs=0.04)
    assert share_2 == pytest.approx(0.25, abs=0.04)


# Any number of modalities


@pytest.mark.parametrize("modalities", MODALITIES)
def test_a_few_steps_of_either_stage_bring_its_loss_down(modalities: tuple[str, ...]) -> None:
    model, batch = make_msm4sr(modalities=modalities), make_batch(HISTORIES)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    draws = generator()
    stages = {
        "pretrain": lambda: pretrain_loss(model, batch, PretrainSettings(), draws),
        "finetune": lambda: finetune_loss(model, batch),
    }
    for loss_of in stages.values():
        first = float(loss_of().detach())
        for _ in range(30):
            optimizer.zero_grad()
            loss_of().backward()
            optimizer.step()
        assert float(loss_of().detach()) < 0.7 * first


def test_a_catalogue_in_which_a_modality_is_missing_everywhere_still_trains_and_ranks() -> None:
    torch.manual_seed(0)
    features = {
        "text": make_rows([1, 2] * 6, 5),
        "visual": Ragged(torch.zeros(0, 7), torch.zeros(13, dtype=torch.int64)),
    }
    model = MSM4SR(MSM4SRConfig(dim=8, inner_dim=8, experts=2), Inputs(N_ITEMS, features=features))
    loss = finetune_loss(model, make_batch(HISTORIES)) + loss_of_pretraining(model)
    loss.backward()
    assert loss.isfinite()
    assert model.modalities == ("text",)
    assert model.encode_items().shape == (N_ITEMS, 2, 8)  # one content, and the ID embedding


# Storing


def all_scores(model: MSM4SR) -> Tensor:
    with torch.no_grad():
        catalogue = model.eval().encode_items()
        histories = torch.tensor([[1, 5, 0], [3, 4, 11]])
        return model.encode_histories(histories, catalogue)[:, -1] @ model.scoring_vectors(catalogue).T


@pytest.mark.parametrize("modalities", MODALITIES)
def test_a_stored_model_scores_the_same_to_the_last_bit(modalities: tuple[str, ...], tmp_path: Path) -> None:
    model = make_msm4sr(modalities=modalities, similarity="cosine", id_in_input=True, dropout=0.2)
    model.save_pretrained(tmp_path / "model")
    again = MSM4SR.from_pretrained(tmp_path / "model")
    assert again.config == model.config
    assert again.modalities == modalities
    assert not again.training
    assert torch.equal(all_scores(model), all_scores(again))
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_modalities_that_share_their_tensors_can_be_stored(tmp_path: Path) -> None:
    rows = make_rows([2, 1] * 6, 5)
    model = MSM4SR(
        MSM4SRConfig(dim=8, inner_dim=8, experts=2), Inputs(N_ITEMS, features={"text": rows, "visual": rows})
    )
    model.save_pretrained(tmp_path)
    assert torch.equal(all_scores(model), all_scores(MSM4SR.from_pretrained(tmp_path)))


def test_a_missing_or_broken_model_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json is missing"):
        MSM4SR.from_pretrained(tmp_path)
    make_msm4sr().save_pretrained(tmp_path)
    complete = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(complete[: len(complete) // 2])
    with pytest.raises(InputError, match=r"model\.safetensors: damaged"):
        MSM4SR.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not readable as JSON"):
        MSM4SR.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors is missing"):
        MSM4SR.from_pretrained(tmp_path)


def test_the_stored_settings_are_plain_json(tmp_path: Path) -> None:
    make_msm4sr(score_with=("text",)).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["n_items"] == N_ITEMS
    assert stored["modalities"] == ["text", "visual"]
    assert stored["config"]["score_with"] == ["text"]


def test_a_model_reads_its_features_where_the_caller_has_them() -> None:
    """So that features mapped from a store are not copied into memory."""
    rows = {a: Features(np.ones((2, 3), np.float32), np.array([0, 1, 2]), ["i", "j"]) for a in ("text", "visual")}
    small = [f"model.{change}" for change in ("dim=8", "inner_dim=8", "experts=2", "whiten=0")]
    model = build_model(resolve_settings("best", changes=small), make_dataset([[0, 1, 0]], 2), rows)
    assert isinstance(model, MSM4SR)
    for name, given in rows.items():
        assert np.shares_memory(model.features[name].values.numpy(), given.values)


# What is refused


def test_a_model_without_any_modality_is_refused() -> None:
    with pytest.raises(InputError, match="at least one modality"):
        MSM4SR(MSM4SRConfig(), Inputs(N_ITEMS))


def test_scoring_with_an_unknown_modality_is_refused_and_the_known_ones_named() -> None:
    with pytest.raises(InputError, match=r"no modality \['sound'\]; there are \['text', 'visual'\]"):
        make_msm4sr(score_with=("text", "sound"))


def test_features_of_another_catalogue_are_refused() -> None:
    with pytest.raises(InputError, match="features of text describe 12 items, the catalogue has 13"):
        MSM4SR(MSM4SRConfig(), Inputs(13, features=make_features(12, ("text",))))


@pytest.mark.parametrize(
    "settings", [{"heads": 3}, {"dim": 0}, {"dropout": 1.0}, {"temperature": 0}, {"similarity": "l2"}, {"dmi": 64}]
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MSM4SRConfig(**settings)


def test_dropout_is_off_in_evaluation_and_on_in_training() -> None:
    model = make_msm4sr(dropout=0.5, attention_dropout=0.5)
    enlarge(model)
    assert torch.equal(all_scores(model), all_scores(model))
    model.train()
    assert not torch.equal(model.encode_items(), model.encode_items())
