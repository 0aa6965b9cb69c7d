"""A page of items with what their features were made from: pictures, keywords with scores, sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from msm4sr.data.dataset import Dataset
from msm4sr.errors import InputError
from msm4sr.features.store import load_features, read_manifest, read_missing, read_rows
from msm4sr.features.text import item_sentences
from msm4sr.recommend.recommender import ItemTable
from msm4sr.reports.pages.page import render
from msm4sr.reports.pages.thumbnails import Tile, make_tile


@dataclass(frozen=True)
class Word:
    """A keyword, its score, and the score as a length, 0 .. 100, of the best one's."""

    text: str
    score: float
    bar: float


@dataclass
class Picture:
    """A picture of an item: its tile, its words if words were found for it, or why it could not be used."""

    tile: Tile
    words: list[Word] = field(default_factory=list)
    broken: str = ""


@dataclass
class Sample:
    """What the page shows of an item; `notes` say what it lacks."""

    item_id: str
    title: str
    pictures: list[Picture]
    sentences: list[str]
    notes: list[str]


def features_page(dataset: Dataset, stores: Sequence[Path], n_items: int, seed: int = 0) -> str:
    """One HTML page: `n_items` drawn from the items that have any features in `stores`, in the catalogue's order.

    Raises InputError when the stores hold none of the data set's items.
    """
    manifests = {folder: manifest for folder in stores if (manifest := read_manifest(folder)) is not None}
    row = {item_id: item for item, item_id in enumerate(dataset.item_ids)}
    described = {
        item_id
        for folder, manifest in manifests.items()
        if manifest["modality"] != "words"
        for item_id in _with_rows(folder)
    }
    chosen = sorted(row[item_id] for item_id in described if item_id in row)
    if not chosen:
        raise InputError(
            f"{dataset.folder}: none of its items has features in {', '.join(map(str, stores)) or 'there'}"
        )
    if len(chosen) > n_items:
        chosen = sorted(np.random.default_rng(seed).choice(chosen, n_items, replace=False).tolist())
    samples = {dataset.item_ids[item]: _sample(dataset, item, manifests) for item in chosen}
    for folder, manifest in manifests.items():
        if manifest["modality"] != "words":
            _add_missing(samples, folder, manifest["modality"])
        if manifest["kind"] == "keywords":
            _add_words(samples, dataset, folder)
    return render(
        "features.html.jinja",
        title=f"Features of {dataset.folder.absolute().name}",
        samples=list(samples.values()),
        of=len(described & row.keys()),
        facts=[fact for manifest in manifests.values() if (fact := _fact(manifest))],
    )


def _with_rows(folder: Path) -> list[str]:
    features = load_features(folder)
    return [features.item_ids[item] for item in np.flatnonzero(np.diff(features.offsets)).tolist()]


def _sample(dataset: Dataset, item: int, manifests: Mapping[Path, Mapping[str, Any]]) -> Sample:
    title, text, images = dataset.items.select("title", "text", "image").row(item)
    item_id = dataset.item_ids[item]
    tiles = [
        make_tile(ItemTable([item_id], [title or item_id], [[path]], dataset.folder), 0)
        for path in images or ()  # one at a time: a picture that cannot be used has a tile that says so
    ]
    settings = [manifest["settings"] for manifest in manifests.values() if manifest["kind"] == "sentences"]
    sentences = (
        item_sentences(title, text, settings[0]["max_sentences"], settings[0]["max_characters"]) if settings else []
    )
    return Sample(item_id, title or item_id, [Picture(tile) for tile in tiles], sentences, [])


def _add_missing(samples: Mapping[str, Sample], folder: Path, modality: str) -> None:
    missing = read_missing(folder).filter(pl.col("item_id").is_in(list(samples)))
    for item_id, image, reason in missing.select("item_id", "image", "reason").iter_rows():
        note = f"{modality}: {reason}" if image is None else f"{image}: {reason}"
        if note not in samples[item_id].notes:
            samples[item_id].notes.append(note)


def _add_words(samples: Mapping[str, Sample], dataset: Dataset, folder: Path) -> None:
    """Give the words of each row to the picture that it was made of."""
    features, table = load_features(folder), read_rows(folder)
    if table is None:
        return
    place = {item_id: item for item, item_id in enumerate(features.item_ids)}
    row = {item_id: item for item, item_id in enumerate(dataset.item_ids)}
    for item_id, sample in samples.items():
        if item_id not in place:
            continue
        start, end = (int(bound) for bound in features.offsets[place[item_id] : place[item_id] + 2])
        paths: list[str] = dataset.items["image"][row[item_id]].to_list() if sample.pictures else []
        pictures = dict(zip(paths, sample.pictures, strict=True))
        for image, words, scores in table[start:end].select("image", "words", "scores").iter_rows():
            if image in pictures:
                low, high = min(0.0, *scores), max(*scores, 0.0)
                pictures[image].words = [
                    Word(word, score, round(100 * (score - low) / (high - low), 1) if high > low else 0.0)
                    for word, score in zip(words, scores, strict=True)
                ]


def _fact(manifest: Mapping[str, Any]) -> tuple[str, str] | None:
    """What made a modality's features, in a line."""
    if manifest["modality"] == "words":
        return None
    made = f"{manifest['kind']} by {manifest['encoder']['name']}"
    if "tagger" in manifest:
        made = f"keywords by the {manifest['tagger']} tagger, of {len(manifest['vocabulary_words']):,} words"
    return manifest["modality"], f"{made}; {manifest['items_with_rows']:,} of {manifest['items']:,} items"
