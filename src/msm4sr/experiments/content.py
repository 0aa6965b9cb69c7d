"""The content of items as vectors, by which the diversity of recommended lists is measured."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from msm4sr.data.dataset import Dataset
from msm4sr.experiments.run import Run
from msm4sr.experiments.stages import extraction_of
from msm4sr.features.content import keywords_digest
from msm4sr.features.settings import store_names
from msm4sr.models.registry import MODELS


def content_modality(dataset: Dataset) -> str:
    """The modality that describes the content: texts, or images where no item has a title or a text."""
    has_text = dataset.items["title"].count() + dataset.items["text"].count()
    return "text" if has_text else "visual"


def content_vectors(run: Run, dataset: Dataset, extract: bool = False) -> npt.NDArray[np.float32] | None:
    """The mean of each item's embeddings from the frozen encoder, float32 [items, dim]; 0 for an item without any.

    All models are compared by the same vectors, whatever they were trained on. They are read from the features folder
    of the run. They are not extracted for a model that uses none, unless `extract`: that may take hours.

    Returns:
        None where there are no features of the items.
    """
    modality = content_modality(dataset)
    folder = run.features / store_names(run.settings.features, run.precomputed)[modality]
    needed = extract or MODELS[run.settings.model.name].uses_features
    if not needed and not (folder / "manifest.json").exists():
        return None
    job = extraction_of(run, dataset)
    stored = job.extract_one(modality) if needed else job.find_one(modality)
    if stored is None or not stored.n_rows:
        return None
    rows = stored.of(dataset.item_ids)
    means, there = np.zeros((len(rows), rows.dim), np.float32), np.flatnonzero(rows.lengths)
    means[there] = np.add.reduceat(rows.values, rows.offsets[there], axis=0)
    means[there] /= rows.lengths[there, None]
    return means


def run_keywords(run: Run) -> str | None:
    """The `keywords_digest` of a run's features folder; None for a run without keywords."""
    finds = run.settings.features.visual.kind == "keywords" and "visual" not in run.precomputed
    return keywords_digest(run.features, run.settings.features) if finds else None
