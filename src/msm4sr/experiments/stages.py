"""The stages of a run: extract, pretrain, finetune, evaluate."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.progress import Progress
from torch import Tensor

from msm4sr.data.dataset import Dataset, item_categories, load_dataset, training_histories
from msm4sr.dotted import flatten
from msm4sr.errors import InputError
from msm4sr.experiments.run import Note, Run
from msm4sr.experiments.settings import RunSettings, feature_tensors
from msm4sr.experiments.transfer import start_from
from msm4sr.features.chunks import Shard
from msm4sr.features.extract import extract_features, extract_shard
from msm4sr.features.precomputed import file_hash
from msm4sr.features.store import Features
from msm4sr.files import write_text
from msm4sr.models.base import Inputs, Model, as_tensors
from msm4sr.models.registry import MODELS, build
from msm4sr.training import stage as training
from msm4sr.training.checkpoint import check_same, read_about, read_weights, set_weights
from msm4sr.training.pretrain import PretrainTask
from msm4sr.training.s3rec import S3RecTask
from msm4sr.training.tasks import STAGES, task_of
from msm4sr.training.trainer import EpochRecord, Monitor, Place, Silent, StageSettings, best_file, last_file, read_place

MOST = 0.5  # a modality that fewer items have than this share of them is worth a warning


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
    vectors = _unchanged_files(run)
    features = extract_features(
        complete_catalogue(run, dataset),
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
        vectors = _unchanged_files(run)
        device = run.settings.device.accelerator
        extract_shard(
            complete_catalogue(run, dataset),
            run.features,
            shard,
            run.settings.features,
            progress,
            vectors=vectors,
            device=device,
            strict=strict,
        )


def complete_run(run: Run) -> Run:
    """The run as if nothing were held out."""
    dataset = run.settings.dataset.model_copy(update={"hold_out_items": 0.0, "hold_out_users": 0.0})
    return replace(run, settings=run.settings.model_copy(update={"dataset": dataset}))


def complete_catalogue(run: Run, dataset: Dataset) -> Dataset:
    """The data set with the items that are held out: features are those of all, so that runs can share them."""
    return load_run_data(complete_run(run)) if run.settings.dataset.hold_out_items else dataset


def _unchanged_files(run: Run) -> dict[str, Path]:
    """The files of precomputed embeddings. Raises InputError for one that has changed since the run began."""
    for name, found in run.precomputed.items():
        if file_hash(found.file) != found.sha256:
            raise InputError(
                f"{found.file}: the vectors of {name} have changed since {run.folder} was made; put the file back, or "
                "make a run from the new ones with `msm4sr run`"
            )
    return {name: found.file for name, found in run.precomputed.items()}


def build_model(settings: RunSettings, dataset: Dataset, features: Mapping[str, Features]) -> Model:
    """A new model with the weights that the seed draws, or with those of another run (`pretrain.init_from`)."""
    categories, names = item_categories(dataset)
    inputs = Inputs(
        n_items=dataset.n_items,
        n_users=dataset.n_users,
        histories=as_tensors(training_histories(dataset)),
        features=feature_tensors(features),
        categories=as_tensors(categories),
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


def _identity(run: Run) -> dict[str, Any]:
    """What weights depend on beside the settings of their stage."""
    decides = run.settings.model_dump(mode="json", include={"dataset", "features", "model"})
    if run.settings.pretrain.end_to_end:
        decides["pretrain"] = run.settings.pretrain.model_dump(mode="json", exclude={"checkpoint_every"})
    elif run.settings.pretrain.init_from is not None:
        decides["pretrain"] = run.settings.pretrain.model_dump(mode="json", include={"init_from"})
    return flatten(decides)


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
        files = [path_of(self._run.checkpoints, stage) for stage in later for path_of in (best_file, last_file)]
        self._run.remove_results()
        for file in files:
            file.unlink(missing_ok=True)
        self._begun = True

    def start(self, stage: str, epochs: int, steps: int, done: int) -> None:
        self._monitor.start(stage, epochs, steps, done)

    def step(self, stage: str, epoch: int, loss: float, steps: int, pairs_per_second: float) -> None:
        self._monitor.step(stage, epoch, loss, steps, pairs_per_second)

    def epoch(self, record: EpochRecord, best: bool) -> None:
        self._rows.append(record.as_row())
        if self._begun:
            write_text(self._run.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self._rows))
        self._monitor.epoch(record, best)
        if record.validation and falls_from_the_start(self._rows, self._stage, self._select):
            self._note(
                f"[yellow]{self._stage}: {self._select} on validation falls from the first epoch on: the model forgets "
                f"or overfits; try a lower {self._stage}.learning_rate or a higher model.dropout[/yellow]"
            )

    def finish(self, stage: str) -> None:
        self._monitor.finish(stage)
