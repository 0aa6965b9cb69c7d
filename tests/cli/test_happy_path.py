"""What works at the command line, from a prepared folder to recommendations."""

from __future__ import annotations

import json
import shutil
import tomllib
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from builders import wrong_modes
from calling import QUICK, Cli, Trained, metrics_of, small_items, small_log, write_folder

import msm4sr
from msm4sr.data.dataset import load_dataset, test_targets
from msm4sr.evaluation.metrics import METRICS, mean_metrics
from msm4sr.evaluation.ranking import rank_targets
from msm4sr.experiments.run import open_run
from msm4sr.features.content import keywords_digest
from msm4sr.models.registry import from_pretrained
from msm4sr.tensor_files import load_tensors

KEYS = set(METRICS)


def test_a_run_leaves_all_that_it_promises(trained: Trained, shop: Path) -> None:
    config = yaml.safe_load((trained.folder / "config.yaml").read_text())
    assert config["data"] == str(shop)
    assert config["msm4sr"] == msm4sr.__version__ == version("msm4sr")
    assert config["finetune"]["epochs"] == 1
    epochs = [json.loads(line) for line in (trained.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["epoch"]) for row in epochs] == [("pretrain", 1), ("finetune", 1)]
    metrics = json.loads((trained.folder / "metrics.json").read_text())
    assert set(metrics["validation"]) == set(metrics["test"]) == KEYS
    run = open_run(trained.folder)
    assert metrics["identity"]["keywords"] == keywords_digest(run.features, run.settings.features)
    assert all(0 <= value <= 1 for part in ("validation", "test") for value in metrics[part].values())
    checkpoints = sorted(file.name for file in (trained.folder / "checkpoints").iterdir())
    assert checkpoints == [f"{stage}{last}.safetensors" for stage in ("finetune", "pretrain") for last in (".last", "")]
    assert {"config.json", "model.safetensors", "items.json", "README.md"} == {
        file.name for file in (trained.folder / "model").iterdir()
    }
    items = json.loads((trained.folder / "model" / "items.json").read_text())
    assert items["item_ids"] == pl.read_parquet(shop / "items.parquet")["item_id"].to_list()
    assert len(items["titles"]) == 60
    report = (trained.folder / "report.html").read_text()
    assert "<svg" in report
    card = (trained.folder / "model" / "README.md").read_text()
    for part, word in product(("validation", "test"), ("included", "excluded")):
        assert f"{part}, seen items {word}" in card
        assert f"{part.capitalize()}<br>seen items {word}" in report
    test, excluded = metrics["test"]["mrr"], metrics["seen_excluded"]["test"]["mrr"]
    assert f" | {test:.4f} | " in card
    assert f" | {excluded:.4f} |\n" in card
    assert not list(trained.folder.rglob("*.part"))
    assert not wrong_modes(trained.folder)


def test_a_run_says_what_it_does_and_what_comes_next(trained: Trained) -> None:
    out = trained.first_answer.out
    for said in (
        "toyshop: 60 users, 60 items",
        "preset seed for this size: model.dim=",
        "softmax over all items",
        "text: 58 of 60 items",
        "visual: 58 of 60 items",
        "pretrain 1/1 loss",
        "finetune 1/1 loss",
        "pairs/s",
        "leave-one-out, full ranking",
        "recall@10",
        "included",
        "excluded",  # the headings of the table wrap in a narrow terminal
        " parameters; ",
        "(excluding validation)",
        "peak memory",
        f"report: {trained.folder}/report.html",
        f"next: msm4sr recommend {trained.folder} --user",
    ):
        assert said in out
    assert trained.first_answer.err == ""  # no warnings, no progress bars of libraries


def test_the_same_seed_gives_the_same_metrics_and_reads_the_features_again(
    cli: Cli, trained: Trained, shop: Path, features: Path, tmp_path: Path
) -> None:
    before = {file: file.stat().st_mtime_ns for file in features.rglob("*") if file.is_file()}
    called = cli("run", shop, "--out", tmp_path / "again", "--features", features, *QUICK)
    assert called.code == 0
    assert "extracting again" not in called.out
    assert {file: file.stat().st_mtime_ns for file in features.rglob("*") if file.is_file()} == before
    assert metrics_of(tmp_path / "again") == metrics_of(trained.folder)


def test_the_stages_one_after_another_give_what_the_run_gives(
    cli: Cli, trained: Trained, shop: Path, tmp_path: Path
) -> None:
    run = tmp_path / "staged"
    # --features with a run folder means the features of that run; here, of the run's own folder
    shutil.copytree(open_run(trained.folder).features, run / "features")
    assert f"next: msm4sr pretrain {run}" in cli("extract", shop, "--out", run, *QUICK).out
    assert f"next: msm4sr finetune {run}" in cli("pretrain", run).out
    assert f"next: msm4sr evaluate {run}" in cli("finetune", run).out
    assert cli("evaluate", run).code == 0
    assert metrics_of(run) == metrics_of(trained.folder)
    ours, theirs = (load_tensors(folder / "model" / "model.safetensors") for folder in (run, trained.folder))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_another_seed_gives_other_metrics(
    cli: Cli, trained: Trained, shop: Path, features: Path, tmp_path: Path
) -> None:
    assert cli("run", shop, "--out", tmp_path / "r", "--features", features, *QUICK[:-1], "1").code == 0
    assert metrics_of(tmp_path / "r")["test"] != metrics_of(trained.folder)["test"]


def test_a_stage_can_be_done_again(cli: Cli, copy_of_run: Path, trained: Trained) -> None:
    refusal = cli("finetune", copy_of_run)
    assert refusal.code == 2
    assert "already has weights of finetune" in refusal.err
    assert cli("evaluate", copy_of_run).code == 0  # nothing was lost
    assert cli("finetune", copy_of_run, "--overwrite").code == 0
    assert not (copy_of_run / "metrics.json").exists()
    assert cli("evaluate", copy_of_run).code == 0
    assert metrics_of(copy_of_run) == metrics_of(trained.folder)
    stages = [json.loads(line)["stage"] for line in (copy_of_run / "metrics.jsonl").read_text().splitlines()]
    assert stages == ["pretrain", "finetune"]


def test_the_model_folder_alone_ranks_as_the_run_did(trained: Trained, shop: Path) -> None:
    model = from_pretrained(trained.folder / "model")
    ranks = rank_targets(model, test_targets(load_dataset(shop)))["seen_included"]  # type: ignore[arg-type]
    assert mean_metrics(ranks) == metrics_of(trained.folder)["test"]


@pytest.mark.parametrize("model", ["sasrec", "lightgcn", "itemknn", "popularity"])
def test_the_baselines_run_and_recommend(cli: Cli, shop: Path, tmp_path: Path, model: str) -> None:
    run = tmp_path / model
    called = cli("run", shop, "--out", run, "--model", model, "--set", "finetune.epochs=1")
    assert called.code == 0, called
    assert not (run / "features").exists()  # they read none
    assert set(metrics_of(run)["test"]) == KEYS
    assert ("seen items included" in called.out) == ("seen items included" in metrics_of(run)["run"]["protocol"])
    assert metrics_of(run)["run"]["model"] == model
    assert ("seen items excluded" in metrics_of(run)["run"]["protocol"]) == (model in ("lightgcn", "itemknn"))
    assert "report" in called.out
    assert cli("recommend", run, "--history", "toy-0001", "-k", "3").code == 0
    assert cli("evaluate", run).code == 0


@pytest.mark.parametrize("model", ["grcn", "dualgnn"])
def test_graph_models_that_read_features_run_and_recommend(
    cli: Cli, shop: Path, features: Path, trained: Trained, tmp_path: Path, model: str
) -> None:
    run = tmp_path / model
    called = cli(
        "run", shop, "--out", run, "--features", features, "--model", model, "--set", "finetune.epochs=1",
        "--set", "features.visual.kind=pooled",
    )  # fmt: skip
    assert called.code == 0, called
    assert set(metrics_of(run)["test"]) == KEYS
    assert ("seen items included" in called.out) == ("seen items included" in metrics_of(run)["run"]["protocol"])
    assert cli("recommend", run, "--history", "toy-0001", "-k", "3").code == 0


def test_popularity_recommends_the_most_frequent_item_of_training(cli: Cli, shop: Path, tmp_path: Path) -> None:
    cli("run", shop, "--out", tmp_path / "run", "--model", "popularity")
    dataset = load_dataset(shop)
    training = np.concatenate([dataset.histories[user][:-2] for user in range(dataset.n_users)])
    counts = np.bincount(training, minlength=dataset.n_items)
    seen = dataset.item_ids[0]
    counts[0] = -1
    best = dataset.item_ids[int(counts.argmax())]
    answer = cli("recommend", tmp_path / "run", "--history", seen, "-k", "1")
    assert best in answer.out


def test_a_catalogue_without_images_is_trained_on_text_and_says_so(cli: Cli, tmp_path: Path) -> None:
    data = write_folder(
        tmp_path / "books", small_log(), small_items(title=[f"A book of number {i}." for i in range(6)])
    )
    called = cli("run", data, "--out", tmp_path / "run", *QUICK, "--set", "features.visual.kind=pooled")
    assert called.code == 0, called
    assert "visual: missing for every item; the model is trained without it" in called.out
    assert "pre-training on text only" in called.out
    assert "nan" not in called.out


def test_a_log_of_ids_alone_is_for_sasrec_and_msm4sr_says_why(cli: Cli, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "ids", small_log())
    called = cli("run", data, "--out", tmp_path / "run", *QUICK)
    assert called.code == 2
    assert "no item has a text or an image" in called.err
    assert not (tmp_path / "run" / "config.yaml").exists()
    called = cli("run", data, "--out", tmp_path / "run", "--model", "sasrec", "--set", "finetune.epochs=1")
    assert called.code == 0, called


def test_tables_become_a_folder_and_the_folder_a_run(cli: Cli, shop: Path, tmp_path: Path) -> None:
    pl.read_parquet(shop / "interactions.parquet").rename({"user_id": "who"}).write_csv(tmp_path / "log.csv")
    items = pl.read_parquet(shop / "items.parquet").with_columns(pl.col("categories").list.join("|"))
    items.with_columns(pl.col("image").str.strip_prefix("images/")).write_csv(tmp_path / "items.tsv", separator="\t")
    out = tmp_path / "prepared"
    called = cli(
        "prepare",
        "csv",
        tmp_path / "log.csv",
        tmp_path / "items.tsv",
        out,
        "--images",
        shop / "images",
        "--user",
        "who",
    )
    assert called.code == 0, called
    assert "589 kept of 589, 60 users" in called.out
    assert "58 image" in called.out
    assert f"next: msm4sr run {out}" in called.out
    called = cli("run", out, "--out", tmp_path / "run", "--model", "popularity")
    assert called.code == 0, called


def test_the_prepared_toyshop_is_the_generated_one(cli: Cli, shop: Path, tmp_path: Path) -> None:
    assert cli("prepare", "toyshop", tmp_path / "made", "--users", "60", "--items", "60").code == 0
    for name in ("interactions.parquet", "items.parquet"):
        assert pl.read_parquet(tmp_path / "made" / name).equals(pl.read_parquet(shop / name))


def test_a_run_can_be_replaced_and_its_features_stay(cli: Cli, copy_of_run: Path, shop: Path, features: Path) -> None:
    called = cli("run", shop, "--out", copy_of_run, "--overwrite", "--model", "popularity")
    assert called.code == 0, called
    assert metrics_of(copy_of_run)["run"]["model"] == "popularity"
    assert not (copy_of_run / "checkpoints").exists()
    assert features.is_dir()


def test_names_that_look_like_markup_are_printed_as_they_are(cli: Cli, tmp_path: Path) -> None:
    data = write_folder(
        tmp_path / "shop[red]", small_log(), small_items(title=["[bold]", "[/red]", "c", "d", "e", "f"])
    )
    called = cli("run", data, "--out", tmp_path / "run[old]", "--model", "popularity")
    assert called.code == 0, called
    assert "shop[red]: 8 users" in called.out
    assert "run[old]/report.html" in called.out
    assert f"next: msm4sr recommend '{tmp_path}/run[old]' --user u0" in called.out
    called = cli("recommend", tmp_path / "run[old]", "--history", "i2", "i0")
    assert "[/red]" in called.out
    assert "[bold]" in called.out


@pytest.mark.slow
def test_the_demo_compares_four_systems_and_leaves_a_report(cli: Cli, tmp_path: Path) -> None:
    called = cli("demo", "--out", tmp_path / "demo", "--users", "100", "--items", "60")
    assert called.code == 0, called
    systems = ("popularity", "MSM4SR-T", "MSM4SR-V", "MSM4SR")
    table = called.out.partition("┏")[2]
    assert [line.split()[0] for line in table.split("│") if line.split() and line.split()[0] in systems] == list(
        systems
    )
    report = Path(called.out.partition("report: ")[2])
    assert report.is_relative_to(tmp_path)
    html = report.read_text()
    assert all(system in html for system in systems)
    assert "data:image/jpeg;base64," in html


def test_the_entry_point_is_the_one_that_is_tested() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["msm4sr"] == "msm4sr.cli:main"
