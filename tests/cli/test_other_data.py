"""`msm4sr evaluate RUN --data OTHER`: a stored model on other data, without training."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from calling import Cli, metrics_of

from msm4sr.data.dataset import load_dataset, test_targets
from msm4sr.data.items import Items
from msm4sr.experiments.loading import load_recommender
from msm4sr.experiments.run import read_metrics
from msm4sr.recommend.recommender import Recommender


def other_shop(shop: Path, out: Path, *, items: int, users: int, new: int = 0) -> Path:
    """The first items of the shop in reverse order, its last users, and copies of items under new ids."""
    table = pl.read_parquet(shop / "items.parquet").head(items).reverse()
    copies = table.head(new).with_columns(pl.concat_str(pl.lit("new-"), "item_id").alias("item_id"))
    out.mkdir()
    pl.concat([copies, table]).write_parquet(out / "items.parquet")
    log = pl.read_parquet(shop / "interactions.parquet").filter(pl.col("item_id").is_in(table["item_id"].implode()))
    kept = log["user_id"].unique(maintain_order=True).tail(users)
    log = log.filter(pl.col("user_id").is_in(kept.implode()))
    if new:  # every third interaction with a copied item is with the copy
        copied = pl.col("item_id").is_in(table["item_id"].head(new).implode()) & (pl.int_range(pl.len()) % 3 == 0)
        log = log.with_columns(
            pl.when(copied).then(pl.concat_str(pl.lit("new-"), "item_id")).otherwise("item_id").alias("item_id")
        )
    log.write_parquet(out / "interactions.parquet")
    shutil.copytree(shop / "images", out / "images")
    return out


def digests(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and "evaluations" not in file.parts and not file.name.startswith(".")
    }


def evaluated(cli: Cli, run: Path, other: Path) -> dict[str, Any]:
    before = digests(run)
    called = cli("evaluate", run, "--data", other)
    assert called.code == 0, called
    assert digests(run) == before, "nothing of the run may change"
    folder = run / "evaluations" / other.name
    assert str(folder) in called.out
    metrics = read_metrics(folder)
    assert metrics is not None
    return metrics


def ranks_by_recommending(recommender: Recommender, other: Path, exclude_seen: bool) -> list[float]:
    """Each user's rank of the test item among the items of the other data, as a service would list them."""
    dataset = load_dataset(other)
    ids, targets, found = dataset.item_ids, test_targets(dataset), []
    allowed = set(ids)
    for history, target in zip(targets.histories, targets.targets.tolist(), strict=True):
        given = [ids[item] for item in history.tolist()]
        every = recommender.recommend(given, k=10_000, exclude_seen=exclude_seen).items
        scores = {one.item_id: one.score for one in every if one.item_id in allowed}
        if ids[target] in scores:
            own = scores[ids[target]]
            better = sum(score > own for score in scores.values())
            same = sum(score == own for score in scores.values())
            found.append(better + (same + 1) / 2)
        else:
            found.append(np.nan)  # a seen item
    return found


@pytest.mark.parametrize("new", [0, 5])
def test_ranks_are_those_of_the_lists_that_a_service_would_show(
    cli: Cli, shop: Path, copy_of_run: Path, tmp_path: Path, new: int
) -> None:
    other = other_shop(shop, tmp_path / "other", items=40, users=25, new=new)
    metrics = evaluated(cli, copy_of_run, other)
    assert metrics["run"]["items"] == 40 + new
    assert metrics["run"]["new_items"] == new
    recommender = load_recommender(copy_of_run)
    described = Items.from_frame(load_dataset(other).items)
    if new:
        items = [described[row] for row in range(new)]  # the copies come first
        images = [[(other / str(path)).read_bytes() for path in item.images] for item in items]
        recommender.add_items([replace(item, images=own) for item, own in zip(items, images, strict=True)])
    users = pl.read_parquet(copy_of_run / "evaluations" / "other" / "users.parquet").filter(pl.col("part") == "test")
    for column, exclude_seen in (("rank", False), ("rank_seen_excluded", True)):
        expected = ranks_by_recommending(recommender, other, exclude_seen)
        seen = np.isnan(expected)
        assert users[column].to_numpy()[~seen] == pytest.approx(np.array(expected)[~seen])
    lists = metrics["beyond_accuracy"]["seen_excluded"]
    assert 0 < lists["coverage@5"] <= 1
    assert lists["coverage@50"] == 1


def test_the_data_of_the_run_at_another_place_are_the_last_stage_as_before(
    cli: Cli, shop: Path, copy_of_run: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(shop, tmp_path / "moved"))
    before = metrics_of(copy_of_run)
    assert cli("evaluate", copy_of_run, "--data", moved).code == 0
    assert not (copy_of_run / "evaluations").exists()
    assert metrics_of(copy_of_run)["test"] == before["test"]


@pytest.mark.parametrize("model", ["sasrec", "itemknn", "lightgcn", "popularity"])
def test_any_model_is_evaluated_on_other_users_of_its_items(
    cli: Cli, refused: Callable[..., str], shop: Path, tmp_path: Path, model: str
) -> None:
    run = tmp_path / "run"
    quick = ("--set", "finetune.epochs=1") if model not in ("itemknn", "popularity") else ()
    called = cli("run", shop, "--out", run, "--model", model, *quick)
    assert called.code == 0, called
    same = other_shop(shop, tmp_path / "same", items=60, users=30)  # the same items in reverse order
    metrics = evaluated(cli, run, same)
    own = pl.read_parquet(run / "users.parquet").filter(pl.col("part") == "test")
    there = pl.read_parquet(run / "evaluations" / "same" / "users.parquet").filter(pl.col("part") == "test")
    both = there.join(own, on=("user_id", "item_id"))
    assert len(both) == len(there) == metrics["run"]["users"] == 30
    if model != "lightgcn":  # which ranks for a user of its data by the user's own vector
        assert both["rank"].to_numpy() == pytest.approx(both["rank_right"].to_numpy())
    other = other_shop(shop, tmp_path / "other", items=40, users=25, new=4)
    message = refused("evaluate", run, "--data", other)
    assert f"{other / 'items.parquet'}: 4 of 44 items are unknown to {run}, for example 'new-" in message
    assert f"{model} knows only items that it was trained on; evaluate a run of msm4sr, or remove" in message
    assert not (run / "evaluations" / "other").exists()


@pytest.mark.parametrize("command", ["evaluate", "finetune"])
def test_an_unfinished_run_is_not_continued_on_other_data(
    cli: Cli, refused: Callable[..., str], shop: Path, tmp_path: Path, command: str
) -> None:
    other, run = other_shop(shop, tmp_path / "other", items=30, users=20), tmp_path / "run"
    assert cli("extract", shop, "--model", "popularity", "--out", run).code == 0
    before = digests(run)
    assert f"{other}: other data than {run} was begun on: users is " in refused(command, run, "--data", other)
    assert digests(run) == before
    same = shutil.copytree(shop, tmp_path / "moved")
    assert cli("evaluate", run, "--data", same).code == 0


def test_an_item_that_is_new_and_has_no_content_is_named(
    refused: Callable[..., str], shop: Path, copy_of_run: Path, tmp_path: Path
) -> None:
    other = other_shop(shop, tmp_path / "other", items=40, users=25)
    empty = pl.DataFrame({"item_id": ["bare"]})
    table = pl.read_parquet(other / "items.parquet")
    pl.concat([table, empty], how="diagonal").write_parquet(other / "items.parquet")
    assert "item 'bare': it has no content that the model reads" in refused("evaluate", copy_of_run, "--data", other)


def test_changed_content_is_refused_before_anything_is_written(
    refused: Callable[..., str], shop: Path, copy_of_run: Path, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(shop, tmp_path / "changed"))
    table = pl.read_parquet(changed / "items.parquet").with_columns(pl.col("text").str.to_uppercase())
    table.write_parquet(changed / "items.parquet")
    before = digests(copy_of_run)
    message = refused("evaluate", copy_of_run, "--data", changed)
    assert f"{changed}: its items have other texts, categories or image names than" in message
    assert digests(copy_of_run) == before


def test_results_on_another_folder_with_the_same_name_are_kept(
    cli: Cli, refused: Callable[..., str], shop: Path, copy_of_run: Path, tmp_path: Path
) -> None:
    for place, users in (("a", 25), ("b", 20)):
        (tmp_path / place).mkdir()
        other_shop(shop, tmp_path / place / "other", items=40, users=users)
    first = evaluated(cli, copy_of_run, tmp_path / "a" / "other")
    message = refused("evaluate", copy_of_run, "--data", tmp_path / "b" / "other")
    assert f"has the results on {tmp_path / 'a' / 'other'}; rename one of the data folders" in message
    assert read_metrics(copy_of_run / "evaluations" / "other") == first
    assert evaluated(cli, copy_of_run, tmp_path / "a" / "other") is not None, "the same data replace them"


def test_new_weights_remove_the_evaluations_of_the_old_ones(
    cli: Cli, shop: Path, copy_of_run: Path, tmp_path: Path
) -> None:
    evaluated(cli, copy_of_run, other_shop(shop, tmp_path / "other", items=40, users=25))
    assert cli("finetune", copy_of_run, "--overwrite").code == 0
    assert not (copy_of_run / "evaluations").exists()
