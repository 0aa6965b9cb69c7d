"""Warm start: what a run takes over from the finished run that it continues."""

from __future__ import annotations

import shutil
from pathlib import Path

from msm4sr.data.dataset import Dataset
from msm4sr.dotted import differences, flatten
from msm4sr.errors import InputError, command
from msm4sr.experiments.model_folder import read_row_ids, row_ids
from msm4sr.experiments.run import Run, open_run
from msm4sr.files import atomic_folder
from msm4sr.models.base import Model, RowKind
from msm4sr.models.carry_over import Common, carry_over
from msm4sr.tensor_files import mapped_tensors, read_checksum


def bring_features(run: Run) -> None:
    """Copy the features of the run that a warm start continues, so that only what has changed is extracted."""
    source = Path(run.settings.warm_start.run or "")
    if run.settings.warm_start.run is None or run.features.exists() or not (source / "config.yaml").exists():
        return
    stores = [manifest.parent for manifest in open_run(source).features.glob("*/manifest.json")]
    if stores:
        with atomic_folder(run.features) as folder:
            for store in stores:
                shutil.copytree(store, folder / store.name)


def start_warm(run: Run, dataset: Dataset, model: Model) -> list[str]:
    """`warm_start` from the run that this one continues. Raises InputError if that has changed since this one began."""
    start = run.settings.warm_start
    source = open_run(Path(start.run or ""))
    file = source.folder / "model" / "model.safetensors"
    if read_checksum(file, _remedy(source)) != start.weights:
        raise InputError(
            f"warm start from {source.folder}: its model has changed since {run.folder} began; start again with "
            "--overwrite"
        )
    return warm_start(source.folder, model, dataset)


def warm_start(folder: str | Path, model: Model, dataset: Dataset) -> list[str]:
    """Copy the weights of a finished run into a new model of the same settings over another data set.

        warm_start("runs/monday", model, dataset)
        finetune(model, dataset, FinetuneSettings(epochs=2))

    Items, users and categories are found by their ids; `models.carry_over` has the rules.

    Args:
        folder: the run folder.
        model: a model over `dataset`.
        dataset: with the ids of the model's items and users.

    Returns:
        How many items, users and categories continue, are new or have left: a line each.

    Raises:
        InputError: there is no finished run, or it has another model or other items.
    """
    source = open_run(Path(folder))
    where = f"warm start from {folder}"
    then, now = read_row_ids(source), row_ids(dataset, model)
    if lacking := set(now) - set(then):
        raise InputError(f"{where}: the ids of its {' and '.join(sorted(lacking))} are not stored; {_remedy(source)}")
    common: dict[RowKind, Common] = {kind: Common.of(then[kind], now[kind]) for kind in now}
    if "items" in common and not len(common["items"]):
        raise InputError(f"{where}: none of its items is in {dataset.folder}; it needs the same item ids")
    kept_inputs = model.state_dict().keys() - dict(model.named_parameters()).keys()
    stored = mapped_tensors(source.folder / "model" / "model.safetensors", _remedy(source))
    try:
        weights = {name: tensor for name, tensor in stored.items() if name not in kept_inputs}
        carry_over(weights, model, common, zero_new=model.zero_new_rows)
    except InputError as error:
        ours, theirs = (flatten(one.model_dump(mode="json")) for one in (model.config, source.settings.model))
        settings = "; ".join(f"model.{line}" for line in differences(theirs, ours))
        raise InputError(f"{where}: the models differ: {settings or error}; use the same model and features") from None
    return [
        f"{kind}: {len(rows):,} continue with their weights, {len(now[kind]) - len(rows):,} are new, "
        f"{len(then[kind]) - len(rows):,} have left"
        for kind, rows in common.items()
    ]


def _remedy(source: Run) -> str:
    return f"{command('evaluate', source.folder)} writes it again"
