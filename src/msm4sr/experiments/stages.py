"""The stages of a run, in their order: load the data, extract features, build the model, train it, restore it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from msm4sr.data.dataset import Dataset, item_categories, load_dataset, training_counts, training_histories, user_counts
from msm4sr.data.schema import changed_tables
from msm4sr.digests import file_digest
from msm4sr.dotted import flatten
from msm4sr.errors import InputError, command
from msm4sr.executors import Executor, LocalExecutor
from msm4sr.experiments.run import Run
from msm4sr.experiments.settings import RunSettings
from msm4sr.experiments.warm_start import bring_features, start_warm
from msm4sr.features.extract import Extraction
from msm4sr.features.store import Features
from msm4sr.features.store_builder import Shard
from msm4sr.files import write_text
from msm4sr.models.base import Inputs, Model, as_tensors
from msm4sr.models.registry import MODELS, build
from msm4sr.progress import NoProgress, Progress
from msm4sr.tensor_files import mapped_tensors, read_about, read_checksum
from msm4sr.training.callbacks import Callback, EpochRecord
from msm4sr.training.checkpoint import TrainingState, best_file, check_identity, last_file, read_state, set_weights
from msm4sr.training.identity import stage_identity
from msm4sr.training.settings import StageSettings
from msm4sr.training.sharding import shard_here
from msm4sr.training.stages import STAGES, can_transfer, has_stage, task_for
from msm4sr.training.trainer import Trainer, TrainerOptions

logger = logging.getLogger(__name__)

FEW = 0.5  # warn if a smaller share of the items has a modality
DATA_SPECIFIC = ("item_embedding.weight", "seen_item_bias")  # specific to the items and users of the other data


CHOSEN = (
    "model.dim",
    "model.dropout",
    "model.expert_dropout",
    "model.id_scale",
    "pretrain.epochs",
    "finetune.epochs",
    "finetune.batch_pairs",
    "finetune.learning_rate",
)


def describe_settings(run: Run, dataset: Dataset) -> None:
    """Log the settings that depend on the size of the data, and those that users change first for another size."""
    settings = run.settings.within_budget()
    values = flatten(settings.model_dump(mode="json"))
    stages = [stage for stage in STAGES if stage in MODELS[settings.model.name].tasks]
    if not stages:
        return
    shown = [key for key in CHOSEN if key.split(".")[0] in ("model", *stages) and values.get(key) is not None]
    named = [f"{key}={values[key]}" for key in shown]
    if MODELS[settings.model.name].tasks["finetune"] == "next_item":
        samples = settings.finetune.samples_of(dataset.n_items)
        named.append("softmax over all items" if samples is None else f"softmax over the batch and {samples:,} samples")
    logger.info("preset %s for this size: %s", run.preset, ", ".join(named))


def load_run_data(run: Run) -> Dataset:
    """The run's data set; logs its size, and what was dropped and why. Raises InputError if it is not there."""
    if not run.data.is_dir():
        raise InputError(
            f"{run.data}: the data of {run.folder} is no longer there; pass its new folder as --data, or "
            f"change `data:` in {run.folder / 'config.yaml'}"
        )
    dataset = load_dataset(run.data, run.settings.dataset)
    describe_data(dataset)
    return dataset


def describe_data(dataset: Dataset) -> None:
    """Log the size of a data set, what was dropped and why, and a warning if its files have changed."""
    logger.info(
        "%s: %s users, %s items, %s interactions",
        dataset.folder.name,
        *(f"{count:,}" for count in (dataset.n_users, dataset.n_items, dataset.n_interactions)),
    )
    if dataset.temporal is not None:
        logger.info("%s: %s", dataset.folder.name, dataset.split)
        users, items = (int((counts == 0).sum()) for counts in (user_counts(dataset), training_counts(dataset)))
        logger.info("%s users and %s items have no training interactions", f"{users:,}", f"{items:,}")
    for reason, count in dataset.dropped.items():
        logger.info("dropped %s %s", f"{count:,}", reason)
    for file in changed_tables(dataset.folder):
        logger.warning(
            "%s: edited or damaged since `msm4sr prepare` wrote it; its hash in provenance.json differs", file
        )


def complete_run(run: Run) -> Run:
    """The same run with no users or items held out."""
    dataset = run.settings.dataset.model_copy(update={"hold_out_items": 0.0, "hold_out_users": 0.0})
    return replace(run, settings=run.settings.model_copy(update={"dataset": dataset}))


def complete_catalogue(run: Run, dataset: Dataset) -> Dataset:
    """The data set with held-out items: features are extracted for all, so that runs can share them."""
    return load_run_data(complete_run(run)) if run.settings.dataset.hold_out_items else dataset


def extract_stage(
    run: Run,
    dataset: Dataset,
    progress: Progress = NoProgress(),
    *,
    strict: bool = False,
    merge: bool = False,
    executor: Executor = LocalExecutor(),
) -> dict[str, Features]:
    """Extract the features of all items, or read stored ones; empty for a model that uses none.

    With `strict` an image that cannot be used is an error; `merge` joins what `extract_run_shard` has encoded.
    """
    if not MODELS[run.settings.model.name].uses_features:
        return {}
    features = replace(extraction_of(run, dataset, progress, strict), executor=executor).extract(merge)
    if run.settings.dataset.hold_out_items:
        features = {modality: rows.of(dataset.item_ids) for modality, rows in features.items()}
    for modality in features:
        _describe_modality(modality, features, hasattr(run.settings.model, "score_with"))
    return features


def extract_run_shard(
    run: Run, dataset: Dataset, shard: Shard, progress: Progress = NoProgress(), *, strict: bool = False
) -> None:
    """Encode one shard of the items into the features folder; does nothing for a model that uses no features."""
    if MODELS[run.settings.model.name].uses_features:
        extraction_of(run, dataset, progress, strict).extract_shard(shard)


def extraction_of(run: Run, dataset: Dataset, progress: Progress = NoProgress(), strict: bool = False) -> Extraction:
    """What extracts the features of the items of a run, those that are held out included."""
    known = dict.fromkeys(("text", "visual", *run.precomputed))
    for modality in getattr(run.settings.model, "score_with", ()):
        if modality not in known:  # before hours of extraction
            raise InputError(f"model.score_with: unknown modality {modality!r}; choose from {', '.join(known)}")
    bring_features(run)
    return Extraction(
        complete_catalogue(run, dataset),
        run.features,
        run.settings.features,
        _unchanged_files(run),
        run.settings.device.accelerator,
        strict,
        progress,
    )


def _describe_modality(modality: str, features: Mapping[str, Features], selects: bool) -> None:
    """Log how many items have a modality; warn if most lack it. `selects`: the model has the setting `score_with`."""
    rows, n_items = features[modality], len(features[modality].item_ids)
    count = int((rows.lengths > 0).sum())
    if not count:
        logger.warning("%s: missing for every item; the model is trained without it", modality)
        return
    logger.info("%s: %s of %s items, %s vectors", modality, f"{count:,}", f"{n_items:,}", f"{rows.n_rows:,}")
    if count < FEW * n_items:
        others = ",".join(name for name, other in features.items() if name != modality and other.n_rows)
        instead = "with the missing-modality embedding" if selects else "without it"
        hint = f". To score by {others} only: --set model.score_with=[{others}]" if selects and others else ""
        lacking = f"{n_items - count:,} of {n_items:,} items lack it"
        logger.warning("%s: %s; they are trained and ranked %s%s", modality, lacking, instead, hint)


def _unchanged_files(run: Run) -> dict[str, Path]:
    """The files of precomputed embeddings. InputError for one that has changed since the run began."""
    for name, precomputed in run.precomputed.items():
        if file_digest(precomputed.file) != precomputed.sha256:
            raise InputError(
                f"{precomputed.file}: the precomputed embeddings of {name} have changed since {run.folder} began; "
                "restore the file, or create a new run with `msm4sr run`"
            )
    return {name: precomputed.file for name, precomputed in run.precomputed.items()}


def build_model(settings: RunSettings, dataset: Dataset, features: Mapping[str, Features]) -> Model:
    """A new model with random weights from the seed, or with those of another run (`pretrain.init_from`).

        model = build_model(resolve_settings("best", data="shop"), dataset, features)

    Args:
        settings: `settings.model` says which model; the global random state is not changed.
        dataset: its items, users and training interactions are the model's.
        features: as `extract_features` returns them; they are not copied.
    """
    categories, names = item_categories(dataset)
    inputs = Inputs(
        n_items=dataset.n_items,
        n_users=dataset.n_users,
        histories=as_tensors(training_histories(dataset)),
        features={name: as_tensors(rows) for name, rows in features.items()},
        categories=as_tensors(categories),
        n_categories=len(names),
        shard=shard_here(),
    )
    model = build(settings.model, inputs, settings.seed)
    if settings.pretrain.init_from is not None:
        start_from(Path(settings.pretrain.init_from), model)
    return model


def train_stage(
    run: Run, stage: str, dataset: Dataset, model: Model, callbacks: Iterable[Callback] = (), *, resume: bool = False
) -> None:
    """Train `model` in place and keep its best weights. Does nothing if model or settings lack this stage.

    With `resume` it continues from the stage's last checkpoint, if there is one.
    """
    settings = run.settings.within_budget()
    task = task_for(model, stage, settings)
    if task is None:
        return
    run.settings.device.check()  # the run may have been made on another machine
    state = read_state(run.checkpoints, stage) if resume else None
    if state is None and run.settings.warm_start.run and stage == _trained_stages(run, model)[0]:
        for line in start_warm(run, dataset, model):
            logger.info("warm start: %s", line)
    if state is not None and state.done:
        logger.info("%s: already complete, %d epochs", stage, state.epoch - 1)
        restore(run, dataset, model, stage)
        return
    if state is not None:
        logger.info("%s: resuming in epoch %d, after step %d", stage, state.epoch, state.step)
    options = TrainerOptions(
        seed=run.settings.seed,
        device=run.settings.device,
        evaluation=run.settings.evaluation,
        checkpoints=run.checkpoints,
        resume=resume,
        identity=run_identity(run, stage),
    )
    Trainer(task, getattr(settings, stage), options, [RunRecorder(run, stage, state), *callbacks]).fit(dataset)


def run_identity(run: Run, stage: str) -> dict[str, Any]:
    """What the weights of a stage depend on besides its settings: those of the model, and earlier stages."""
    decisive = flatten(run.settings.model_dump(mode="json", include={"dataset", "features", "model"}))
    pretrain, earlier = run.settings.within_budget().pretrain, best_file(run.checkpoints, "pretrain")
    if stage == "finetune":
        decisive |= flatten({"pretrain": pretrain.model_dump(mode="json", exclude={"checkpoint_every"})})
        if earlier.exists():
            decisive["pretrain.weights"] = read_checksum(earlier)
    if run.settings.warm_start.run is not None:
        decisive["warm_start.weights"] = run.settings.warm_start.weights
    if pretrain.init_from is not None:
        source = best_file(Path(pretrain.init_from) / "checkpoints", "pretrain")
        decisive |= {"pretrain.init_from": pretrain.init_from, "pretrain.init_from.weights": read_checksum(source)}
    return decisive


class RunRecorder(Callback):
    """Writes the epochs of a stage into metrics.jsonl, and warns if validation falls from the first epoch.

    The output of an earlier training of the stage is kept until the first weights are saved, so that an interruption
    loses nothing. Then the results and the later stages that were made from the old weights are removed.
    """

    def __init__(self, run: Run, stage: str, state: TrainingState | None = None) -> None:
        self._run, self._stage = run, stage
        earlier = STAGES[: STAGES.index(stage)]
        self._rows = [row for row in run.epochs() if row["stage"] in earlier] + (state.rows if state else [])
        self._select = getattr(run.settings, stage).select
        resumes = state is not None and state.best_epoch > 0
        self._writes = resumes or not best_file(run.checkpoints, stage).exists()

    def on_best(self, record: EpochRecord) -> None:
        later = STAGES[STAGES.index(self._stage) + 1 :]
        self._run.remove_results()
        for file in [path_of(self._run.checkpoints, stage) for stage in later for path_of in (best_file, last_file)]:
            file.unlink(missing_ok=True)
        self._writes = True

    def on_epoch_end(self, record: EpochRecord, improved: bool) -> None:
        self._rows.append(record.as_row())
        if self._writes:
            write_text(self._run.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self._rows))
        if record.validation and falls_from_the_start(self._rows, self._stage, self._select):
            logger.warning(
                "%s: %s on validation has fallen since the first epoch: the model forgets or overfits; try a lower "
                "%s.learning_rate or a higher model.dropout",
                self._stage,
                self._select,
                self._stage,
            )


def falls_from_the_start(rows: Sequence[Mapping[str, Any]], stage: str, metric: str) -> bool:
    """Whether the latest of these epochs is the third validated one, and validation fell twice."""
    values = [row[metric] for row in rows if row["stage"] == stage and metric in row]
    return len(values) == 3 and values[0] > values[1] > values[2]


def restore(run: Run, dataset: Dataset, model: Model, stage: str) -> None:
    """Load the best weights of a finished stage into the model.

    Raises:
        InputError: the stage has no weights, or was trained with other settings or on other items.
    """
    file, again = best_file(run.checkpoints, stage), f"run {command(stage, run.folder, '--overwrite')}"
    if not file.exists():
        missing = [name for name in _trained_stages(run, model) if not best_file(run.checkpoints, name).exists()]
        raise InputError(
            f"{run.folder}: {stage} has no trained weights yet; run {command(missing[0], run.folder)} first"
        )
    _warn_if_incomplete(run.folder, stage)
    settings: StageSettings = getattr(run.settings.within_budget(), stage)
    identity = stage_identity(model, dataset, settings, run.settings.seed) | run_identity(run, stage)
    check_identity(file, read_about(file, again), identity, again)
    weights = mapped_tensors(file, again)
    try:
        set_weights(model, weights)
    except InputError as error:
        raise InputError(f"{file}: {error}; {again}") from None


def _warn_if_incomplete(folder: Path, stage: str) -> None:
    try:
        state = read_state(folder / "checkpoints", stage)
    except InputError as error:  # only resuming needs that file
        logger.warning("%s; the weights of the best epoch are used", error)
        return
    if state is not None and not state.done:
        logger.warning(
            "%s was interrupted in epoch %d; the weights of %s are used (%s completes it)",
            stage,
            state.epoch,
            f"epoch {state.best_epoch}" if state.best_epoch else "its earlier training",
            command(stage, folder, "--resume"),
        )


def restore_last(run: Run, dataset: Dataset, model: Model, before: str | None = None) -> None:
    """Load the weights of the last stage that this run has (of those before stage `before`) into the model."""
    earlier = STAGES[: STAGES.index(before) if before else None]
    if stages := [stage for stage in _trained_stages(run, model) if stage in earlier]:
        restore(run, dataset, model, stages[-1])


def _trained_stages(run: Run, model: Model) -> list[str]:
    """The stages that the model is trained in, in order."""
    return [stage for stage in STAGES if has_stage(model, stage, run.settings.within_budget())]


def start_from(folder: Path, model: Model) -> None:
    """Load the pre-trained weights of another run into the model, except those that are specific to its data.

    Modalities that the run has and the model lacks are skipped.

    Raises:
        InputError: the model is not MSM4SR; the run has no pre-trained weights, lacks a modality of the model, or has
            another embedding dimension or model size.
    """
    if not can_transfer(model):
        raise InputError("pretrain.init_from is for msm4sr only")
    file = best_file(folder / "checkpoints", "pretrain")
    if not file.exists():
        raise InputError(f"pretrain.init_from: {folder} has no pre-trained weights ({file} does not exist)")
    _warn_if_incomplete(folder, "pretrain")
    weights = mapped_tensors(file, f"run {command('pretrain', folder, '--overwrite')}")
    there = sorted({name.split(".")[1] for name in weights if name.startswith("encoders.")})
    own = {name: weight for name, weight in model.named_parameters() if name not in DATA_SPECIFIC}
    for modality in {name.split(".")[1]: None for name in own if name.startswith("encoders.")}:
        if modality not in there:
            raise InputError(
                f"pretrain.init_from: {folder} was not pre-trained on {modality}, only on {' and '.join(there)}"
            )
        name = f"encoders.{modality}.experts.gate.weight"  # [K, D_in]
        then, now = weights[name].shape[1], own[name].shape[1]
        if then != now:
            raise InputError(
                f"pretrain.init_from: {modality} is {then}-d in {folder} and {now}-d here; both need the same encoder"
            )
    for name, weight in own.items():
        if name not in weights or weights[name].shape != weight.shape:
            shapes = [list(found[name].shape) if name in found else "absent" for found in (weights, own)]
            raise InputError(
                f"pretrain.init_from: {folder} has another model: {name} is {shapes[0]} there and {shapes[1]} here; "
                "use the same model settings"
            )
    set_weights(model, dict(model.named_parameters()) | {name: weights[name] for name in own})
