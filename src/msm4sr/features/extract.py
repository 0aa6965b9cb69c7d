"""From a data set to features: texts and images through frozen encoders, once, stored (equations 1, 2)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msm4sr.features.extractors.base import Extraction
from msm4sr.features.settings import FeatureSettings
from msm4sr.features.store import Features
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
) -> dict[str, Features]:
    """Extract the features of every item, or read what was extracted before.

    Each modality and encoder has a folder under `out` (see `store`): `text-minilm/`,
    `visual-pooled-efficientnet-lite0/`, `visual-keywords-offline-minilm/`. Only items whose content is new or changed
    are encoded, chunk by chunk, so that a killed run loses one chunk at most. An item without text (without a readable
    image) has no rows.

    Args:
        dataset: the items.
        out: the features folder.
        settings: encoders, and how much is read.
        progress: shows the items that are done.
        precomputed: modality to a Parquet file of precomputed embeddings; see `Extraction`.
        device: where the encoders run; see `Extraction`.
        strict: an image that cannot be used is an error.

    Returns:
        Features of "text", "visual" and each modality of `precomputed`; entry i is item `dataset.item_ids[i]`.

    Raises:
        InputError: an encoder that cannot be loaded, embeddings that cannot be used, or with `strict` an image that
            cannot be used.
    """
    return Extraction(dataset, Path(out), settings, precomputed, device, strict, progress).extract()
