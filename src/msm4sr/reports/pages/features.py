"""A page of items with what their features were made from: images, keywords with scores, sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from msm4sr.data.dataset import Dataset
from msm4sr.data.items import Item
from msm4sr.errors import InputError
from msm4sr.features.store import Features, load_features, read_manifest, read_missing, read_rows
from msm4sr.features.text import item_sentences
from msm4sr.reports.pages.page import render
from msm4sr.reports.pages.thumbnails import Thumbnails


@dataclass(frozen=True)
class ItemSection:
    """What the page shows of an item."""

    item: Item  # with its sentences, if the text was encoded
    keywords: dict[str, list[tuple[str, float]]] = field(default_factory=dict)  # image to its keywords with scores
    notes: dict[str, None] = field(default_factory=dict)  # what it lacks, and why: a set in its order


def features_page(dataset: Dataset, stores: Sequence[Path], n_items: int, seed: int = 0) -> str:
    """One HTML page with `n_items` items drawn from those that have any features, in the order of the catalogue.

    Raises InputError where none of the items has features.
    """
    manifests = {
        folder: manifest
        for folder in stores
        if (manifest := read_manifest(folder)) is not None and manifest["modality"] != "words"
    }
    row = {item_id: item for item, item_id in enumerate(dataset.item_ids)}
    stored = {folder: load_features(folder) for folder in manifests}
    with_rows = ((rows, np.flatnonzero(np.diff(rows.offsets)).tolist()) for rows in stored.values())
    encoded = row.keys() & {rows.item_ids[item] for rows, items in with_rows for item in items}
    if not encoded:
        raise InputError(
            f"{dataset.folder}: none of its items has features in {', '.join(map(str, stores)) or 'there'}"
        )
    chosen = sorted(row[item_id] for item_id in encoded)
    drawn = np.random.default_rng(seed).choice(chosen, min(n_items, len(chosen)), replace=False)
    shown = {
        dataset.item_ids[row]: ItemSection(_item(dataset, row, manifests.values())) for row in sorted(drawn.tolist())
    }
    for folder, manifest in manifests.items():
        for item_id, image, reason in read_missing(folder).select("item_id", "image", "reason").iter_rows():
            if item_id in shown:
                shown[item_id].notes[f"{manifest['modality'] if image is None else image}: {reason}"] = None
        if manifest["kind"] == "keywords":
            _add_keywords(shown, stored[folder], read_rows(folder))
    return render(
        "features.html.jinja",
        title=f"Features of {dataset.folder.absolute().name}",
        shown=list(shown.values()),
        n_encoded=len(encoded),
        facts=[(manifest["modality"], _fact(manifest)) for manifest in manifests.values()],
        has_keywords=any(manifest["kind"] == "keywords" for manifest in manifests.values()),
        thumbnails=Thumbnails(dataset.folder),
    )


def _item(dataset: Dataset, row: int, manifests: Iterable[Mapping[str, Any]]) -> Item:
    item = Item.from_row(dataset.items, row)
    for manifest in manifests:
        if manifest["kind"] == "sentences":
            limits = manifest["settings"]
            sentences = item_sentences(item.title, item.text, limits["max_sentences"], limits["max_characters"])
            return replace(item, sentences=sentences)
    return item


def _add_keywords(shown: Mapping[str, ItemSection], features: Features, table: pl.DataFrame | None) -> None:
    """Assign the keywords of each row of a store to the image that they were found for."""
    for item, item_id in enumerate(features.item_ids):
        if table is not None and item_id in shown:
            rows = table[features.offsets[item] : features.offsets[item + 1]]
            for image, words, scores in rows.select("image", "words", "scores").iter_rows():
                shown[item_id].keywords[image] = list(zip(words, scores, strict=True))


def _fact(manifest: Mapping[str, Any]) -> str:
    """What a modality's features were made with."""
    made = f"{manifest['kind']} by {manifest['encoder']['name']}"
    if "tagger" in manifest:
        made = f"keywords out of {len(manifest['vocabulary_words']):,}, by the {manifest['tagger']} tagger"
    return f"{made}; {manifest['items_with_rows']:,} of {manifest['items']:,} items"
