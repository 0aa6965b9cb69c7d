"""From a data set to features: texts and images through frozen encoders, once, stored (equations 1, 2)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msm4sr.features.encoders import Encoders
from msm4sr.features.extractors.base import EXTRACTORS, Extraction
from msm4sr.features.settings import FeatureSettings
from msm4sr.features.store import Features
from msm4sr.features.store_builder import Shard
from msm4sr.progress import NoProgress, Progress

if TYPE_CHECKING:
    from msm4sr.data.dataset import Dataset


def extract_features(
    dataset: Dataset,
    out: str | Path,
    settings: FeatureSettings = FeatureSettings(),
    progress: Progress = NoProgress(),
    *,
    precomputed: Mapping[str, Path] = {},
    device: str = "auto",
    strict: bool = False,
    merge: bool = False,
) -> dict[str, Features]:
    """Extract the features of every item, or read what was extracted before.

    Each modality and encoder has a folder under `out` (see `store`): `text-minilm/`,
    `visual-pooled-efficientnet-lite0/`, `visual-keywords-offline-minilm/`. Only items whose content is new or changed
    are encoded, chunk by chunk, so that a killed run loses one chunk at most. An item without text (without a readable
    image) has no rows.

    Args:
        dataset: the items.
        out: the features folder. Several processes may use it at once.
        settings: encoders, and how much is read.
        progress: shows the items that are done.
        precomputed: modality to a Parquet file of precomputed embeddings (see `precomputed`), in place of an encoder,
            or for a further modality. Such a modality reads neither texts nor images.
        device: where the encoders run: "cpu", "cuda", ...; "auto" uses a GPU if there is one.
        strict: an image that cannot be used is an error.
        merge: join what `extract_shard` encoded, and encode nothing.

    Returns:
        Features of "text", "visual" and each modality of `precomputed`; entry i is item `dataset.item_ids[i]`.

    Raises:
        InputError: an encoder that cannot be loaded, embeddings that cannot be used, with `strict` an image that cannot
            be used, with `merge` a missing shard.
    """
    encoders = Encoders(settings, device)
    job = Extraction(dataset, Path(out), settings, encoders, precomputed, progress, strict, merge)
    job.out.mkdir(parents=True, exist_ok=True)
    # Precomputed embeddings first: errors in their files appear at once.
    order = sorted(job.kinds, key=lambda modality: job.kinds[modality] != "precomputed")
    found = {modality: EXTRACTORS[job.kinds[modality]](job, modality).extract() for modality in order}
    return {modality: found[modality] for modality in job.kinds}


def extract_shard(
    dataset: Dataset,
    out: str | Path,
    shard: Shard,
    settings: FeatureSettings = FeatureSettings(),
    progress: Progress = NoProgress(),
    *,
    precomputed: Mapping[str, Path] = {},
    device: str = "auto",
    strict: bool = False,
) -> None:
    """Encode one shard of the items; `extract_features(merge=True)` joins them when all shards are in `out`.

    Only the images of the items of the shard are read. For the arguments see `extract_features`.
    """
    encoders = Encoders(settings, device)
    job = Extraction(dataset, Path(out), settings, encoders, precomputed, progress, strict)
    job.out.mkdir(parents=True, exist_ok=True)
    for modality, kind in job.kinds.items():
        EXTRACTORS[kind](job, modality).extract_shard(shard)
