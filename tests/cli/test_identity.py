"""What a command reads is checked against what it was made from: data, split, features, settings, weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import yaml
from calling import QUICK, Cli, metrics_of, small_log, write_folder

from msm4sr.tensor_files import load_tensors, read_about, save_tensors


def flip(file: Path) -> None:
    """Change a bit of each of the last 400 bytes."""
    content = bytearray(file.read_bytes())
    content[-400:] = bytes(byte ^ 0x04 for byte in content[-400:])
    file.write_bytes(content)


def without_last(data: Path) -> None:
    """Remove the last interaction of each user: what was a test item is gone, what was trained on is tested."""
    file = data / "interactions.parquet"
    log = pl.read_parquet(file).sort("user_id", "timestamp", maintain_order=True)
    log.filter(pl.int_range(pl.len()).over("user_id") < pl.len().over("user_id") - 1).write_parquet(file)


def swap(one: Path, other: Path) -> None:
    kept = one.rename(one.with_name("third"))
    other.rename(one)
    kept.rename(other)


@pytest.fixture
def moved(copy_of_run: Path, shop: Path, features: Path, tmp_path: Path) -> Path:
    """A finished run with data and features of its own, which a test may change."""
    config = yaml.safe_load((copy_of_run / "config.yaml").read_text())
    for key, folder in (("data", shop), ("features_folder", features)):
        config[key] = str(shutil.copytree(folder, tmp_path / "own" / folder.name))
    (copy_of_run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return copy_of_run


def test_weights_are_not_measured_on_a_log_that_has_changed(
    refused: Callable[..., str], moved: Path, tmp_path: Path
) -> None:
    before = metrics_of(moved)
    without_last(tmp_path / "own" / "toyshop")
    for options in (("evaluate",), ("finetune", "--overwrite")):
        message = refused(*options[:1], moved, *options[1:])
        assert f"{tmp_path / 'own' / 'toyshop'}: other data than {moved} was begun on: " in message
        assert "interactions is " in message
        assert "make a new run" in message
    assert metrics_of(moved) == before


def test_damaged_features_are_extracted_again(cli: Cli, moved: Path, tmp_path: Path) -> None:
    before = metrics_of(moved)
    for name in ("vectors.safetensors", "items.parquet"):
        (file,) = (tmp_path / "own").glob(f"*/text-*/{name}")
        flip(file)
        called = cli("evaluate", moved)
        assert f"(ValueError: {name} does not match its checksum)" in called.out
        assert metrics_of(moved) == before


@pytest.mark.parametrize(
    ("name", "command", "said"),
    [
        ("checkpoints/finetune.safetensors", "evaluate", "its content does not match its checksum"),
        ("checkpoints/pretrain.safetensors", "finetune --overwrite", "its content does not match its checksum"),
        ("model/model.safetensors", "recommend --history toy-0001", "its content does not match its checksum"),
    ],
)
def test_damaged_weights_are_refused(
    refused: Callable[..., str], moved: Path, name: str, command: str, said: str
) -> None:
    flip(moved / name)
    word, *options = command.split()
    message = refused(word, moved, *options)
    assert f"{moved / name}: damaged ({said})" in message


def test_weights_settings_and_items_of_a_model_belong_together(refused: Callable[..., str], moved: Path) -> None:
    items, config = moved / "model" / "items.json", moved / "model" / "config.json"
    stored, settings = json.loads(items.read_text()), json.loads(config.read_text())
    ids = stored["item_ids"]
    for wrong in (ids[:-1], [*ids[:-2], ids[-1], ids[-2]]):
        items.write_text(json.dumps(stored | {"item_ids": wrong, "titles": stored["titles"][: len(wrong)]}))
        message = refused("recommend", moved, "--history", ids[0])
        assert f"{items}: does not belong to model.safetensors; " in message
    items.write_text(json.dumps(stored))
    settings["config"]["heads"] = 1
    config.write_text(json.dumps(settings))
    assert "config.json does not belong to model.safetensors" in refused("recommend", moved, "--history", ids[0])


def test_data_that_has_moved_is_named_by_an_option(
    cli: Cli, refused: Callable[..., str], moved: Path, tmp_path: Path
) -> None:
    before, elsewhere = metrics_of(moved), (tmp_path / "own" / "toyshop").rename(tmp_path / "toyshop")
    message = refused("evaluate", moved)
    assert message.endswith(
        f"{tmp_path / 'own' / 'toyshop'}: the data of {moved} is no longer there; pass its new folder as --data, "
        f"or change `data:` in {moved / 'config.yaml'}"
    )
    assert cli("evaluate", moved, "--data", elsewhere).code == 0
    assert metrics_of(moved) == before
    assert cli("recommend", moved, "--user", "user-00001", "--data", elsewhere).code == 0
    assert cli("recommend", moved, "--history", "toy-0001").code == 0


def test_a_table_has_cells_of_one_state_of_the_data(cli: Cli, refused: Callable[..., str], tmp_path: Path) -> None:
    data, grid = write_folder(tmp_path / "ring", small_log(users=20, length=8, items=60)), tmp_path / "grid"
    options = ("comparison", "--data", data, "--out", grid, *QUICK[:-2])
    assert cli("compare", *options, "--rows", "popularity").code == 0
    older = shutil.copytree(grid / "cells" / "ring" / "popularity" / "seed-0", tmp_path / "older")
    without_last(data)
    message = refused("compare", *options, "--rows", "popularity", "--rows", "itemknn")
    assert f"popularity/seed-0: {data} has changed since: " in message
    assert "data.interactions is 160 (" in message
    assert not (grid / "cells" / "ring" / "itemknn").exists()

    shutil.rmtree(grid)
    assert cli("compare", *options, "--rows", "popularity", "--rows", "itemknn").code == 0
    cell = grid / "cells" / "ring" / "popularity" / "seed-0"
    shutil.rmtree(cell)
    shutil.copytree(older, cell)
    assert "were run on different data: data." in refused("report", grid)


def test_ranks_that_do_not_belong_to_the_metrics_are_not_tested(
    cli: Cli, refused: Callable[..., str], tmp_path: Path
) -> None:
    data, grid = write_folder(tmp_path / "ring", small_log(users=20, length=8, items=60)), tmp_path / "grid"
    rows = ("--rows", "popularity", "--rows", "itemknn")
    assert cli("compare", "comparison", "--data", data, "--out", grid, *rows, *QUICK[:-2]).code == 0
    file = grid / "cells" / "ring" / "itemknn" / "seed-0" / "users.parquet"
    pl.read_parquet(file).with_columns(pl.lit(1.0).alias("rank")).write_parquet(file)
    assert f"{file}: does not belong to metrics.json; `msm4sr evaluate " in refused("report", grid)


def test_a_table_that_was_edited_after_prepare_causes_a_warning(cli: Cli, shop: Path, tmp_path: Path) -> None:
    data, options = tmp_path / "data", ("--model", "popularity", "--preset", "seed")
    assert cli("prepare", "parquet", *(shop / f"{name}.parquet" for name in ("interactions", "items")), data).code == 0
    assert "edited or damaged since" not in cli("run", data, "--out", tmp_path / "one", *options).out
    without_last(data)
    said = f"{data / 'interactions.parquet'}: edited or damaged since `msm4sr prepare` wrote it"
    assert said in cli("run", data, "--out", tmp_path / "two", *options).out


def test_a_report_is_of_the_cells_that_its_rows_made(cli: Cli, refused: Callable[..., str], tmp_path: Path) -> None:
    data, grid = write_folder(tmp_path / "ring", small_log(users=20, length=8, items=60)), tmp_path / "grid"
    rows = ("--rows", "popularity", "--rows", "itemknn", "--seed", "0", "--seed", "1")
    assert cli("compare", "comparison", "--data", data, "--out", grid, *rows, *QUICK[:-2]).code == 0
    cells = grid / "cells" / "ring"
    for one, other, said in (
        ("popularity", "itemknn", "made with different settings: model."),
        ("popularity/seed-0", "popularity/seed-1", "made with different settings: seed is 1 there and 0 now"),
    ):
        swap(cells / one, cells / other)
        assert said in refused("report", grid)
        swap(cells / one, cells / other)
        assert cli("report", grid).code == 0
    file = cells / "itemknn" / "seed-1" / "metrics.json"
    metrics = json.loads(file.read_text())
    metrics["test"]["ndcg@10"] = 0.95
    file.write_text(json.dumps(metrics))
    for wrong in (file.read_text(), "[]", '{"identity": null}', "{}"):
        file.write_text(wrong)
        assert f"{file}: damaged or edited (" in refused("report", grid)


def test_rows_of_a_grid_use_one_file_of_embeddings(refused: Callable[..., str], cli: Cli, tmp_path: Path) -> None:
    data, grid = write_folder(tmp_path / "ring", small_log(users=20, length=8, items=60)), tmp_path / "grid"
    file, ids = tmp_path / "text.parquet", [f"i{n}" for n in range(60)]
    pl.DataFrame({"item_id": ids, "vector": [[float(n % 7), 1.0] for n in range(len(ids))]}).write_parquet(file)
    options = ("comparison", "--data", data, "--out", grid, "--rows", "sasrecm", "--features", f"text={file}")
    quick = ("--set", "finetune.epochs=1", "--preset", "seed")
    assert cli("compare", *options, *quick).code == 0
    pl.DataFrame({"item_id": ids, "vector": [[float(n % 5), 1.0] for n in range(len(ids))]}).write_parquet(file)
    message = refused("compare", *options, *quick, "--seed", "0", "--seed", "1")
    assert "sasrecm/seed-0: made with other embeddings: --features text is " in message


def test_fine_tuned_weights_belong_to_their_pre_training(refused: Callable[..., str], moved: Path) -> None:
    config = moved / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("cmcl_weight: 0.01", "cmcl_weight: 9.0"))
    assert "pretrain.cmcl_weight is 0.01 there and 9.0 now" in refused("evaluate", moved)
    config.write_text(text)
    file = moved / "checkpoints" / "pretrain.safetensors"
    weights, about = load_tensors(file), read_about(file)
    save_tensors({name: weight + 1 for name, weight in weights.items()}, file, about)
    assert "pretrain.weights is " in refused("evaluate", moved)


def test_the_model_folder_belongs_to_the_metrics(refused: Callable[..., str], cli: Cli, moved: Path) -> None:
    options = ("--preset", "seed", "--model", "popularity")
    data = yaml.safe_load((moved / "config.yaml").read_text())["data"]
    assert cli("run", data, "--out", moved.parent / "other", *options).code == 0
    shutil.rmtree(moved / "model")
    shutil.copytree(moved.parent / "other" / "model", moved / "model")
    message = refused("recommend", moved, "--history", "toy-0001")
    assert f"{moved / 'model'}: of another run; `msm4sr evaluate {moved}` writes it again" in message
