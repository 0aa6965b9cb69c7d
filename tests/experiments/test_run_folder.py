"""The run folder and its stages: what is written when, and that it is complete."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from torch import nn

from msm4sr.data.dataset import Dataset, training_counts
from msm4sr.errors import InputError
from msm4sr.evaluation.metrics import mean_metrics
from msm4sr.evaluation.users import SCHEMA
from msm4sr.experiments.metrics import evaluate_stage
from msm4sr.experiments.run import Run, begin_run, locked_run, open_run, plan_run, read_metrics
from msm4sr.experiments.settings import resolve_settings
from msm4sr.experiments.stages import build_model, load_run_data, restore, restore_last, train_stage
from msm4sr.models.registry import from_pretrained
from msm4sr.tensor_files import load_tensors
from msm4sr.training.callbacks import Callback, EpochRecord
from msm4sr.training.checkpoint import Checkpoints, best_file, weights_of

SMALL = ("model.dim=8", "model.inner_dim=8", "finetune.epochs=3", "finetune.learning_rate=0.01")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight users who go round six items."""
    rows = [(f"u{u}", f"i{(u + step) % 6}", step) for u in range(8) for step in range(6)]
    (tmp_path / "data").mkdir()
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_parquet(
        tmp_path / "data" / "interactions.parquet"
    )
    return tmp_path / "data"


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Run:
    planned = plan_run(data, tmp_path / "run", resolve_settings("seed", "sasrec", SMALL), "seed")
    begin_run(planned)
    return planned


def begin(run: Run) -> tuple[Dataset, nn.Module]:
    dataset = load_run_data(run)
    return dataset, build_model(run.settings, dataset, {})


def test_an_opened_run_equals_the_planned_one(run: Run) -> None:
    assert open_run(run.folder) == run


def test_a_run_stores_absolute_paths(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    begin_run(plan_run(Path("data"), Path("run"), resolve_settings("seed", "popularity"), "seed", Path("features")))
    monkeypatch.chdir("/")
    opened = open_run(tmp_path / "run")
    assert opened.data == data
    assert opened.features == tmp_path / "features"
    assert load_run_data(opened).n_users == 8


def test_a_run_that_did_not_begin_leaves_nothing(tmp_path: Path) -> None:
    with locked_run(tmp_path / "other"):
        (tmp_path / "other" / "features").mkdir()
    assert not (tmp_path / "other").exists()


def test_a_run_that_did_not_begin_keeps_the_features_that_were_made(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    with locked_run(folder):
        (folder / "features" / "text").mkdir(parents=True)
    assert [path.name for path in folder.iterdir()] == ["features"]
    begin_run(plan_run(data, folder, resolve_settings("seed", "sasrec", SMALL), "seed"))


def test_two_processes_do_not_work_on_one_run(run: Run) -> None:
    refused = rf"{run.folder}: another process works on this run; wait until it ends, or choose another --out"
    with locked_run(run.folder), pytest.raises(InputError, match=refused), locked_run(run.folder):
        pass
    with locked_run(run.folder):  # released
        pass


def test_a_run_killed_while_its_settings_were_written_can_be_begun_again(data: Path, tmp_path: Path) -> None:
    planned = plan_run(data, tmp_path / "other", resolve_settings("seed", "sasrec", SMALL), "seed")
    planned.features.mkdir(parents=True)
    (planned.folder / ".config.yaml.0123.unfinished").write_text("data: ")
    begin_run(plan_run(data, planned.folder, planned.settings, "seed"))
    assert sorted(path.name for path in planned.folder.iterdir()) == ["config.yaml", "features"]


def test_the_old_run_is_removed_when_the_new_one_begins(data: Path, run: Run) -> None:
    dataset, model = begin(run)
    train_stage(run, "finetune", dataset, model)
    evaluate_stage(run, dataset, model)
    (run.folder / "features").mkdir()
    before = sorted(path.name for path in run.folder.iterdir())
    new = plan_run(data, run.folder, run.settings, "seed", overwrite=True)
    assert sorted(path.name for path in run.folder.iterdir()) == before
    begin_run(new)
    assert sorted(path.name for path in run.folder.iterdir()) == ["config.yaml", "features"]


def test_a_folder_of_the_run_that_is_a_link_is_replaced_and_its_target_kept(
    data: Path, run: Run, tmp_path: Path
) -> None:
    for name in ("checkpoints", "model"):
        (tmp_path / f"other {name}").mkdir()
        (tmp_path / f"other {name}" / "precious").touch()
        (run.folder / name).symlink_to(tmp_path / f"other {name}")
    run.remove_results()
    begin_run(plan_run(data, run.folder, run.settings, "seed", overwrite=True))
    assert [path.name for path in run.folder.iterdir()] == ["config.yaml"]
    assert len(list(tmp_path.glob("other */precious"))) == 2


def test_what_a_killed_process_was_writing_is_removed_by_the_next(run: Run) -> None:
    (run.folder / "metrics.json").touch()
    for folder in (run.folder, run.checkpoints, run.folder / "model"):
        folder.mkdir(exist_ok=True)
        for name in (".model.safetensors.0123.unfinished", ".tmpXyZ123"):
            (folder / name).touch()
    (run.checkpoints / "finetune.safetensors").touch()
    with locked_run(run.folder):
        pass
    kept = {"config.yaml", "metrics.json", "finetune.safetensors"}
    assert {path.name for path in run.folder.rglob("*") if path.is_file()} == kept


def test_a_run_can_be_moved(run: Run, tmp_path: Path) -> None:
    run.folder.rename(tmp_path / "elsewhere")
    moved = open_run(tmp_path / "elsewhere")
    assert moved.features == tmp_path / "elsewhere" / "features"
    assert moved.settings == run.settings


class Interrupting(Callback):
    """Ctrl-C after the first epoch."""

    def on_epoch_end(self, record: EpochRecord, improved: bool) -> None:
        raise KeyboardInterrupt


def test_a_stage_that_is_run_again_and_interrupted_at_once_loses_nothing(run: Run) -> None:
    late = run.settings.finetune.model_copy(update={"validate_every": 2})  # the first epoch has no validation
    again = replace(run, settings=run.settings.model_copy(update={"finetune": late}))
    dataset, model = begin(run)
    train_stage(run, "finetune", dataset, model)
    kept, epochs = load_tensors(best_file(run.checkpoints, "finetune")), run.epochs()
    with pytest.raises(KeyboardInterrupt):
        train_stage(again, "finetune", *begin(run), [Interrupting()])
    now = load_tensors(best_file(run.checkpoints, "finetune"))
    assert all(torch.equal(kept[name], now[name]) for name in kept)
    assert run.epochs() == epochs


def test_new_weights_remove_the_results_of_the_old_ones(run: Run) -> None:
    dataset, model = begin(run)
    train_stage(run, "finetune", dataset, model)
    evaluate_stage(run, dataset, model)
    train_stage(run, "finetune", *begin(run))
    left = sorted(path.name for path in run.folder.iterdir())
    assert left == ["checkpoints", "config.yaml", "metrics.jsonl"]


def test_new_weights_that_cannot_be_stored_remove_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, model = begin(run)
    train_stage(run, "finetune", dataset, model)
    evaluate_stage(run, dataset, model)
    before = sorted(str(path) for path in run.folder.rglob("*"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Checkpoints, "save_best", full)
    with pytest.raises(OSError, match="No space left"):
        train_stage(run, "finetune", *begin(run))
    assert sorted(str(path) for path in run.folder.rglob("*")) == before
    assert read_metrics(run.folder) is not None


def test_a_skipped_stage_needs_no_checkpoint(data: Path, tmp_path: Path) -> None:
    settings = resolve_settings("seed", "sasrec", [*SMALL, "finetune.epochs=0"])
    untrained = plan_run(data, tmp_path / "untrained", settings, "seed")
    begin_run(untrained)
    dataset, model = begin(untrained)
    restore_last(untrained, dataset, model)
    assert evaluate_stage(untrained, dataset, model)["test"]["recall@10"] == 1  # of six items


def test_the_checkpoint_is_the_best_epoch_and_the_model_has_its_weights(run: Run) -> None:
    dataset, model = begin(run)
    train_stage(run, "finetune", dataset, model)
    kept, now = load_tensors(best_file(run.checkpoints, "finetune")), weights_of(model)
    assert all(torch.equal(kept[name], now[name]) for name in now)
    other = begin(run)[1]
    assert any(not torch.equal(kept[name], weight) for name, weight in weights_of(other).items())
    restore(run, dataset, other, "finetune")
    assert all(torch.equal(kept[name], weight) for name, weight in weights_of(other).items())


def test_metrics_are_those_of_the_best_epoch(run: Run) -> None:
    dataset, model = begin(run)
    train_stage(run, "finetune", dataset, model)
    result = evaluate_stage(run, dataset, model)
    best = max(run.epochs(), key=lambda row: (row["recall@20"], -row["epoch"]))
    assert {name: best[name] for name in result["validation"]} == result["validation"]
    assert read_metrics(run.folder) == result
    assert result["run"]["seed"] == 0
    assert result["run"]["training_seconds"]["pretrain"] == 0
    assert "| recall@10 |" in (run.folder / "model" / "README.md").read_text()


def test_metrics_are_means_of_the_stored_ranks(run: Run) -> None:
    dataset, model = begin(run)
    train_stage(run, "finetune", dataset, model)
    result = evaluate_stage(run, dataset, model)
    users = pl.read_parquet(run.folder / "users.parquet")
    assert users.columns == list(SCHEMA)
    for part in ("validation", "test"):
        own = users.filter(pl.col("part") == part)
        assert own["user_id"].to_list() == dataset.user_ids
        assert mean_metrics(own["rank"].to_numpy()) == result[part]
        assert mean_metrics(own["rank_seen_excluded"].to_numpy()) == result["seen_excluded"][part]


def test_metrics_record_versions_memory_and_hardware(run: Run) -> None:
    dataset, model = begin(run)
    train_stage(run, "finetune", dataset, model)
    result = evaluate_stage(run, dataset, model)
    assert {"msm4sr", "python", "torch"} <= result["versions"].keys()
    assert all(isinstance(value, str) and value for value in result["versions"].values())
    assert 50 < result["run"]["peak_memory_mib"] < 1e5
    assert result["run"]["hardware"]


def test_a_table_of_users_that_cannot_be_written_leaves_no_results(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    dataset, model = begin(run)
    train_stage(run, "finetune", dataset, model)
    before = sorted(path.name for path in run.folder.iterdir())
    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    with pytest.raises(OSError, match="No space"):
        evaluate_stage(run, dataset, model)
    assert sorted(path.name for path in run.folder.iterdir()) == before


def test_the_model_folder_is_self_contained(run: Run) -> None:
    dataset, model = begin(run)
    train_stage(run, "finetune", dataset, model)
    evaluate_stage(run, dataset, model)
    loaded = from_pretrained(run.folder / "model")
    histories = torch.tensor([[0, 1, 2], [3, 4, 5]])
    scores = []
    for network in (model.eval(), loaded):
        catalogue = network.encode_items()
        prefixes = network.encode_histories(histories, catalogue)
        scores.append(prefixes @ network.scoring_vectors(catalogue).T)
    assert torch.equal(*scores)
    items = json.loads((run.folder / "model" / "items.json").read_text())
    assert items["item_ids"] == items["titles"] == dataset.item_ids  # the title of an item without one is its id
    assert items["categories"] == [list(names or ()) for names in dataset.items["categories"].to_list()]
    assert items["interactions"] == training_counts(dataset).tolist()


def test_a_stage_that_is_run_again_replaces_its_lines(run: Run) -> None:
    dataset, _ = begin(run)
    lines = []
    for _ in range(2):
        train_stage(run, "finetune", dataset, begin(run)[1])
        lines.append([{k: v for k, v in row.items() if "second" not in k} for row in run.epochs()])
    assert len(lines[0]) == 3
    assert lines[0] == lines[1]


def test_lines_and_weights_are_written_while_the_stage_runs(run: Run) -> None:
    seen: list[tuple[int, bool]] = []

    class Watching(Callback):
        def on_epoch_end(self, record: EpochRecord, improved: bool) -> None:
            seen.append((len(run.epochs()), best_file(run.checkpoints, "finetune").exists()))

    dataset, model = begin(run)
    train_stage(run, "finetune", dataset, model, [Watching()])
    assert seen == [(1, True), (2, True), (3, True)]


def test_an_interruption_keeps_finished_epochs(run: Run) -> None:
    class Impatient(Callback):
        def on_epoch_end(self, record: EpochRecord, improved: bool) -> None:
            if record.epoch == 2:
                raise KeyboardInterrupt

    dataset, model = begin(run)
    with pytest.raises(KeyboardInterrupt):
        train_stage(run, "finetune", dataset, model, [Impatient()])
    assert [row["epoch"] for row in run.epochs()] == [1, 2]
    kept, now = load_tensors(best_file(run.checkpoints, "finetune")), weights_of(model)
    assert all(torch.equal(kept[name], now[name]) for name in now)


def test_a_missing_stage_is_an_error_that_names_it(run: Run) -> None:
    with pytest.raises(InputError, match=rf"run `msm4sr finetune {run.folder}` first"):
        restore(run, *begin(run), "finetune")


def test_a_model_without_pretraining_skips_that_stage(run: Run) -> None:
    dataset, model = begin(run)
    before = weights_of(model)
    train_stage(run, "pretrain", dataset, model)
    assert all(torch.equal(before[name], weight) for name, weight in weights_of(model).items())
    assert run.epochs() == []


DAMAGED = [
    '{"stage": "finet', "[]", "5", '{"stage": "finetune"}', "nonsense",
    '{"stage": "finetune", "epoch": 1, "seconds": "y"}', '{"stage": "finetune", "epoch": 1, "seconds": NaN}',
    '{"stage": "finetune", "epoch": 1, "seconds": 1, "ndcg@10": []}', '{"stage": [], "epoch": 1, "seconds": 1}',
]  # fmt: skip


@pytest.mark.parametrize("line", DAMAGED)
def test_a_damaged_line_is_an_error_that_names_it(run: Run, line: str) -> None:
    record = {"stage": "finetune", "epoch": 1, "seconds": 0.5, "loss": 1.0}
    (run.folder / "metrics.jsonl").write_text(json.dumps(record) + "\n" + line + "\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 2: not the record of an epoch"):
        run.epochs()


def test_no_temporary_file_remains(run: Run) -> None:
    dataset, model = begin(run)
    train_stage(run, "finetune", dataset, model)
    evaluate_stage(run, dataset, model)
    assert not [*run.folder.rglob("*.part"), *run.folder.rglob("*.unfinished")]
