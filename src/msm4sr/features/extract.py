"""From a data set to features: texts and pictures through frozen encoders, once, stored (equations 1, 2)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from msm4sr.errors import InputError
from msm4sr.features.images import BrokenImage, image_digest, load_images
from msm4sr.features.store import Features, load_features, read_manifest, save_features

if TYPE_CHECKING:
    from rich.progress import Progress

    from msm4sr.data.dataset import Dataset
    from msm4sr.features.keywords import ClipTagger, ImageTagger
    from msm4sr.features.text import SentenceEncoder
    from msm4sr.features.visual import EfficientNetLite0, ImageEncoder

T = TypeVar("T")

SHOWN_PICTURES = 5  # of those that cannot be used


class TextSettings(BaseModel):
    """How an item's title and text become vectors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: str = Field(
        "minilm",
        min_length=1,
        description="Sentence encoder: 'minilm' (needs no network), a local model folder, or a hub name.",
    )
    max_sentences: int = Field(10, ge=1, description="Sentences kept of an item, the title counted as the first.")
    max_characters: int = Field(
        4000, ge=1, le=20000, description="Characters of a text that are read; the rest is left out."
    )
    max_tokens: int = Field(128, ge=2, description="Tokens of a sentence that the encoder reads.")


class VisualSettings(BaseModel):
    """How an item's pictures become vectors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["keywords", "pooled"] = Field(
        "keywords",
        description="'keywords': a picture's words through the text encoder (equation 2). 'pooled': the "
        "pooled layer of a vision network.",
    )
    tagger: str = Field(
        "offline",
        min_length=1,
        description="What finds the words: 'offline' (learned from the catalogue's own texts, out of fold), "
        "or the folder or hub name of a CLIP model.",
    )
    words: int = Field(15, ge=1, description="Words kept of a picture, N in the paper.")
    min_texts: int = Field(
        500,
        ge=10,
        description="Fewer items with both text and picture than this: ImageNet's labels are the words.",
    )
    vocabulary_file: str | None = Field(
        None,
        min_length=1,
        description="A text file with a word or phrase a line to be the vocabulary; null: the catalogue's own words.",
    )
    vocabulary_size: int = Field(4000, ge=1, description="Words of the vocabulary at most, the most widespread first.")
    vocabulary_min_items: int = Field(3, ge=1, description="Items that must use a word for it to count.")
    vocabulary_max_share: float = Field(
        0.2, gt=0, le=1, description="Share of the items above which a word says nothing and is left out."
    )


class FeatureSettings(BaseModel):
    """What is extracted, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: TextSettings = Field(TextSettings(), description="Titles and texts.")
    visual: VisualSettings = Field(VisualSettings(), description="Pictures.")


def extract_features(
    dataset: Dataset,
    out: str | Path,
    settings: FeatureSettings = FeatureSettings(),
    progress: Progress | None = None,
) -> dict[str, Features]:
    """Features of every item of `dataset`, as {"text": ..., "visual": ...}; row i is item
    `dataset.item_ids[i]`.

    Stored under `out`: `text/`, `visual-pooled/` (or `visual-clip/`), `visual-keywords/`. What is there is
    used again when its manifest agrees in settings, item ids and content; else it is made anew, and a line
    says why. An item without text (or without a readable picture) has no row. Pictures that cannot be used
    are listed in the manifest under "missing", as {"item", "image", "reason"}. A modality that no item has is
    returned with no rows.

    Raises `InputError` for an encoder or tagger that cannot be loaded.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    encoders = _Encoders(settings)
    text = _extract_text(dataset, settings, out / "text", encoders, progress)
    if settings.visual.kind == "pooled":
        visual = _extract_pictures(dataset, settings, "pooled", out, encoders, progress)
    else:
        visual = _extract_keywords(dataset, settings, out, encoders, text, progress)
    _tell_unusable_pictures(out / f"visual-{settings.visual.kind}", progress)
    return {"text": text, "visual": visual}


def _tell_unusable_pictures(folder: Path, progress: Progress | None) -> None:
    """How many pictures could not be used, and of the first ones why."""
    missing = [entry for entry in (read_manifest(folder) or {}).get("missing", []) if "image" in entry]
    if not missing:
        return
    _say(progress, f"visual: {len(missing):,} pictures cannot be used; their items go without them")
    for entry in missing[:SHOWN_PICTURES]:
        _say(progress, f"  {entry['image']} of item {entry['item']!r}: {entry['reason']}")
    if len(missing) > SHOWN_PICTURES:
        _say(progress, f"  and {len(missing) - SHOWN_PICTURES:,} more, listed in {folder / 'manifest.json'}")


class _Encoders:
    """Encoders, loaded when first needed: what is stored already needs none of them."""

    def __init__(self, settings: FeatureSettings) -> None:
        self._settings = settings
        self._loaded: dict[str, Any] = {}

    def sentences(self) -> SentenceEncoder:
        from msm4sr.features.text import TransformerSentenceEncoder

        text = self._settings.text
        return self._once("sentences", lambda: TransformerSentenceEncoder(text.encoder, text.max_tokens))

    def pooled(self) -> EfficientNetLite0:
        from msm4sr.features.visual import EfficientNetLite0

        return self._once("pooled", EfficientNetLite0)

    def clip(self) -> ClipTagger:
        from msm4sr.features.keywords import ClipTagger

        return self._once("clip", lambda: ClipTagger(self._settings.visual.tagger))

    def _once(self, name: str, make: Callable[[], T]) -> T:
        if name not in self._loaded:
            self._loaded[name] = make()
        encoder: T = self._loaded[name]
        return encoder


# --- texts


def _extract_text(
    dataset: Dataset, settings: FeatureSettings, folder: Path, encoders: _Encoders, progress: Progress | None
) -> Features:
    from msm4sr.features.text import item_sentences, model_fingerprint, resolve_model

    chosen = settings.text
    titles, texts = dataset.items["title"].to_list(), dataset.items["text"].to_list()
    expected = {
        "settings": chosen.model_dump(),
        "encoder": model_fingerprint(resolve_model(chosen.encoder)),
        "content": _digest(zip(titles, texts, strict=True)),
    }
    stored = _reuse(folder, expected, dataset.item_ids, progress)
    if stored is not None:
        return stored

    with _task(progress, "splitting texts", len(titles)) as advance:
        sentences: list[list[str]] = []
        for title, text in zip(titles, texts, strict=True):
            sentences.append(item_sentences(title, text, chosen.max_sentences, chosen.max_characters))
            advance(1)
    rows = [sentence for item in sentences for sentence in item]
    vectors = _encode_distinct(encoders.sentences(), rows, "encoding sentences", progress) if rows else None
    features = Features(
        _no_rows() if vectors is None else vectors,
        _offsets([len(item) for item in sentences]),
        list(dataset.item_ids),
    )
    missing = [
        {"item": item_id, "reason": "no title and no text"}
        for item_id, item in zip(dataset.item_ids, sentences, strict=True)
        if not item
    ]
    return _store(features, folder, {**expected, "modality": "text", "missing": missing}, progress)


def _encode_distinct(
    encoder: SentenceEncoder, sentences: Sequence[str], title: str, progress: Progress | None
) -> np.ndarray:
    """Each distinct sentence once: catalogues repeat themselves ("Free shipping.", twin items)."""
    place = {sentence: index for index, sentence in enumerate(dict.fromkeys(sentences))}
    with _task(progress, title, len(place)) as advance:
        vectors = encoder.encode(list(place), advance)
    return vectors[[place[sentence] for sentence in sentences]]


# --- pictures


def _extract_pictures(
    dataset: Dataset,
    settings: FeatureSettings,
    kind: str,
    out: Path,
    encoders: _Encoders,
    progress: Progress | None,
) -> Features:
    """Vectors of all readable pictures, from the pooled layer or from CLIP's image side."""
    from msm4sr.features.text import model_fingerprint, resolve_model
    from msm4sr.features.visual import EfficientNetLite0, encode_pictures

    folder = out / f"visual-{kind}"
    images = dataset.items["image"].to_list()
    owners = [item for item, paths in enumerate(images) for _ in paths or ()]
    paths = [path for item_paths in images for path in item_paths or ()]
    with _task(progress, "reading pictures", len(paths)) as advance:
        digests = []
        for path in paths:
            digests.append(image_digest(dataset.folder, path))
            advance(1)
    if kind == "pooled":
        expected: dict[str, Any] = {"settings": {}, "encoder": EfficientNetLite0.fingerprint}
    else:
        tagger = settings.visual.tagger
        expected = {"settings": {"tagger": tagger}, "encoder": model_fingerprint(resolve_model(tagger))}
    expected["content"] = _digest(zip(owners, paths, digests, strict=True))
    stored = _reuse(folder, expected, dataset.item_ids, progress)
    if stored is not None:
        return stored

    # One representative of each distinct file goes through the network.
    first: dict[str, int] = {}
    for index, (digest, refused) in enumerate(digests):
        if refused is None:
            first.setdefault(digest, index)
    outcome: dict[str, np.ndarray | BrokenImage] = {}
    if first:
        encoder: ImageEncoder = encoders.pooled() if kind == "pooled" else encoders.clip()
        decoded = load_images(dataset.folder, [paths[index] for index in first.values()], encoder.size)
        with _task(progress, "encoding pictures", len(first)) as advance:
            outcome = dict(zip(first, encode_pictures(encoder, decoded, advance=advance), strict=True))

    counts = [0] * len(images)
    vectors: list[np.ndarray] = []
    missing: list[dict[str, str]] = []
    kept: list[str] = []
    for owner, path, (digest, refused) in zip(owners, paths, digests, strict=True):
        result = BrokenImage(refused) if refused is not None else outcome[digest]
        if isinstance(result, BrokenImage):
            missing.append({"item": dataset.item_ids[owner], "image": path, "reason": result.reason})
        else:
            counts[owner] += 1
            vectors.append(result)
            kept.append(path)
    features = Features(np.stack(vectors) if vectors else _no_rows(), _offsets(counts), list(dataset.item_ids))
    record = {**expected, "modality": "visual", "kind": kind, "missing": missing, "images": kept}
    return _store(features, folder, record, progress)


def _extract_keywords(
    dataset: Dataset,
    settings: FeatureSettings,
    out: Path,
    encoders: _Encoders,
    text: Features,
    progress: Progress | None,
) -> Features:
    from msm4sr.features import keywords

    chosen = settings.visual
    offline = chosen.tagger == "offline"
    source = "pooled" if offline else "clip"
    pictures = _extract_pictures(dataset, settings, source, out, encoders, progress)
    below = [read_manifest(out / name) or {} for name in ("text", f"visual-{source}")]
    folder = out / "visual-keywords"
    own = None if chosen.vocabulary_file is None else keywords.read_vocabulary(chosen.vocabulary_file)
    expected = {
        "settings": {**chosen.model_dump(), "text": settings.text.model_dump()},
        "encoder": below[0]["encoder"],
        "content": _digest([*((part["encoder"], part["content"]) for part in below), own]),
    }
    stored = _reuse(folder, expected, dataset.item_ids, progress)
    if stored is not None:
        return stored

    record: dict[str, Any] = {**expected, "modality": "visual", "kind": "keywords"}
    record |= {key: below[1][key] for key in ("missing", "images")}
    if pictures.n_rows == 0:
        empty = Features(_no_rows(), pictures.offsets, list(dataset.item_ids), [[] for _ in dataset.item_ids])
        return _store(empty, folder, record, progress)

    if own is not None:
        vocabulary, origin = own, "word file"
    else:
        documents = _documents(dataset.items, settings.text.max_characters)
        limits = (chosen.vocabulary_min_items, chosen.vocabulary_max_share, chosen.vocabulary_size)
        vocabulary, origin = keywords.build_vocabulary(documents, *limits), "catalogue"
    enough = own is not None or len(vocabulary) >= chosen.words
    with _task(progress, "tagging pictures", None):
        tagger: ImageTagger
        images = np.asarray(pictures.vectors)
        if not offline:
            tagger = encoders.clip()
        else:
            has_both = int(np.count_nonzero((np.diff(text.offsets) > 0) & (np.diff(pictures.offsets) > 0)))
            mapped = _pictures_in_text_space(pictures, text) if enough and has_both >= chosen.min_texts else None
            enough = mapped is not None
            if mapped is None and own is not None:
                raise InputError(
                    f"visual.vocabulary_file: the offline tagger learns words from {chosen.min_texts} items "
                    f"with text and picture (visual.min_texts), here are {has_both}; give a CLIP as visual.tagger"
                )
            if mapped is not None:
                images, ridge, groups = mapped
                tagger = keywords.TextSpaceTagger(encoders.sentences())
                record |= {"ridge": ridge, "near_duplicate_groups": groups, "fitted_on_items": has_both}
            else:
                tagger = keywords.LabelTagger(*encoders.pooled().label_weights())
        if not enough:
            vocabulary = list(dict.fromkeys(keywords.imagenet_labels()))
        words = keywords.best_words(tagger, images, vocabulary, chosen.words)
    record |= {"tagger": tagger.name, "vocabulary": origin if enough else "imagenet labels"}
    record["vocabulary_words"] = len(vocabulary)
    vectors = _encode_distinct(encoders.sentences(), [" ".join(row) for row in words], "encoding keywords", progress)
    bounds = pictures.offsets.tolist()
    features = Features(
        vectors,
        np.asarray(pictures.offsets),
        list(dataset.item_ids),
        [words[start:end] for start, end in pairwise(bounds)],
    )
    return _store(features, folder, record, progress)


def _pictures_in_text_space(pictures: Features, text: Features) -> tuple[np.ndarray, float, int] | None:
    """Pictures mapped out of fold, the ridge chosen, and the number of groups that folds keep whole.

    None where near-duplicates tie all texts into one fold (one placeholder picture everywhere, say): nothing is left
    to learn from out of fold.
    """
    from msm4sr.features import keywords

    n_items = len(text.item_ids)
    owners = np.repeat(np.arange(n_items), np.diff(pictures.offsets))  # [pictures]
    has_text = np.diff(text.offsets) > 0  # [items]
    means = _item_means(text)
    groups = keywords.group_near_duplicates(
        [(np.flatnonzero(has_text), means[has_text]), (owners, np.asarray(pictures.vectors))], n_items
    )
    # Balanced over the items that the map is fitted or used on; items without a picture have no part in it.
    taking_part = np.unique(owners)
    folds = np.zeros(n_items, np.int64)
    folds[taking_part] = keywords.assign_folds(groups[taking_part])
    if len(np.unique(folds[owners[has_text[owners]]])) < 2:
        return None
    mapped, ridge = keywords.map_pictures(np.asarray(pictures.vectors), means[owners], has_text[owners], folds[owners])
    return mapped, ridge, len(np.unique(groups[taking_part]))


def _item_means(text: Features) -> np.ndarray:
    """float32 [items, dim]: the mean of an item's sentence vectors, zeros where it has none."""
    counts = np.diff(text.offsets)
    owners = np.repeat(np.arange(len(counts)), counts)
    sums = np.zeros((len(counts), text.vectors.shape[1]), np.float64)
    np.add.at(sums, owners, np.asarray(text.vectors))
    means: np.ndarray = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
    return means


def _documents(items: pl.DataFrame, max_characters: int) -> Iterator[str]:
    for title, text in items.select("title", "text").iter_rows():
        yield f"{(title or '')[:max_characters]} {(text or '')[:max_characters]}"


# --- the store, and what is said


def _reuse(folder: Path, expected: dict[str, Any], item_ids: list[str], progress: Progress | None) -> Features | None:
    """What `folder` holds, if it was made from exactly this; else None, after a line that says why."""
    try:
        manifest = read_manifest(folder)
        if manifest is None:
            return None
        wanted = {**expected, "item_ids": list(item_ids)}
        names = {"item_ids": "items", "content": "content", "settings": "settings", "encoder": "encoder"}
        changed = [name for key, name in names.items() if manifest.get(key) != wanted[key]]
        if not changed:
            return load_features(folder)
        what = " and ".join(changed)
        _say(progress, f"{folder}: {what} changed since this was extracted; extracting again")
    except InputError as error:
        _say(progress, f"{error}; extracting again")
    return None


def _store(features: Features, folder: Path, record: dict[str, Any], progress: Progress | None) -> Features:
    save_features(features, folder, record)
    _say(progress, f"{folder.name} extracted, kept in {folder}")
    return load_features(folder)


def _say(progress: Progress | None, line: str) -> None:
    console = Console(stderr=True) if progress is None else progress.console
    console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _task(progress: Progress | None, title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A line of `progress` for the time of a `with` block; yields what to call with the number done."""
    if progress is None:
        yield lambda n: None
        return
    task = progress.add_task(title, total=total)
    try:
        yield lambda n: progress.advance(task, n)
    finally:
        progress.update(task, total=total or 1, completed=total or 1)


def _offsets(counts: Sequence[int]) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def _no_rows() -> np.ndarray:
    return np.zeros((0, 0), np.float32)


def _digest(parts: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        # ascii, so that a lone surrogate is no obstacle
        digest.update(json.dumps(part, ensure_ascii=True).encode("ascii"))
        digest.update(b"\n")
    return digest.hexdigest()
