"""What was learned on one data set, as the beginning on another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from builders import make_model, make_msm4sr
from calling import QUICK, Cli, Trained, metrics_of

from msm4sr.errors import InputError
from msm4sr.experiments.stages import start_from
from msm4sr.models.msm4sr import MSM4SR
from msm4sr.tensor_files import load_tensors, save_tensors
from msm4sr.training.checkpoint import best_file, weights_of

E = "item_embedding.weight"
FROM_THERE = ("--set=pretrain.epochs=0",)


def learned(folder: Path, model: MSM4SR) -> Path:
    """A run whose pre-training has left the weights of this model."""
    save_tensors(weights_of(model), best_file(folder / "checkpoints", "pretrain"))
    return folder


def test_all_weights_but_the_ids_are_transferred_bit_identically(tmp_path: Path) -> None:
    there, here = make_msm4sr(n_items=12, seed=1), make_msm4sr(n_items=30, seed=2)
    before = weights_of(here)
    start_from(learned(tmp_path, there), here)
    after, source = weights_of(here), weights_of(there)
    assert torch.equal(after.pop(E), before.pop(E))
    assert all(torch.equal(after[name], source[name]) for name in after)
    assert not any(torch.equal(after[name], before[name]) for name in after)


def test_a_modality_that_the_model_lacks_is_skipped(tmp_path: Path) -> None:
    there = make_msm4sr(modalities=("text", "visual", "audio"), seed=1)
    here = make_msm4sr(modalities=("text",), seed=2)
    start_from(learned(tmp_path, there), here)
    assert torch.equal(here.projections["text"].weight, there.projections["text"].weight)


@pytest.mark.parametrize(
    ("here", "said"),
    [
        (make_msm4sr(modalities=("text", "audio")), "was not pre-trained on audio, only on text and visual"),
        (make_msm4sr(modalities=("visual", "text")), "visual is 6-d in .* and 5-d here"),
        (make_msm4sr(max_history=9), r"transformer.position.weight is \[6, 8\] there and \[9, 8\] here"),
        (make_msm4sr(layers=3), "transformer.layers.2.* is absent there"),
        (make_model("sasrec"), "init_from is for msm4sr only"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_reason(tmp_path: Path, here: MSM4SR, said: str) -> None:
    with pytest.raises(InputError, match=said):
        start_from(learned(tmp_path, make_msm4sr()), here)


def test_without_training_it_ranks_as_pre_training_was_validated(
    cli: Cli, trained: Trained, shop: Path, features: Path, tmp_path: Path
) -> None:
    """The same data, so that the same numbers must come out."""
    options = ("--features", features, *QUICK, f"--set=pretrain.init_from={trained.folder}", *FROM_THERE)
    assert cli("run", shop, "--out", tmp_path / "zero", *options, "--set=finetune.epochs=0").code == 0
    rows = [json.loads(line) for line in (trained.folder / "metrics.jsonl").read_text().splitlines()]
    (epoch,) = [row for row in rows if row["stage"] == "pretrain"]
    for name, value in metrics_of(tmp_path / "zero")["validation"].items():
        assert epoch[name] == value
    source = load_tensors(best_file(trained.folder / "checkpoints", "pretrain"))
    model = load_tensors(tmp_path / "zero" / "model" / "model.safetensors")
    assert all(torch.equal(model[name], source[name]) for name in source if name != E)
    assert not (tmp_path / "zero" / "metrics.jsonl").exists()


def test_fine_tuning_goes_on_from_there_as_from_its_own(
    cli: Cli, trained: Trained, shop: Path, features: Path, tmp_path: Path
) -> None:
    """E is drawn by the seed and not trained in pre-training: fine-tuning ends where the source's own did."""
    options = ("--features", features, *QUICK, f"--set=pretrain.init_from={trained.folder}", *FROM_THERE)
    assert cli("run", shop, "--out", tmp_path / "run", *options).code == 0
    source, here = (
        load_tensors(best_file(run / "checkpoints", "finetune")) for run in (trained.folder, tmp_path / "run")
    )
    assert all(torch.equal(source[name], here[name]) for name in source)


def test_a_run_without_pre_training_is_no_source(
    refused: Callable[..., str], shop: Path, features: Path, tmp_path: Path
) -> None:
    options = ("--features", features, *QUICK, f"--set=pretrain.init_from={tmp_path}")
    assert "has no pre-trained weights" in refused("run", shop, "--out", tmp_path / "run", *options)


def test_a_grid_takes_a_source_for_each_seed(
    cli: Cli, trained: Trained, shop: Path, features: Path, tmp_path: Path
) -> None:
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / shop.name).symlink_to(features)
    (tmp_path / "source-0").symlink_to(trained.folder)
    source = f"--set=pretrain.init_from={tmp_path}/source-{{seed}}"
    rows = ("--rows=zero-shot", "--rows=transferred")
    options = ("--features", tmp_path / "shelf", "--out", tmp_path / "grid", "--preset=seed", "--set=finetune.epochs=1")
    called = cli("compare", "transfer", "--data", shop, *options, source, *rows)
    assert called.code == 0, called
    assert "Zero-shot" in called.out
    assert "not fine-tuned" in called.out
    called = cli("compare", "transfer", "--data", shop, *options, source, *rows, "--seed=1")
    assert called.code == 1
    assert "source-1 has no pre-trained weights" in called.out
