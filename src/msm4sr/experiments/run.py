"""A run is a folder; its stages read what the one before left there: extract, pretrain, finetune, evaluate.

config.yaml           data folder, features folder, vectors of one's own, preset, all settings
features/             what the frozen encoders made of the items (unless the features folder is another)
metrics.jsonl         a line an epoch
curves.png            the same lines, drawn
metrics.json          {"validation": {"ndcg@10": ...}, "test": {...}, "history_left_out": the same two where what a user
                      already took is not ranked, "run": what was run, "versions": {...}}
users.parquet         each user's rank of the target, on validation and on test: what a paired test needs
checkpoints/          pretrain.safetensors, finetune.safetensors: the weights of the best epoch of each stage;
                      pretrain.last.safetensors, ...: what an interrupted stage goes on from
model/                config.json, model.safetensors, items.json, README.md: whole without the rest
report.html           for people
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml
from rich.markup import escape
from rich.progress import Progress
from torch import Tensor

from msm4sr.data.dataset import Dataset, arrivals, item_categories, load_dataset, training_histories
from msm4sr.data.files import new_file
from msm4sr.errors import InputError
from msm4sr.evaluation.evaluate import rank_users_both
from msm4sr.evaluation.metrics import chance, mean_metrics
from msm4sr.evaluation.ranking import rank_targets
from msm4sr.evaluation.users import Part, users_table
from msm4sr.experiments.claims import CLAIM
from msm4sr.experiments.curves import write_curves
from msm4sr.experiments.machine import forget_peak, hardware, memory_peak, versions
from msm4sr.experiments.settings import RunSettings, change_settings, validate_settings
from msm4sr.experiments.transfer import start_from
from msm4sr.features.extract import extract_features, extract_shard
from msm4sr.features.own import file_hash
from msm4sr.features.parts import Shard
from msm4sr.features.store import Features
from msm4sr.models.base import Inputs, Model
from msm4sr.models.grow import grow
from msm4sr.models.msm4sr import as_tensors
from msm4sr.models.registry import MODELS, build
from msm4sr.training import stage as training
from msm4sr.training.checkpoint import check_same, flat, read_about, read_weights, set_weights
from msm4sr.training.loop import EpochRecord, Monitor, Place, Silent, StageSettings, best_file, last_file, read_place
from msm4sr.training.pretrain import PretrainTask
from msm4sr.training.s3rec import S3RecTask
from msm4sr.training.tasks import STAGES, scorer_of, task_of

Note = Callable[[str], object]
"""Is told a line, in rich's markup."""

MOST = 0.5  # a modality that fewer items have than this share of them is worth a warning
BEFORE_A_RUN = {"features", "config.yaml.part"}  # what an extraction leaves, even one that was killed at its very end
UNSEEN = (".", CLAIM)  # how the names begin of what is no content of a folder: files in the making, claims
RESULTS = ("metrics.json", "users.parquet", "report.html", "model")  # what evaluation makes of the last stage's weights


@dataclass(frozen=True)
class OwnVectors:
    """A file of vectors in place of an encoder, and its sha256 when the run began."""

    file: Path
    sha256: str


@dataclass(frozen=True)
class Run:
    """A run folder and what its config.yaml says."""

    folder: Path
    data: Path
    features: Path
    preset: str
    settings: RunSettings
    vectors: Mapping[str, OwnVectors] = field(default_factory=dict)
    """Of the modalities that come from a file of the user's."""

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics.json"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def epochs(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return read_epochs(self.folder)


def read_epochs(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; none before the first epoch has ended. InputError for half a line."""
    file = folder / "metrics.jsonl"
    if not file.exists():
        return []
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # for example half a line, of a run that was killed
            row = None
        if not (isinstance(row, dict) and {"stage", "epoch", "seconds"} <= row.keys()):
            raise InputError(f"{file}, line {number}: not the record of an epoch; delete that line")
        rows.append(row)
    return rows


def plan_run(
    data: Path,
    folder: Path,
    settings: RunSettings,
    preset: str,
    features: Path | None = None,
    overwrite: bool = False,
    vectors: Mapping[str, Path] | None = None,
) -> Run:
    """Check that a run can be made in `folder`; nothing is written, and nothing lost, before `begin_run`.

    Raises:
        InputError: the folder holds a run (and `overwrite` is off) or something else; the settings ask for a device
            that is not there; a file of vectors is not there, or its modality has no proper name.
    """
    settings.device.check()
    own = {name: own_vectors(name, file) for name, file in (vectors or {}).items()}
    if (folder / "config.yaml").exists():
        if not overwrite:
            raise InputError(
                f"{folder}: there is a run already; go on with it by --resume (or by msm4sr pretrain, finetune, "
                "evaluate), name another --out, or replace it by --overwrite (its features are kept)"
            )
    elif folder.is_dir() and not {e.name for e in folder.iterdir() if not e.name.startswith(UNSEEN)} <= BEFORE_A_RUN:
        raise InputError(f"{folder}: the folder is not empty and holds no run; name another --out")
    return Run(folder, data.absolute(), (features or folder / "features").absolute(), preset, settings, own)


def own_vectors(modality: str, file: Path) -> OwnVectors:
    """A file of vectors as it is now. InputError where it cannot be read, or the modality has no proper name."""
    # Modules are kept under the modality's name: `items`, say, would hide what a mapping of modules needs itself.
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", modality) or hasattr(torch.nn.ModuleDict(), modality):
        raise InputError(
            f"--features {modality}={file}: {modality!r} cannot name a modality; letters, digits and underscores can, "
            "for example audio"
        )
    return OwnVectors(file.absolute(), file_hash(file))


def begin_run(run: Run) -> None:
    """Write config.yaml; what a former run has left is removed, but for its features.

    A features folder inside the run is written as a relative path, so that the run can be moved. The memory that the
    run is said to take counts from here.
    """
    forget_peak()
    inside = run.features.is_relative_to(run.folder.absolute())
    features = run.features.relative_to(run.folder.absolute()) if inside else run.features
    config: dict[str, Any] = {"data": str(run.data), "features_folder": str(features), "preset": run.preset}
    if run.vectors:
        config["vectors"] = {name: {"file": str(own.file), "sha256": own.sha256} for name, own in run.vectors.items()}
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        _remove(run.folder, "metrics.jsonl", "curves.png", "logs", "checkpoints", *RESULTS)
        text = yaml.safe_dump(config | run.settings.model_dump(mode="json"), sort_keys=False)
        _write(run.folder / "config.yaml", text)
    except OSError as error:
        raise InputError(f"{run.folder}: cannot be written ({error.strerror})") from None


def resume_run(
    data: Path,
    folder: Path,
    settings: RunSettings,
    features: Path | None = None,
    vectors: Mapping[str, Path] | None = None,
) -> Run:
    """The run that stands in `folder`, to go on with. InputError when it is not one of this data and these settings."""
    run = open_run(folder)
    now = flat(settings.model_dump(mode="json")) | {"data": str(data.absolute())}
    then = flat(run.settings.model_dump(mode="json")) | {"data": str(run.data)}
    if features is not None:
        now, then = now | {"--features": str(features.absolute())}, then | {"--features": str(run.features)}
    now |= {f"--features {name}": file_hash(file) for name, file in (vectors or {}).items()}
    then |= {f"--features {name}": own.sha256 for name, own in run.vectors.items()}
    differing = [
        f"{key} is {then.get(key)} there and {now.get(key)} now" for key in now | then if then.get(key) != now.get(key)
    ]
    if differing:
        raise InputError(
            f"{folder}: cannot go on with this run: {'; '.join(differing[:3])}; give the options that it was begun "
            "with, or start anew by --overwrite"
        )
    settings.device.check()
    forget_peak()
    return run


def open_run(folder: Path, changes: Sequence[str] = ()) -> Run:
    """Read the run that stands in `folder`, with `key=value` changes of its settings that are for this time only.

    InputError when there is none or its config.yaml is damaged.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        raise InputError(f"{folder}: there is no run here (no config.yaml); `msm4sr run DATA --out {folder}` makes one")
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        data, features, preset = (config.pop(key) for key in ("data", "features_folder", "preset"))
        data, features = Path(data), Path(features)
        vectors = {
            name: OwnVectors(Path(own["file"]), str(own["sha256"])) for name, own in config.pop("vectors", {}).items()
        }
    except OSError as error:
        raise InputError(f"{file}: not readable ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not a run's settings ({type(error).__name__}: {error})") from None
    settings = change_settings(validate_settings(config, str(file)), changes)
    return Run(folder, data, folder.absolute() / features, preset, settings, vectors)


def tidy(run: Run) -> None:
    """Remove the folders of a run that did not begin, where they are empty."""
    for folder in (run.features, run.folder):
        with suppress(OSError):  # not empty, or not there
            folder.rmdir()


def load_run_data(run: Run, note: Note = lambda line: None) -> Dataset:
    """The run's data set; tells `note` what was dropped and why."""
    dataset = load_dataset(run.data, run.settings.dataset)
    describe_data(dataset, note)
    return dataset


def describe_data(dataset: Dataset, note: Note) -> None:
    """How much there is, and what was dropped and why."""
    note(
        f"{escape(dataset.folder.name)}: {dataset.n_users:,} users, {dataset.n_items:,} items, "
        f"{dataset.n_interactions:,} interactions"
    )
    for reason, count in dataset.dropped.items():
        note(f"dropped {count:,} {reason}")


# -- the stages ------------------------------------------------------------------------------------------------------


def extract_stage(
    run: Run,
    dataset: Dataset,
    progress: Progress | None = None,
    note: Note = lambda line: None,
    *,
    strict: bool = False,
    merge: bool = False,
) -> dict[str, Features]:
    """Features of all items, computed or read again; empty for a model that reads none.

    `strict`: a picture that cannot be used is an error; `merge`: join what `shard_stage` has encoded.
    """
    if not MODELS[run.settings.model.name].uses_features:
        return {}
    vectors = _unchanged_vectors(run)
    features = extract_features(
        whole_catalogue(run, dataset),
        run.features,
        run.settings.features,
        progress,
        vectors=vectors,
        device=run.settings.device.accelerator,
        strict=strict,
        merge=merge,
    )
    if run.settings.dataset.hold_out_items:
        features = {modality: rows.of(dataset.item_ids) for modality, rows in features.items()}
    for modality, rows in features.items():
        there = rows.n_items_with_rows
        if there:
            note(f"{modality}: {there:,} of {dataset.n_items:,} items, {rows.n_rows:,} vectors")
        if 0 < there < MOST * dataset.n_items:
            without = "; else try without it, by --set model.score_with" if run.settings.model.name == "msm4sr" else ""
            note(
                f"[yellow]{modality}: missing for most items; mend items.parquet (and images/) if they should have "
                f"it{without}[/yellow]"
            )
        if not there:
            note(f"[yellow]{modality}: missing for every item; the model is trained without it[/yellow]")
    return features


def shard_stage(
    run: Run, dataset: Dataset, shard: Shard, progress: Progress | None = None, *, strict: bool = False
) -> None:
    """Encode one shard of the items into the features folder; nothing for a model that reads no features."""
    if MODELS[run.settings.model.name].uses_features:
        vectors = _unchanged_vectors(run)
        device = run.settings.device.accelerator
        extract_shard(
            whole_catalogue(run, dataset),
            run.features,
            shard,
            run.settings.features,
            progress,
            vectors=vectors,
            device=device,
            strict=strict,
        )


def whole_run(run: Run) -> Run:
    """The run as if nothing were held out."""
    dataset = run.settings.dataset.model_copy(update={"hold_out_items": 0.0, "hold_out_users": 0.0})
    return replace(run, settings=run.settings.model_copy(update={"dataset": dataset}))


def whole_catalogue(run: Run, dataset: Dataset) -> Dataset:
    """The data set with the items that are held out: features are those of all, so that runs can share them."""
    return load_run_data(whole_run(run)) if run.settings.dataset.hold_out_items else dataset


def _unchanged_vectors(run: Run) -> dict[str, Path]:
    """The files of the user's own vectors. InputError where one is no longer what it was when the run began."""
    for name, own in run.vectors.items():
        if file_hash(own.file) != own.sha256:
            raise InputError(
                f"{own.file}: the vectors of {name} have changed since {run.folder} was made; put the file back, or "
                "make a run from the new ones with `msm4sr run`"
            )
    return {name: own.file for name, own in run.vectors.items()}


def build_model(settings: RunSettings, dataset: Dataset, features: Mapping[str, Features]) -> Model:
    """A new model with the weights that the seed draws, or with those of another run (`pretrain.init_from`)."""
    taken = training_histories(dataset)
    categories, names = item_categories(dataset)
    inputs = Inputs(
        n_items=dataset.n_items,
        n_users=dataset.n_users,
        histories=(torch.from_numpy(taken.values.astype(np.int64)), torch.from_numpy(taken.offsets)),
        features=as_tensors(features),
        categories=(torch.from_numpy(categories.values.astype(np.int64)), torch.from_numpy(categories.offsets)),
        n_categories=len(names),
    )
    model = build(settings.model, inputs, settings.seed)
    if settings.pretrain.init_from is not None:
        start_from(Path(settings.pretrain.init_from), model)
    return model


def train_stage(
    run: Run,
    stage: str,
    dataset: Dataset,
    model: Model,
    monitor: Monitor = Silent(),
    note: Note = lambda line: None,
    resume: bool = False,
) -> None:
    """Train `model` in place and keep its best weights; nothing for a model or settings without this stage.

    With `resume` it goes on from the stage's last checkpoint, where there is one.
    """
    settings: StageSettings = getattr(run.settings, stage)
    task = task_of(stage, model, run.settings)
    if task is None:
        return
    run.settings.device.check()  # the run may have come from another machine
    if isinstance(task, PretrainTask) and len(task.model.modalities) == 1:
        note(f"pre-training on {task.model.modalities[0]} alone: nothing to mix or to contrast")
    if isinstance(task, S3RecTask) and not task.model.categories.n_categories:
        note("no item has a category: pre-training without associated and masked attributes")
    place = read_place(run.checkpoints, stage) if resume else None
    if place is not None and place.done:
        note(f"{stage}: done already, {place.epoch - 1} epochs")
    elif place is not None:
        note(f"{stage}: goes on in epoch {place.epoch}, after step {place.step}")
    keep = _Keeper(run, stage, monitor, note, place)
    training.train_stage(
        stage,
        task,
        dataset,
        settings,
        seed=run.settings.seed,
        evaluation=run.settings.evaluation,
        device=run.settings.device,
        monitor=keep,
        on_best=keep.weights,
        checkpoints=run.checkpoints,
        resume=resume,
        identity=_identity(run),
    )
    if run.settings.device.is_first:
        chose = {name: getattr(run.settings, name).select for name in STAGES}
        write_curves(run.epochs(), chose, run.folder / "curves.png")


def _identity(run: Run) -> dict[str, Any]:
    """What weights depend on beside the settings of their stage."""
    decides = run.settings.model_dump(mode="json", include={"dataset", "features", "model"})
    if run.settings.pretrain.end_to_end:
        decides["pretrain"] = run.settings.pretrain.model_dump(mode="json", exclude={"checkpoint_every"})
    elif run.settings.pretrain.init_from is not None:
        decides["pretrain"] = run.settings.pretrain.model_dump(mode="json", include={"init_from"})
    return flat(decides)


def evaluate_stage(
    run: Run, dataset: Dataset, model: Model, on_progress: Callable[[int], object] = lambda users: None
) -> dict[str, Any]:
    """Validation and test metrics into metrics.json, each user's ranks into users.parquet, and the model folder.

    metrics.json comes after users.parquet: where the one is, the other is.

    `on_progress` is told how many users were ranked since the last call, twice `dataset.n_users` in all.
    """
    settings = run.settings
    epochs = run.epochs()
    excludes = settings.evaluation.exclude_history or not model.ranks_history
    device = settings.device.torch_device()
    model.to(device)
    scorer = scorer_of(model, settings)
    parts: tuple[Part, ...] = ("validation", "test")
    ranks = {part: rank_users_both(scorer, dataset, part, settings.evaluation, on_progress) for part in parts}
    result: dict[str, Any] = {part: mean_metrics(rank) for part, (rank, _) in ranks.items()}
    result["history_left_out"] = {part: mean_metrics(left_out) for part, (_, left_out) in ranks.items()}
    if settings.dataset.hold_out_items:
        result["held_out"] = evaluate_arrivals(run, dataset, model)
    result["run"] = {
        "data": dataset.folder.name,
        "users": dataset.n_users,
        "items": dataset.n_items,
        "interactions": dataset.n_interactions,
        "model": settings.model.name,
        "preset": run.preset,
        "seed": settings.seed,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "protocol": "leave-one-out, full ranking, "
        + ("history never ranked" if excludes else "history ranked like any item"),
        "training_seconds": {
            stage: round(sum(row["seconds"] for row in epochs if row["stage"] == stage), 1) for stage in STAGES
        },
        "peak_memory_mib": round(memory_peak()),
        "hardware": hardware(device),
    }
    if device.type == "cuda":
        result["run"]["peak_gpu_memory_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
    result["versions"] = versions()
    if scorer is not model:
        result["run"]["protocol"] += ", not fine-tuned"
    with new_file(run.folder / "users.parquet") as file:
        users_table(dataset, ranks).write_parquet(file)
    save_model(run, dataset, model, result)
    _write(run.metrics_file, json.dumps(result, indent=2) + "\n")  # last: a run that has it is whole
    return result


def evaluate_arrivals(run: Run, dataset: Dataset, model: Model) -> dict[str, Any]:
    """How the items that were held out are recommended when they arrive, to the users who took one of them last.

    The model is not trained again: of the new items it knows the content, and whatever it has for each item alone is 0.
    They are ranked among all items, and among one another; chance stands beside.
    """
    settings, whole = run.settings, whole_catalogue(run, dataset)
    targets = arrivals(whole, dataset)
    if not len(targets.targets):
        raise InputError(f"{run.data}: no user's last item is held out; raise dataset.hold_out_items")
    place = {name: row for row, name in enumerate(whole.item_ids)}
    known = np.array([place[name] for name in dataset.item_ids], dtype=np.int64)
    new = ~np.isin(np.arange(whole.n_items), known)
    _, names = item_categories(dataset)
    catalogue = replace(
        dataset,
        item_ids=whole.item_ids,
        values=known[dataset.values].astype(np.int32),
        items=_with_categories(whole.items, set(names)),  # the model knows no others
    )
    grown = build_model(settings, catalogue, extract_stage(whole_run(run), whole))
    grow(model, grown, torch.from_numpy(known))
    grown.to(settings.device.torch_device()).eval()
    scorer = scorer_of(grown, settings)
    excludes = settings.evaluation.exclude_history or not model.ranks_history
    ranks = {
        name: rank_targets(scorer, targets, exclude_history=excludes, among=among)
        for name, among in (("among_all", None), ("among_held_out", new))
    }
    return {
        "users": len(targets.targets),
        "items": int(new.sum()),
        **{name: mean_metrics(rank) for name, rank in ranks.items()},
        "chance_among_all": chance(whole.n_items),
        "chance_among_held_out": chance(int(new.sum())),
    }


def _with_categories(items: pl.DataFrame, known: set[str]) -> pl.DataFrame:
    """The items with those of their categories that are known."""
    left = [[name for name in names or () if name in known] for names in items["categories"].to_list()]
    return items.with_columns(pl.Series("categories", left, dtype=pl.List(pl.String)))


def save_model(run: Run, dataset: Dataset, model: Model, result: Mapping[str, Any]) -> None:
    """The model folder: weights, settings, the items in row order, and a card that says what it is."""
    folder = run.folder / "model"
    model.save_pretrained(folder)
    titles = [title or item for title, item in zip(dataset.items["title"], dataset.item_ids, strict=True)]
    _write(
        folder / "items.json",
        json.dumps({"item_ids": dataset.item_ids, "titles": titles}, ensure_ascii=False),
    )
    rows = "\n".join(
        f"| {name} | {result['validation'][name]:.4f} | {result['test'][name]:.4f} |" for name in result["test"]
    )
    about, kind = result["run"], type(model).__name__
    _write(
        folder / "README.md",
        f"# {about['model']} on {about['data']}\n\n"
        f"Trained by msm4sr, preset `{about['preset']}`, seed {about['seed']}, on "
        f"{about['users']:,} users, {about['items']:,} items and {about['interactions']:,} interactions. "
        f"{about['parameters']:,} weights. Protocol: {about['protocol']}.\n\n"
        f"| metric | validation | test |\n|---|---|---|\n{rows}\n\n"
        f"`from msm4sr import {kind}; {kind}.from_pretrained(folder)` reads it. "
        "`items.json` names the items in row order.\n",
    )


def read_item_names(run: Run) -> tuple[list[str], list[str]]:
    """Ids and titles of the items of the stored model, in row order. InputError where they are not there."""
    file = run.folder / "model" / "items.json"
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
        return names["item_ids"], names["titles"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not readable ({type(error).__name__}); `msm4sr evaluate RUN` makes it") from None


def check_items(run: Run, dataset: Dataset) -> None:
    """InputError when the data no longer has the items, in the order, that the stored model was trained on."""
    stored, _ = read_item_names(run)
    if stored != dataset.item_ids:
        raise InputError(
            f"{run.data}: the items are no longer those that {run.folder / 'model'} was trained on "
            f"({len(stored):,} then, {dataset.n_items:,} now, or in another order); train again with `msm4sr run`"
        )


def restore(run: Run, dataset: Dataset, model: Model, stage: str) -> None:
    """Put the best weights of a finished stage into the model.

    InputError when the stage has left none, or was run with other settings or on other items.
    """
    file = best_file(run.checkpoints, stage)
    if not file.exists():
        raise InputError(f"{run.folder}: {stage} has left nothing here; `msm4sr {stage} {run.folder}` comes first")
    weights, about = read_weights(file), read_about(file)
    settings: StageSettings = getattr(run.settings, stage)
    now = training.identity_of(stage, settings, dataset.item_ids, run.settings.seed) | _identity(run)
    try:
        check_same(about.get("identity", {}), now)
        set_weights(model, weights)
    except InputError as error:
        raise InputError(f"{file}: {error}; `msm4sr {stage} {run.folder}` makes it anew") from None


def restore_last(run: Run, dataset: Dataset, model: Model, before: str | None = None) -> None:
    """Put the weights of the last stage that this run has (of those before stage `before`) into the model."""
    earlier = STAGES[: STAGES.index(before) if before else None]
    stages = [stage for stage in earlier if task_of(stage, model, run.settings)]
    if stages:
        restore(run, dataset, model, stages[-1])


def falls_from_the_start(rows: Sequence[Mapping[str, Any]], stage: str, metric: str) -> bool:
    """Whether the latest of these epochs is the third one validated, and each of the three was worse than before."""
    values = [row[metric] for row in rows if row["stage"] == stage and metric in row]
    return len(values) == 3 and values[0] > values[1] > values[2]


class _Keeper:
    """Writes the epochs of a stage as they come, and passes all on.

    What the stage left when it ran before stays until there are better weights to put in its place: an interruption
    loses nothing. From then on the results that were made of the old weights are gone.
    """

    def __init__(self, run: Run, stage: str, monitor: Monitor, note: Note, place: Place | None = None) -> None:
        self._run, self._stage, self._monitor, self._note = run, stage, monitor, note
        earlier = STAGES[: STAGES.index(stage)]
        self._rows = [row for row in run.epochs() if row["stage"] in earlier] + (place.rows if place else [])
        self._select = getattr(run.settings, stage).select
        begun = place is not None and place.best_epoch > 0
        self._begun = begun or not best_file(run.checkpoints, stage).exists()

    def weights(self, weights: dict[str, Tensor], record: EpochRecord) -> None:
        """Better weights are about to be written."""
        later = STAGES[STAGES.index(self._stage) + 1 :]
        files = [file(self._run.checkpoints, stage).name for stage in later for file in (best_file, last_file)]
        _remove(self._run.folder, *RESULTS)
        _remove(self._run.checkpoints, *files)
        self._begun = True

    def start(self, stage: str, epochs: int, steps: int, done: int) -> None:
        self._monitor.start(stage, epochs, steps, done)

    def step(self, stage: str, epoch: int, loss: float, steps: int, pairs_per_second: float) -> None:
        self._monitor.step(stage, epoch, loss, steps, pairs_per_second)

    def epoch(self, record: EpochRecord, best: bool) -> None:
        self._rows.append(record.as_row())
        if self._begun:
            _write(self._run.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self._rows))
        self._monitor.epoch(record, best)
        if record.validation and falls_from_the_start(self._rows, self._stage, self._select):
            self._note(
                f"[yellow]{self._stage}: {self._select} on validation falls from the first epoch on: the model forgets "
                f"or overfits; try a lower {self._stage}.learning_rate or a higher model.dropout[/yellow]"
            )

    def finish(self, stage: str) -> None:
        self._monitor.finish(stage)


def _remove(folder: Path, *names: str) -> None:
    for name in names:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    part = file.with_name(file.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)
