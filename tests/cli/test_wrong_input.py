"""Wrong data and wrong options: one line says what is wrong and how to fix it, and nothing remains on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from calling import Cli, Trained, small_items, small_log, write_folder

Refused = Callable[..., str]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def refused_run(refused: Refused, out: Path) -> Callable[..., str]:
    """`msm4sr run DATA --out OUT ...` must be refused and must leave nothing at OUT."""

    def message(data: Path, *options: str) -> str:
        said = refused("run", data, "--out", out, *options)
        assert not out.exists()
        return said

    return message


# -- data -------------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there(refused_run: Refused, tmp_path: Path) -> None:
    message = refused_run(tmp_path / "nowhere")
    assert f"{tmp_path}/nowhere: no such folder" in message
    assert "interactions.parquet" in message


def test_a_file_where_a_folder_is_meant(refused_run: Refused, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id\n")
    assert "is a file, not a folder" in refused_run(tmp_path / "log.csv")


def test_a_folder_without_interactions(refused_run: Refused, tmp_path: Path) -> None:
    message = refused_run(tmp_path)
    assert "interactions.parquet: no such file" in message
    assert "msm4sr prepare csv" in message


def test_interactions_that_are_no_parquet_file(refused_run: Refused, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "interactions.parquet").write_text("user_id,item_id,timestamp\n")
    assert "interactions.parquet: cannot be read as a parquet file" in refused_run(tmp_path / "data")


@pytest.mark.parametrize("column", ["user_id", "item_id"])
def test_a_missing_column_of_the_interactions(refused_run: Refused, tmp_path: Path, column: str) -> None:
    log = small_log()
    log[column.title()] = log.pop(column)
    message = refused_run(write_folder(tmp_path / "data", log))
    assert f"interactions.parquet: no column '{column}'" in message
    assert f"did you mean '{column.title()}'?" in message


def test_interactions_without_time(refused_run: Refused, tmp_path: Path) -> None:
    log = small_log()
    del log["timestamp"]
    message = refused_run(write_folder(tmp_path / "data", log))
    assert "no column 'timestamp' (seconds) nor 'position'" in message


def test_a_missing_column_of_the_catalogue(refused_run: Refused, tmp_path: Path) -> None:
    message = refused_run(write_folder(tmp_path / "data", small_log(), {"id": ["i0"]}))
    assert "items.parquet: no column 'item_id'; the file has: id" in message


def test_a_wrong_type_names_the_first_row_that_does_not_fit(refused_run: Refused, tmp_path: Path) -> None:
    log = small_log()
    log["timestamp"] = [str(value) for value in log["timestamp"]]
    log["timestamp"][6] = "yesterday"
    message = refused_run(write_folder(tmp_path / "data", log))
    assert "column 'timestamp' is String; it should be int64" in message
    assert "row 7: 'yesterday'" in message


@pytest.mark.parametrize(
    ("column", "row", "value", "found"),
    [
        ("user_id", 2, None, "row 3: null"),
        ("item_id", 0, "", "row 1: empty"),
        ("timestamp", 4, None, "row 5: null"),
        ("timestamp", 4, -7, "row 5: -7"),
    ],
)
def test_a_wrong_value_names_its_row(
    refused_run: Refused, tmp_path: Path, column: str, row: int, value: Any, found: str
) -> None:
    log = small_log()
    log[column][row] = value
    message = refused_run(write_folder(tmp_path / "data", log))
    assert f"interactions.parquet: column '{column}', {found}" in message


def test_an_item_with_two_rows_in_the_catalogue(refused_run: Refused, tmp_path: Path) -> None:
    items = {"item_id": ["i0", "i1", "i2", "i3", "i4", "i5", "i1"]}
    message = refused_run(write_folder(tmp_path / "data", small_log(), items))
    assert "rows 2 and 7: both are 'i1'" in message


def test_an_interaction_with_an_unknown_item(refused_run: Refused, cli: Cli, tmp_path: Path, out: Path) -> None:
    log = small_log()
    log["item_id"][8] = "elephant"
    data = write_folder(tmp_path / "data", log, small_items())
    message = refused_run(data, "--model", "popularity")
    assert "interactions.parquet: column 'item_id', row 9: item 'elephant' is not in items.parquet" in message
    called = cli("run", data, "--out", out, "--model", "popularity", "--set", "dataset.unknown_items=drop")
    assert called.code == 0, called
    assert "dropped 1 interactions: unknown items" in called.out


def test_interactions_without_rows(refused_run: Refused, tmp_path: Path) -> None:
    message = refused_run(write_folder(tmp_path / "data", {name: values[:0] for name, values in small_log().items()}))
    assert "interactions.parquet: no rows" in message


def test_users_too_short_to_split_are_counted(cli: Cli, tmp_path: Path, out: Path) -> None:
    log = small_log()
    for user, items in {"short": "i0 i1", "shorter": "i0"}.items():
        for time, item in enumerate(items.split()):
            log["user_id"].append(user)
            log["item_id"].append(item)
            log["timestamp"].append(time)
    called = cli("run", write_folder(tmp_path / "data", log), "--out", out, "--model", "popularity")
    assert called.code == 0, called
    assert "data: 8 users" in called.out
    assert "dropped 2 users: fewer than 3 interactions" in called.out
    assert "dropped 3 interactions: fewer than 3 interactions" in called.out


def test_nothing_but_users_too_short_to_split(refused_run: Refused, tmp_path: Path) -> None:
    message = refused_run(write_folder(tmp_path / "data", small_log(length=2)))
    assert "nothing left of 16 interactions" in message
    assert "users: fewer than 3 interactions: 8" in message


def test_histories_with_nothing_to_train_on(refused: Refused, tmp_path: Path, out: Path) -> None:
    """With 3 interactions each, every training part is one item: no pair of an item and its next."""
    data = write_folder(tmp_path / "data", small_log(length=3))
    message = refused("run", data, "--out", out, "--model", "sasrec")
    assert "no user has two training items" in message


def test_a_catalogue_without_negatives(refused: Refused, tmp_path: Path) -> None:
    """Every user has seen every item, in histories that are long enough."""
    for items in (1, 2):
        data = write_folder(tmp_path / f"data-{items}", small_log(length=6, items=items))
        message = refused("run", data, "--out", tmp_path / f"run-{items}", "--model", "lightgcn")
        assert "no unseen item to draw as a negative" in message
        assert "two training items" not in message


# -- options ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data", small_log(), small_items(title=["a", "b", "c", "d", "e", "f"]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--preset", "sead"), ("no preset 'sead'", "best", "released", "did you mean 'seed'?")),
        (("--preset", "../seed"), ("no preset '../seed'",)),
        (("--model", "sasrecc"), ("no model 'sasrecc'", "popularity", "did you mean 'sasrec'?")),
        (("--set", "finetune.learningrate=1"), ("'finetune.learningrate'", "did you mean 'finetune.learning_rate'?")),
        (("--set", "dropot=0.1"), ("'dropot'", "did you mean")),
        (("--set", "model=sasrec"), ("no setting 'model'",)),
        (("--set", "model.name=sasrec"), ("no setting 'model.name'",)),
        (("--set", "model.experts=4", "--model", "sasrec"), ("no setting 'model.experts' of sasrec",)),
        (("--set", "finetune.epochs"), ("key=value",)),
        (("--set", "model.dim=abc"), ("model.dim", "integer", "'abc'")),
        (("--set", "model.dim="), ("model.dim", "integer")),
        (("--set", "model.dim=[1"), ("model.dim=[1", "not a valid value")),
        (("--set", "model.heads=3"), ("dim must be a multiple of heads: 64 is not a multiple of 3",)),
        (("--set", "model.dropout=1.5"), ("model.dropout", "less than 1", "1.5")),
        (("--set", "finetune.epochs=-1"), ("finetune.epochs", "greater than or equal to 0", "-1")),
        (("--set", "finetune.select=hits@10"), ("finetune.select", "recall")),
        (("--set", "features.visual.kind=clip"), ("features.visual.kind", "'keywords' or 'pooled'")),
        (("--seed", "-1"), ("--seed: seed", "greater than or equal to 0")),
        (("--seed", "9" * 20), ("--seed: seed", "less than 9223372036854775808")),
    ],
)
def test_wrong_options(refused_run: Refused, data: Path, options: tuple[str, ...], said: tuple[str, ...]) -> None:
    message = refused_run(data, *options)
    assert all(part in message for part in said), message


def test_settings_are_checked_before_the_data(refused_run: Refused, tmp_path: Path) -> None:
    assert "--preset" in refused_run(tmp_path / "nowhere", "--preset", "x")


def test_a_modality_to_score_with_that_is_not_there(refused_run: Refused, tmp_path: Path, data: Path) -> None:
    options = ("--features", str(tmp_path / "features"))
    message = refused_run(data, "--set", "model.score_with=[image]", *options)
    assert "model.score_with: unknown modality 'image'; choose from text, visual" in message
    assert not list(tmp_path.glob("features/*"))  # nothing was extracted
    message = refused_run(data, "--set", "model.score_with=[visual]", *options)
    assert "model.score_with: no modality ['visual']; there are ['text']" in message


def test_an_encoder_that_is_not_there(refused_run: Refused, tmp_path: Path, data: Path) -> None:
    encoder = tmp_path / "no-such-encoder"
    message = refused_run(data, "--set", f"features.text.encoder={encoder}")
    assert str(encoder) in message


def test_a_features_folder_that_is_a_file(cli: Cli, data: Path, out: Path) -> None:
    called = cli("run", data, "--out", out, "--features", data / "items.parquet")
    assert called.code == 1
    assert called.err == f"error: {data}/items.parquet: File exists"
    assert not out.exists()


def test_typer_names_a_missing_option(cli: Cli, data: Path) -> None:
    called = cli("run", data)
    assert called.code == 2
    assert "--out" in called.err


def test_a_device_that_is_not_there(
    refused: Refused, refused_run: Refused, copy_of_run: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "no cuda device found; use auto" in refused_run(data, "--set", "device.accelerator=cuda")
    config = copy_of_run / "config.yaml"
    config.write_text(config.read_text().replace("accelerator: auto", "accelerator: cuda"))
    for stage in ("pretrain", "finetune"):  # a run that comes from another machine
        assert "no cuda device found" in refused(*arguments(stage, copy_of_run))


def test_a_loss_that_is_no_number_ends_the_run_with_advice(cli: Cli, data: Path, out: Path) -> None:
    called = cli("run", data, "--out", out, "--model", "sasrec", "--set", "finetune.learning_rate=1e38")
    assert called.code == 1
    assert "try a lower" in called.err
    assert "Traceback" not in called.err
    assert not (out / "metrics.json").exists()


# -- run folders ------------------------------------------------------------------------------------------------------


def test_a_run_is_not_written_over(refused: Refused, trained: Trained, data: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in trained.folder.rglob("*")}
    message = refused("run", data, "--out", trained.folder)
    assert f"{trained.folder}: already contains a run" in message
    assert "--overwrite" in message
    assert {file: file.stat().st_mtime_ns for file in trained.folder.rglob("*")} == before


def test_a_folder_of_something_else_is_not_written_into(refused: Refused, data: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    for more in ((), ("--overwrite",)):
        assert "is not empty and holds no run" in refused("run", data, "--out", tmp_path / "home", *more)
    assert [file.name for file in (tmp_path / "home").iterdir()] == ["letter.txt"]


def test_a_run_folder_that_is_a_file_or_under_one(refused: Refused, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        assert f"{out}: cannot be written" in refused("run", data, "--out", out, "--model", "popularity")
    assert (tmp_path / "file").read_text() == "text"


STAGES = ("pretrain", "finetune", "evaluate", "recommend")


def arguments(stage: str, run: Path) -> tuple[str | Path, ...]:
    options = {"pretrain": ("--overwrite",), "finetune": ("--overwrite",), "recommend": ("--user", "user-00001")}
    return (stage, run, *options.get(stage, ()))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_where_there_is_no_run(refused: Refused, tmp_path: Path, stage: str) -> None:
    message = refused(*arguments(stage, tmp_path / "nowhere"))
    assert f"{tmp_path}/nowhere: no run here (no config.yaml)" in message
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: [unclosed", "not YAML"),
        ("just a line", "not a mapping of names"),
        ("- a\n- list", "not a mapping of names"),
        ("", "not a mapping of names"),
        ("seed: 1", "not a run's settings: it must have data, features_folder and preset"),
        ("data: 5\nfeatures_folder: f\npreset: seed", "not a run's settings"),
        (b"\xff\xfe\x00", "not YAML"),
        (
            "data: d\nfeatures_folder: f\npreset: seed\nmodel: {name: msm4sr, dim: wide}",
            "model.dim: 'wide' is not an integer",
        ),
        ("data: d\nfeatures_folder: f\npreset: seed\nmodel: {name: bert4rec}", "bert4rec"),
        (
            "msm4sr: 0.0.9\ndata: d\nfeatures_folder: f\npreset: seed\nspeed: 1",
            "another version of msm4sr (0.0.9); train",
        ),
        (
            "data: d\nfeatures_folder: f\npreset: seed\nmodel: {name: msm4sr, dim: 8, x: 1}",
            "of msm4sr (unknown); train",
        ),
        (
            f"msm4sr: {version('msm4sr')}\ndata: d\nfeatures_folder: f\npreset: seed\nspeed: 1",
            "the file was edited: undo it",
        ),
        ("data: /no/such/data\nfeatures_folder: f\npreset: seed", "/no/such/data: the data of "),
    ],
)
def test_damaged_settings(refused: Refused, copy_of_run: Path, text: str | bytes, said: str) -> None:
    config = copy_of_run / "config.yaml"
    config.write_bytes(text if isinstance(text, bytes) else text.encode())
    for stage in STAGES:
        message = refused(*arguments(stage, copy_of_run))
        assert said in message
        assert str(config) in message


def test_a_stage_before_its_turn(refused: Refused, copy_of_run: Path) -> None:
    for stage, before in (("evaluate", "finetune"), ("finetune", "pretrain")):
        (copy_of_run / "checkpoints" / f"{before}.safetensors").unlink()
        message = refused(stage, copy_of_run)
        assert f"run `msm4sr {before} {copy_of_run}` first" in message
    assert f"run `msm4sr pretrain {copy_of_run}` first" in refused("evaluate", copy_of_run)


@pytest.mark.parametrize(("stage", "before"), [("finetune", "pretrain"), ("evaluate", "finetune")])
def test_a_checkpoint_cut_short(refused: Refused, copy_of_run: Path, stage: str, before: str) -> None:
    checkpoint = copy_of_run / "checkpoints" / f"{before}.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    message = refused(*arguments(stage, copy_of_run))
    assert f"{checkpoint}: damaged (" in message
    assert message.endswith(f"run `msm4sr {before} {copy_of_run} --overwrite`")


def test_a_last_checkpoint_cut_short_is_needed_for_resuming_alone(
    refused: Refused, cli: Cli, copy_of_run: Path
) -> None:
    checkpoint = copy_of_run / "checkpoints" / "finetune.last.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    again = f"run `msm4sr finetune {copy_of_run} --overwrite`"
    called = cli("evaluate", copy_of_run)
    assert called.code == 0, called
    assert f"{checkpoint}: damaged (" in called.out
    assert f"{again}; the weights of the best epoch are used" in called.out
    assert refused("finetune", copy_of_run, "--resume").endswith(again)


@pytest.mark.parametrize("titles", [[1], [None], None, 5])
def test_titles_that_are_no_texts(refused: Refused, copy_of_run: Path, titles: Any) -> None:
    file = copy_of_run / "model" / "items.json"
    items = json.loads(file.read_text())
    titles = titles * len(items["titles"]) if isinstance(titles, list) else titles
    file.write_text(json.dumps(items | {"titles": titles}))
    message = refused(*arguments("recommend", copy_of_run))
    assert f"{file}: damaged (" in message
    assert message.endswith(f"`msm4sr evaluate {copy_of_run}` writes it again")


def test_a_checkpoint_of_another_model(refused: Refused, copy_of_run: Path) -> None:
    config = copy_of_run / "config.yaml"
    config.write_text(config.read_text().replace("dim: 64", "dim: 32"))
    for stage, before in (("finetune", "pretrain"), ("evaluate", "finetune")):
        message = refused(*arguments(stage, copy_of_run))
        assert f"{copy_of_run}/checkpoints/{before}.safetensors" in message
        assert "the checkpoint belongs to another training: model.dim is 64 there and 32 now" in message


def test_a_model_cut_short(refused: Refused, copy_of_run: Path) -> None:
    model = copy_of_run / "model" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1000])
    assert f"{model}: damaged (" in refused(*arguments("recommend", copy_of_run))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"config": {"name": "bert4rec"}}',
        '{"config": {"name": "msm4sr"}}',
        '{"config": {"name": "msm4sr", "dim": "wide"}, "modalities": ["text"], "n_items": 3}',
    ],
)
def test_model_settings_that_are_damaged(refused: Refused, copy_of_run: Path, text: str) -> None:
    (copy_of_run / "model" / "config.json").write_text(text)
    assert f"{copy_of_run}/model" in refused(*arguments("recommend", copy_of_run))


def test_a_damaged_record_of_epochs(refused: Refused, copy_of_run: Path) -> None:
    with (copy_of_run / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "finet')  # the power failed
    message = refused("evaluate", copy_of_run)
    assert f"{copy_of_run}/metrics.jsonl, line 3: not the record of an epoch; delete that line" in message


def test_damaged_features_are_read_from_the_items_again(cli: Cli, data: Path, tmp_path: Path, out: Path) -> None:
    text_only = ("--set", "features.visual.kind=pooled", "--set", "pretrain.epochs=1", "--set", "finetune.epochs=1")
    assert cli("run", data, "--out", out, *text_only).code == 0
    vectors = max((out / "features" / "text-minilm").iterdir(), key=lambda file: file.stat().st_size)
    vectors.write_bytes(vectors.read_bytes()[:100])
    called = cli("evaluate", out)
    assert called.code == 0, called
    assert "extracting again" in called.out


def test_the_demo_replaces_only_what_it_made(refused: Refused, tmp_path: Path) -> None:
    mine = tmp_path / "runs" / "popularity" / "config.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert f"{tmp_path / 'runs'}: the folder is not empty and was not made by the demo" in refused(
        "demo", "--out", tmp_path / "runs"
    )
    assert [*mine.parent.parent.rglob("*")] == [mine.parent, mine]
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("option", [("--cpus", "2"), ("--gpus", "0.5")])
@pytest.mark.parametrize("command", ["run", "compare"])
def test_resources_of_workers_without_a_cluster(
    refused: Refused, data: Path, out: Path, command: str, option: tuple[str, str]
) -> None:
    arguments = (data, "--model", "popularity") if command == "run" else ("comparison", "--data", data)
    assert "give --ray, or --devices for a run" in refused(command, *arguments, "--out", out, *option)
    assert not out.exists()
