"""From a data set to features: texts and pictures through frozen encoders, once, stored (equations 1, 2)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from msm4sr.errors import InputError
from msm4sr.features.chunks import Part, Shard, Work, current, digest, make_shard, make_store
from msm4sr.features.images import BrokenImage, image_digest, load_images
from msm4sr.features.precomputed import precomputed_features, precomputed_folder
from msm4sr.features.progress import Advance, say, task
from msm4sr.features.store import Features, read_manifest, read_missing, read_rows

if TYPE_CHECKING:
    from rich.progress import Progress

    from msm4sr.data.dataset import Dataset
    from msm4sr.features.keywords import ClipTagger, ImageTagger
    from msm4sr.features.text import SentenceEncoder
    from msm4sr.features.visual import ImageEncoder

T = TypeVar("T")

SHOWN_PICTURES = 5  # of those that cannot be used
NO_TEXT = "no title and no text"
NO_PICTURE = "no picture"


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
    network: str = Field(
        "efficientnet-lite0",
        min_length=1,
        description="Vision network of the pooled layer: 'efficientnet-lite0' (needs no network connection), or the "
        "folder or hub name of a transformers vision model.",
    )
    tagger: str = Field(
        "offline",
        min_length=1,
        description="What finds the words: 'offline' (learned from the catalogue's own texts, out of fold), "
        "'clip' (openai/clip-vit-base-patch32, from the hub), or the folder or hub name of a CLIP model.",
    )
    num_keywords: int = Field(15, ge=1, description="Words kept of a picture, N in the paper.")
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
    *,
    vectors: Mapping[str, Path] | None = None,
    device: str = "auto",
    strict: bool = False,
    merge: bool = False,
) -> dict[str, Features]:
    """Features of every item of `dataset`, as {"text": ..., "visual": ..., ...}; entry i is item
    `dataset.item_ids[i]`.

    Each modality and encoder has a folder under `out`, described in `store`: `text-minilm/`,
    `visual-pooled-efficientnet-lite0/`, `visual-keywords-offline-minilm/`. What was extracted before, with the same
    encoder and settings and from the same content, is taken over; what is new or changed is encoded, part by part,
    so that a run which was killed goes on where it was. An item without text (or without a readable picture) has no
    row. A modality that no item has is returned with no rows.

    Args:
        dataset: the items.
        out: the features folder. Several processes may use it at once.
        settings: encoders, and how much is read.
        progress: where bars and lines go; lines go to stderr without it.
        vectors: modality to a Parquet file of vectors of your own (see `own`), in place of an encoder, or for a
            modality of another name. Such a modality reads neither texts nor pictures.
        device: where the encoders run: "cpu", "cuda", ...; "auto" takes a GPU where there is one.
        strict: a picture that cannot be used is an error.
        merge: texts and pictures must have been encoded by `extract_shard`; here they are joined.

    Raises:
        InputError: an encoder or tagger that cannot be loaded, vectors that cannot be used, with `strict` a picture
            that cannot be used, with `merge` a shard that is not there.
    """
    own = dict(vectors or {})
    job = _Job(dataset, settings, Path(out), Encoders(settings, device), progress, strict, merge)
    job.out.mkdir(parents=True, exist_ok=True)
    _tell_old_stores(job)
    # Own vectors first: what is wrong with them is known at once.
    given = {
        name: precomputed_features(dataset.item_ids, name, file, precomputed_folder(job.out, name), progress)
        for name, file in own.items()
    }
    found: dict[str, Features] = {}
    if "text" not in own:
        found["text"] = make_store(_text_work(job), progress, merge=merge)
    if "visual" not in own:
        work = _picture_work(job)
        pictures = make_store(work, progress, merge=merge)
        _tell_unusable_pictures(job, work.folder)
        if settings.visual.kind == "keywords":
            pictures = _extract_keywords(job, work.folder, pictures, found.get("text"))
        found["visual"] = pictures
    named = [name for name in ("text", "visual") if name in own or name in found]
    return {name: {**given, **found}[name] for name in [*named, *(name for name in own if name not in named)]}


def extract_shard(
    dataset: Dataset,
    out: str | Path,
    shard: Shard,
    settings: FeatureSettings = FeatureSettings(),
    progress: Progress | None = None,
    *,
    vectors: Mapping[str, Path] | None = None,
    device: str = "auto",
    strict: bool = False,
) -> None:
    """One shard of the texts and pictures; `extract_features(merge=True)` joins them when all shards are in `out`.

    Needs the pictures of the shard's own items only.
    """
    own = vectors or {}
    job = _Job(dataset, settings, Path(out), Encoders(settings, device), progress, strict)
    job.out.mkdir(parents=True, exist_ok=True)
    if "text" not in own:
        make_shard(_text_work(job), shard, progress)
    if "visual" not in own:
        make_shard(_picture_work(job), shard, progress)


@dataclass(frozen=True)
class _Job:
    """What is asked for, and with what."""

    dataset: Dataset
    settings: FeatureSettings
    out: Path
    encoders: Encoders
    progress: Progress | None
    strict: bool
    merge: bool = False


class Encoders:
    """Encoders, loaded when first needed: what is stored already needs none of them."""

    def __init__(self, settings: FeatureSettings, device: str) -> None:
        self._settings = settings
        self._device = device
        self._loaded: dict[str, Any] = {}

    def sentences(self) -> SentenceEncoder:
        from msm4sr.features.text import TransformerSentenceEncoder

        text = self._settings.text
        return self._once(
            "sentences", lambda: TransformerSentenceEncoder(text.encoder, text.max_tokens, device=self._device)
        )

    def network(self) -> ImageEncoder:
        from msm4sr.features.visual import load_image_encoder

        return self._once("network", lambda: load_image_encoder(self._settings.visual.network, self._device))

    def clip(self) -> ClipTagger:
        from msm4sr.features.keywords import ClipTagger

        return self._once("clip", lambda: ClipTagger(self._settings.visual.tagger, device=self._device))

    def _once(self, name: str, make: Callable[[], T]) -> T:
        if name not in self._loaded:
            self._loaded[name] = make()
        encoder: T = self._loaded[name]
        return encoder


def _encoder(name: str) -> dict[str, str]:
    """What the manifest says of an encoder: its name, and what it is, weights included."""
    from msm4sr.features.text import model_fingerprint, resolve_model
    from msm4sr.features.visual import EfficientNetLite0

    built_in = name == EfficientNetLite0.name
    return {
        "name": name,
        "fingerprint": EfficientNetLite0.fingerprint if built_in else model_fingerprint(resolve_model(name)),
    }


def store_names(settings: FeatureSettings, own: Iterable[str] = ()) -> dict[str, str]:
    """The folder of each store that is made with these settings: {"text": "text-minilm", "visual": ..., ...}.

    "pictures" is what keywords are found from, and "words" their vocabulary; `own` are modalities with own vectors.
    """
    text, visual = settings.text, settings.visual
    clip = visual.kind == "keywords" and visual.tagger != "offline"
    pictures = f"visual-clip-{_slug(visual.tagger)}" if clip else f"visual-pooled-{_slug(visual.network)}"
    names = {"text": f"text-{_slug(text.encoder)}", "visual": pictures}
    if visual.kind == "keywords":
        names["pictures"] = pictures
        names["visual"] = f"visual-keywords-{_slug(visual.tagger)}-{_slug(text.encoder)}"
        names["words"] = f"words-{_slug(text.encoder)}"
    return names | {name: precomputed_folder(Path(), name).name for name in own}


def _slug(name: str) -> str:
    """An encoder's name in the name of a folder: the last part of a path; a hub name with its slash as `--`."""
    short = Path(name).name if name.startswith(("/", ".")) else name.replace("/", "--")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", short) or "model"


# --- texts


def _text_work(job: _Job) -> Work:
    chosen = job.settings.text
    items = job.dataset.items.select("title", "text")

    def contents(stretch: range) -> list[str]:
        return [digest(*row) for row in items.slice(stretch.start, len(stretch)).iter_rows()]

    def encode(chosen_items: Sequence[int], advance: Advance) -> Part:
        from msm4sr.features.text import item_sentences

        sentences = [
            item_sentences(title, text, chosen.max_sentences, chosen.max_characters)
            for title, text in items[list(chosen_items)].iter_rows()
        ]
        counts = np.array([len(item) for item in sentences], np.int64)
        rows = [sentence for item in sentences for sentence in item]
        missing: list[tuple[int, str | None, str]] = [
            (place, None, NO_TEXT) for place, item in enumerate(sentences) if not item
        ]
        vectors = _encode_distinct(job, rows, len(sentences), advance)
        return Part(counts, vectors, missing=missing, ran_on=job.encoders.sentences().path if rows else None)

    about = {
        "modality": "text",
        "kind": "sentences",
        "encoder": _encoder(chosen.encoder),
        "settings": chosen.model_dump(exclude={"encoder"}),
    }
    folder = job.out / store_names(job.settings)["text"]
    return Work(folder, about, job.dataset.item_ids, contents, encode, "encoding sentences")


def _encode_distinct(job: _Job, sentences: Sequence[str], n_items: int, advance: Advance) -> np.ndarray:
    """Each distinct sentence once: catalogues repeat themselves ("Free shipping.", twin items).

    `advance` is told in items, of which the sentences are `n_items`.
    """
    if not sentences:
        return _no_rows()
    place = {sentence: index for index, sentence in enumerate(dict.fromkeys(sentences))}
    vectors = job.encoders.sentences().encode(list(place), lambda n: advance(n * n_items / len(place)))
    return vectors[[place[sentence] for sentence in sentences]]


# --- pictures


def _picture_work(job: _Job) -> Work:
    """Vectors of all readable pictures, from the pooled layer or from CLIP's image side."""
    chosen = job.settings.visual
    clip = chosen.kind == "keywords" and chosen.tagger != "offline"
    name = chosen.tagger if clip else chosen.network
    images = job.dataset.items["image"]
    digests: dict[str, tuple[str, str | None]] = {}  # path -> hash of the file, or why there is none

    def contents(stretch: range) -> list[str]:
        found = []
        for paths in images.slice(stretch.start, len(stretch)).to_list():
            for path in paths or ():
                if path not in digests:
                    digests[path] = image_digest(job.dataset.folder, path)
            found.append(digest([(path, *digests[path]) for path in paths or ()]))
        return found

    def encode(items: Sequence[int], advance: Advance) -> Part:
        from msm4sr.features.visual import encode_pictures

        wanted = [paths or [] for paths in images[list(items)].to_list()]
        # One representative of each distinct file goes through the network.
        first: dict[str, str] = {}
        for path in (path for paths in wanted for path in paths):
            found, refused = digests[path]
            if refused is None:
                first.setdefault(found, path)
        outcome: dict[str, np.ndarray | BrokenImage] = {}
        ran_on: str | None = None
        if first:
            encoder: ImageEncoder = job.encoders.clip() if clip else job.encoders.network()
            ran_on = encoder.path
            decoded = load_images(job.dataset.folder, list(first.values()), encoder.size)
            share = len(items) / len(first)
            vectors = encode_pictures(encoder, decoded, advance=lambda n: advance(n * share))
            outcome = dict(zip(first, vectors, strict=True))

        counts = np.zeros(len(items), np.int64)
        rows: list[np.ndarray] = []
        kept: list[str] = []
        missing: list[tuple[int, str | None, str]] = []
        for place, paths in enumerate(wanted):
            if not paths:
                missing.append((place, None, NO_PICTURE))
            for path in paths:
                found, refused = digests[path]
                result = BrokenImage(refused) if refused is not None else outcome[found]
                if isinstance(result, BrokenImage):
                    missing.append((place, path, result.reason))
                else:
                    counts[place] += 1
                    rows.append(result)
                    kept.append(path)
        return Part(counts, np.stack(rows) if rows else _no_rows(), kept, missing, ran_on)

    def refuse_broken(part: Part, items: Sequence[int]) -> None:
        for place, path, reason in part.missing:
            if job.strict and path is not None:
                raise _broken(job, job.dataset.item_ids[items[place]], path, reason)

    kind = "clip" if clip else "pooled"
    about = {"modality": "visual", "kind": kind, "encoder": _encoder(name), "settings": {}}
    names = store_names(job.settings)
    folder = job.out / names.get("pictures", names["visual"])
    return Work(folder, about, job.dataset.item_ids, contents, encode, "encoding pictures", refuse_broken)


def _broken(job: _Job, item_id: str, path: str, reason: str) -> InputError:
    return InputError(
        f"{job.dataset.folder / path}: picture of item {item_id!r}: {reason}; mend it, take it out of "
        "items.parquet, or go on without it by leaving out --strict (what was encoded so far is kept)"
    )


def _tell_unusable_pictures(job: _Job, folder: Path) -> None:
    """How many pictures could not be used, and of the first ones why; with `strict` an error."""
    broken = read_missing(folder).filter(pl.col("image").is_not_null())
    if broken.is_empty():
        return
    if job.strict:
        first = broken.row(0, named=True)
        raise _broken(job, first["item_id"], first["image"], first["reason"])
    say(job.progress, f"visual: {len(broken):,} pictures cannot be used; their items go without them")
    for item_id, image, reason in broken.head(SHOWN_PICTURES).select("item_id", "image", "reason").iter_rows():
        say(job.progress, f"  {image} of item {item_id!r}: {reason}")
    if len(broken) > SHOWN_PICTURES:
        say(job.progress, f"  and {len(broken) - SHOWN_PICTURES:,} more, listed in {folder / 'missing.parquet'}")


# --- keywords


def _extract_keywords(job: _Job, below: Path, pictures: Features, text: Features | None) -> Features:
    """Each picture's words through the text encoder; `below` is the store of the `pictures`.

    Which words, depends on the whole catalogue (its vocabulary, the map from pictures to texts): they are found anew
    whenever a text or a picture changes. Only word lists that are new then go through the text encoder.
    """
    dataset, chosen = job.dataset, job.settings.visual
    offline = chosen.tagger == "offline"
    texts = _text_work(job)
    seen = read_manifest(below) or {}
    about = {
        "modality": "visual",
        "kind": "keywords",
        "encoder": texts.about["encoder"],
        "settings": {**chosen.model_dump(), "text": texts.about["settings"]},
    }
    folder = job.out / store_names(job.settings)["visual"]
    own = None if chosen.vocabulary_file is None else _vocabulary(job)
    made_of = {"made_of": digest(seen["encoder"], seen["content"], texts.contents(range(dataset.n_items)), own)}
    stored = current(folder, {**about, **made_of})
    if stored is not None:
        return stored

    more: dict[str, Any] = dict(made_of)
    words: list[list[str]] = []
    scores = np.zeros((0, chosen.num_keywords), np.float32)
    if pictures.n_rows:
        if offline and text is None:  # the texts teach the words, even where other vectors stand for them
            text = make_store(texts, job.progress, merge=job.merge)
        with task(job.progress, "tagging pictures", None):
            words, scores, found = _tag(job, pictures, text if offline else None)
        more |= found
    bounds = pictures.offsets.tolist()
    lines = [" ".join(row) for row in words]

    def contents(stretch: range) -> list[str]:
        return [digest(lines[bounds[item] : bounds[item + 1]]) for item in stretch]

    def encode(items: Sequence[int], advance: Advance) -> Part:
        rows = [line for item in items for line in lines[bounds[item] : bounds[item + 1]]]
        counts = np.array([bounds[item + 1] - bounds[item] for item in items], np.int64)
        return Part(counts, _encode_distinct(job, rows, len(items), advance), ran_on=job.encoders.sentences().path)

    rows = read_rows(below)
    assert rows is not None
    rows = rows.with_columns(
        pl.Series("words", words, pl.List(pl.String)), pl.Series("scores", scores).cast(pl.List(pl.Float32))
    )
    work = Work(folder, about, dataset.item_ids, contents, encode, "encoding keywords")
    return make_store(work, job.progress, more=more, rows=rows, missing=read_missing(below))


def _tag(job: _Job, pictures: Features, text: Features | None) -> tuple[list[list[str]], np.ndarray, dict[str, Any]]:
    """The words of each picture, their scores float32 [pictures, N], and what the manifest says of them.

    `text` is for the offline tagger to learn from; None for CLIP.
    """
    from msm4sr.features import keywords

    chosen = job.settings.visual
    own = chosen.vocabulary_file is not None
    vocabulary, source = _vocabulary(job), "word file" if own else "catalogue"
    more: dict[str, Any] = {}
    images = np.asarray(pictures.vectors)
    tagger: ImageTagger | None = None
    if own or len(vocabulary) >= chosen.num_keywords:
        if text is None:
            tagger = job.encoders.clip()
        else:
            has_both = int(np.count_nonzero((np.diff(text.offsets) > 0) & (np.diff(pictures.offsets) > 0)))
            mapped = _pictures_in_text_space(pictures, text) if has_both >= chosen.min_texts else None
            if mapped is None and own:
                raise InputError(
                    f"features.visual.vocabulary_file: the offline tagger learns words from {chosen.min_texts} items "
                    f"with text and picture (features.visual.min_texts), here are {has_both}; name a CLIP model as "
                    "features.visual.tagger"
                )
            if mapped is not None:
                images, ridge, groups = mapped
                tagger = keywords.TextSpaceTagger(_stored_words(job, vocabulary))
                more |= {"ridge": ridge, "near_duplicate_groups": groups, "fitted_on_items": has_both}
    if tagger is None:
        vocabulary, source = list(dict.fromkeys(keywords.imagenet_labels())), "imagenet labels"
        tagger = job.encoders.clip() if text is None else label_tagger(job.encoders)
    words, scores = keywords.scored_words(tagger, images, vocabulary, chosen.num_keywords)
    more |= {"tagger": tagger.name, "vocabulary": source, "vocabulary_words": vocabulary}
    return words, scores, more


def _vocabulary(job: _Job) -> list[str]:
    """The words of the file that the settings name, or of the catalogue's own texts."""
    from msm4sr.features import keywords

    chosen = job.settings.visual
    if chosen.vocabulary_file is not None:
        return keywords.read_vocabulary(chosen.vocabulary_file)
    documents = _documents(job.dataset.items, job.settings.text.max_characters)
    limits = (chosen.vocabulary_min_items, chosen.vocabulary_max_share, chosen.vocabulary_size)
    return keywords.build_vocabulary(documents, *limits)


def label_tagger(encoders: Encoders) -> ImageTagger:
    """ImageNet's labels as the words. Raises InputError where the pooled layer is another network's."""
    from msm4sr.features.keywords import LabelTagger
    from msm4sr.features.visual import EfficientNetLite0

    network = encoders.network()
    if not isinstance(network, EfficientNetLite0):
        raise InputError(
            f"features.visual.network={network.name}: the catalogue has too few texts to learn keywords from, and "
            f"ImageNet's labels come from {EfficientNetLite0.name} alone; name that network, a CLIP model as "
            "features.visual.tagger, or features.visual.kind=pooled"
        )
    return LabelTagger(*network.label_weights())


class StoredWords:
    """A vocabulary's vectors, out of their store, in the place of the encoder that made them."""

    def __init__(self, words: list[str], vectors: np.ndarray, encoder: Mapping[str, str]) -> None:
        self.name, self.fingerprint = encoder["name"], encoder["fingerprint"]
        self.path = "stored"
        self.dim = int(vectors.shape[1])
        self._words, self._vectors = words, vectors

    def encode(self, sentences: Sequence[str], advance: Callable[[int], None] | None = None) -> np.ndarray:
        if list(sentences) != self._words:
            raise ValueError("only the stored vocabulary, in its order, can be asked for")
        return np.asarray(self._vectors)


def _stored_words(job: _Job, vocabulary: list[str]) -> SentenceEncoder:
    """The vocabulary through the text encoder: a store of its own, so that each word is encoded once."""
    text = job.settings.text
    encoder = _encoder(text.encoder)

    def contents(stretch: range) -> list[str]:
        return [digest(vocabulary[word]) for word in stretch]

    def encode(words: Sequence[int], advance: Advance) -> Part:
        rows = [vocabulary[word] for word in words]
        vectors = _encode_distinct(job, rows, len(words), advance)
        return Part(np.ones(len(words), np.int64), vectors, ran_on=job.encoders.sentences().path)

    about = {
        "modality": "words",
        "kind": "vocabulary",
        "encoder": encoder,
        "settings": {"max_tokens": text.max_tokens},
    }
    work = Work(job.out / store_names(job.settings)["words"], about, vocabulary, contents, encode, "encoding words")
    return StoredWords(vocabulary, make_store(work, job.progress).vectors, encoder)


def _pictures_in_text_space(pictures: Features, text: Features) -> tuple[np.ndarray, float, int] | None:
    """Pictures mapped out of fold, the ridge chosen, and the number of groups that folds keep whole.

    None where near-duplicates tie all texts into one fold (one placeholder picture everywhere, say): nothing is left
    to learn from out of fold.
    """
    from msm4sr.features import keywords

    n_items = len(text.item_ids)
    owners = np.repeat(np.arange(n_items), np.diff(pictures.offsets))  # [pictures]
    has_text = np.diff(text.offsets) > 0  # [items]
    means = item_means(text)
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


def item_means(text: Features) -> np.ndarray:
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


def _no_rows() -> np.ndarray:
    return np.zeros((0, 0), np.float32)


def _tell_old_stores(job: _Job) -> None:
    """Stores of before they were named after their encoders: they are not read."""
    for name in ("text", "visual-pooled", "visual-clip", "visual-keywords"):
        try:
            read_manifest(job.out / name)
        except InputError as error:
            say(job.progress, f"{error}")
