"""Training that continues from a finished run: what is kept, what is new, what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
import yaml
from builders import make_model
from calling import Cli, Trained, metrics_of
from services import train
from torch import Tensor

from msm4sr.experiments.metrics import evaluate_stage
from msm4sr.experiments.model_folder import read_row_ids
from msm4sr.experiments.run import Run, begin_run, open_run, plan_run
from msm4sr.experiments.settings import resolve_settings, warm_start_settings
from msm4sr.experiments.stages import build_model, extract_stage, load_run_data, train_stage
from msm4sr.experiments.warm_start import start_warm
from msm4sr.models.msm4sr import MSM4SR
from msm4sr.models.registry import MODELS, from_pretrained
from msm4sr.tensor_files import load_tensors
from msm4sr.training.checkpoint import best_file, weights_of

E = "item_embedding.weight"
TRAINED = [name for name in MODELS if name != "msm4sr" and list(make_model(name).parameters())]


def cut(shop: Path, out: Path, items: slice, users: slice) -> Path:
    """The shop with some of its items and users, in reverse order, so that every number changes."""
    table, log = (pl.read_parquet(shop / f"{name}.parquet") for name in ("items", "interactions"))
    kept = table[items].reverse()
    names = log["user_id"].unique(maintain_order=True)[users].to_list()
    log = log.filter(pl.col("item_id").is_in(kept["item_id"].to_list()) & pl.col("user_id").is_in(names))
    out.mkdir()
    kept.write_parquet(out / "items.parquet")
    log.sort("timestamp", descending=True).write_parquet(out / "interactions.parquet")
    shutil.copytree(shop / "images", out / "images")
    return out


@pytest.fixture(scope="module")
def tomorrow(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without the first 5 items and users."""
    return cut(shop, tmp_path_factory.mktemp("tomorrow") / "shop", slice(5, None), slice(5, None))


@pytest.fixture(scope="module")
def today(shop: Path, features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without the last 10 items and users of the shop, with features of its own."""
    folder = tmp_path_factory.mktemp("today")
    data = cut(shop, folder / "shop", slice(0, 50), slice(0, 50))
    run = train(data, folder / "run", "msm4sr", "finetune.epochs=10", "model.whiten=32")
    shutil.move(folder / "features", run / "features")
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"features_folder": "features"}))
    return run


def continued(source: Path, data: Path, out: Path, *changes: str) -> Run:
    """The stages of `msm4sr run --warm-start`."""
    opened = open_run(source)
    settings = warm_start_settings(source, opened.settings, changes=changes)
    run = plan_run(data, out, settings, opened.preset)
    dataset = load_run_data(run)
    model = build_model(run.settings, dataset, extract_stage(run, dataset))
    start_warm(run, dataset, model)
    begin_run(run)
    for stage in ("pretrain", "finetune"):
        train_stage(run, stage, dataset, model)
    evaluate_stage(run, dataset, model)
    return run


def test_weights_follow_the_item_ids_and_new_items_have_an_embedding_of_zero(
    today: Path, tomorrow: Path, tmp_path: Path
) -> None:
    opened = open_run(today)
    run = plan_run(tomorrow, tmp_path / "run", warm_start_settings(today, opened.settings), opened.preset)
    dataset = load_run_data(run)
    model = build_model(run.settings, dataset, extract_stage(run, dataset))
    before = weights_of(model)
    said = start_warm(run, dataset, model)
    assert said == ["items: 45 continue with their weights, 10 are new, 5 have left"]
    source, after = load_tensors(today / "model" / "model.safetensors"), weights_of(model)
    ids = read_row_ids(opened)["items"]
    for row, item_id in enumerate(dataset.item_ids):
        known = source[E][ids.index(item_id)] if item_id in ids else torch.zeros_like(source[E][0])
        assert torch.equal(after[E][row], known)
    others = set(after) - {E}
    assert {"features.text.whitening.matrix", "features.visual.whitening.mean"} <= others
    assert all(torch.equal(after[name], source[name]) for name in others)
    assert not torch.equal(before["features.text.whitening.matrix"], after["features.text.whitening.matrix"])
    assert isinstance(model, MSM4SR)  # items are whitened by the map that came with the weights
    stored = from_pretrained(today / "model")
    assert isinstance(stored, MSM4SR)
    with torch.no_grad():
        here, there = model.eval().encode_items(), stored.encode_items()
    both = [(row, ids.index(item_id)) for row, item_id in enumerate(dataset.item_ids) if item_id in ids]
    assert_same_rows(here, there, both)


def assert_same_rows(here: Tensor, there: Tensor, rows: list[tuple[int, int]]) -> None:
    mine, theirs = (torch.tensor(column) for column in zip(*rows, strict=True))
    torch.testing.assert_close(here[mine], there[theirs], rtol=1e-3, atol=1e-3)


def test_the_command_trains_with_the_settings_and_a_part_of_the_epochs_of_the_run(
    cli: Cli, today: Path, tomorrow: Path, tmp_path: Path
) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    called = cli("run", tomorrow, "--out", run, "--warm-start", today)
    assert called.code == 0, called
    assert "items: 45 continue with their weights, 10 are new, 5 have left" in called.out
    assert "pretrain.epochs=0, finetune.epochs=2" in called.out
    assert "pretrain 1/" not in called.out
    assert "finetune 1/2" in called.out  # a fifth of ten epochs
    opened, source = open_run(run), open_run(today)
    start = opened.settings.warm_start
    assert (start.run, opened.preset) == (str(today), source.preset)
    unchanged = opened.settings.model_dump() | {"warm_start": source.settings.warm_start.model_dump()}
    assert unchanged == source.settings.model_dump()
    assert metrics_of(run)["run"]["warm_start"] == str(today)

    called = cli("run", tomorrow, "--out", again, "--warm-start", run, "--set", "warm_start.finetune_budget=0.5")
    assert called.code == 0, called
    assert "finetune 5/5" in called.out  # of the same ten
    assert open_run(again).settings.warm_start.run == str(run)


def test_only_new_and_changed_items_are_extracted(cli: Cli, today: Path, tomorrow: Path, tmp_path: Path) -> None:
    called = cli("run", tomorrow, "--out", tmp_path / "run", "--warm-start", today)
    assert called.code == 0, called
    assert "text-minilm: 9 of 55 items are new or changed" in called.out  # the tenth has no text
    assert "visual-pooled-efficientnet-lite0: 10 of 55 items are new or changed" in called.out
    assert open_run(tmp_path / "run").features == tmp_path / "run" / "features"


def test_it_is_resumed_and_evaluated_without_the_run_that_it_started_from(
    cli: Cli, today: Path, tomorrow: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(today, tmp_path / "source")
    run = tmp_path / "run"
    assert cli("run", tomorrow, "--out", run, "--warm-start", source).code == 0
    weights, metrics = load_tensors(best_file(run / "checkpoints", "finetune")), metrics_of(run)
    assert cli("finetune", run, "--overwrite").code == 0  # from the same start again
    again = load_tensors(best_file(run / "checkpoints", "finetune"))
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())
    assert cli("run", tomorrow, "--out", run, "--warm-start", source, "--resume").code == 0
    shutil.rmtree(source)
    assert cli("evaluate", run).code == 0
    assert metrics_of(run) == metrics
    called = cli("finetune", run, "--overwrite")
    assert called.code == 2
    assert f"{source}: no run here" in called.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model", "sasrec"), "a run of msm4sr, not of sasrec"),
        (("--preset", "seed"), "--preset cannot be given too; use --set"),
        (
            ("--set=model.dim=32",),
            "the models differ: model.dim is 16 there and 32 now; use the same model and features",
        ),
        (("--set=features.text.max_tokens=7",), "the features of text differ"),
        (("--set=model.score_with=[sound]",), "unknown modality 'sound'"),
        (("--set=warm_start.finetune_budget=0",), "warm_start.finetune_budget: Input should be greater than 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_written(
    refused: Callable[..., str], today: Path, tomorrow: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    assert said in refused("run", tomorrow, "--out", tmp_path / "run", "--warm-start", today, *options)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_run_that_cannot_be_continued_is_refused(
    refused: Callable[..., str], cli: Cli, today: Path, tomorrow: Path, shop: Path, tmp_path: Path
) -> None:
    source, out = shutil.copytree(today, tmp_path / "source"), tmp_path / "run"
    assert "no run here" in refused("run", tomorrow, "--out", out, "--warm-start", tmp_path)
    said = refused("run", tomorrow, "--out", source, "--warm-start", source, "--overwrite")
    assert "cannot replace the one that it starts from" in said
    others = pl.read_parquet(shop / "items.parquet")[50:]["item_id"].to_list()
    other = tmp_path / "other"
    other.mkdir()
    log = pl.DataFrame({"user_id": ["a"] * 10, "item_id": others, "timestamp": range(10)})
    log.write_parquet(other / "interactions.parquet")
    pl.read_parquet(shop / "items.parquet")[50:].write_parquet(other / "items.parquet")
    shutil.copytree(shop / "images", other / "images")
    assert "none of its items is in" in refused("run", other, "--out", out, "--warm-start", source)
    assert cli("run", tomorrow, "--out", out, "--warm-start", source).code == 0
    assert cli("finetune", source, "--overwrite").code == 0
    assert "is not finished; `msm4sr evaluate" in refused(
        "run", tomorrow, "--out", tmp_path / "third", "--warm-start", source
    )
    shutil.rmtree(source)
    assert cli("run", tomorrow, "--out", source, "--warm-start", today).code == 0
    assert "its model has changed since" in refused("finetune", out, "--overwrite")


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_every_trained_model_continues(
    trained: Trained, shop: Path, features: Path, tomorrow: Path, tmp_path: Path, name: str
) -> None:
    data = cut(shop, tmp_path / "shop", slice(0, 50), slice(0, 50))
    settings = resolve_settings("seed", name, ["pretrain.epochs=1", "finetune.epochs=5", "features.visual.kind=pooled"])
    first = plan_run(data, tmp_path / "first", settings, "seed", features)
    dataset = load_run_data(first)
    model = build_model(settings, dataset, extract_stage(first, dataset))
    begin_run(first)
    for stage in ("pretrain", "finetune"):
        train_stage(first, stage, dataset, model)
    evaluate_stage(first, dataset, model)
    run = continued(first.folder, tomorrow, tmp_path / "second")
    assert [row["stage"] for row in run.epochs()] == ["finetune"]
    if MODELS[name].uses_features:
        assert run.features == features
