"""From a history to the next items: `Recommender` for a run as a service, `recommend` for a model in hand."""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import Lock

import numpy as np
import polars as pl
import torch
from torch import Tensor

from msm4sr.data import items as content
from msm4sr.data.dataset import Dataset
from msm4sr.errors import InputError
from msm4sr.features.content import ContentEncoder
from msm4sr.features.images import BrokenImage, read_image
from msm4sr.features.text import item_sentences
from msm4sr.models.base import ContentModel, Model, ProductModel, Scorer
from msm4sr.recommend.catalogue import Base, Catalogue, EncodedItem, Item, ItemExists, NewItem, Vectors
from msm4sr.recommend.distinctive_words import DistinctiveWords
from msm4sr.recommend.explanations import (
    ID,
    Explanation,
    PastItem,
    Reason,
    Sentence,
    past_weights,
    reasons,
    score_parts,
    sentence_weights,
)
from msm4sr.recommend.index import ApproximateIndex, top_k
from msm4sr.recommend.scoring import BOTH, best_rows, encode_histories, modalities_of, score_all, similarities

# difflib needs about 10 us a candidate; beyond this many, only those that share most letters are compared.
CLOSE_CANDIDATES = 5_000
LONGEST_ID = 200


@dataclass(frozen=True)
class ItemTable:
    """What people see of the catalogue; row i of every list is item i of the model.

    `images` holds each item's picture paths relative to `folder`. Leave both out where there are no pictures.
    """

    item_ids: list[str]
    titles: list[str]
    images: list[list[str]] | None = None
    folder: Path | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.item_ids), len(self.titles), len(self.images or self.item_ids)}
        if len(lengths) > 1:
            raise ValueError("item_ids, titles and images must have one entry per item")

    @classmethod
    def from_dataset(cls, dataset: Dataset) -> ItemTable:
        """The items of a data set; an item without a title goes by its id."""
        return cls.from_items(dataset.items, dataset.folder)

    @classmethod
    def from_items(cls, items: pl.DataFrame, folder: Path) -> ItemTable:
        """The items of a catalogue, as `read_items` gives it."""
        item_ids: list[str] = items["item_id"].to_list()
        titles: list[str | None] = items["title"].to_list()
        images: list[list[str] | None] = items["image"].to_list()
        return cls(
            item_ids=item_ids,
            titles=[
                title if title and title.strip() else item_id for title, item_id in zip(titles, item_ids, strict=True)
            ],
            images=[[path for path in paths or [] if path] for paths in images],
            folder=folder,
        )

    @cached_property
    def rows(self) -> Mapping[str, int]:
        """Item id -> row."""
        return {item_id: row for row, item_id in enumerate(self.item_ids)}

    def __len__(self) -> int:
        return len(self.item_ids)


@dataclass(frozen=True)
class Recommendation:
    """One recommended item: its row, id and title, its score, its rank from 1, and a reason if one was asked for."""

    item: int
    item_id: str
    title: str
    score: float
    rank: int
    reason: Reason | None = None


@dataclass(frozen=True)
class Recommendations:
    """What came back for a history, best first, and the ids that nobody knows: they were left out."""

    items: list[Recommendation]
    unknown: list[str]


class Recommender:
    """A finished run as a service: any history, any item, new items included. Safe under threads.

        recommender = load_recommender("runs/shop")
        recommender.recommend(["A-17", "B-02"], k=10).items
        recommender.add_items([NewItem("N-1", "Red wooden train", pictures=[Path("train.jpg").read_bytes()])])

    All items of a call are of one state of the catalogue, which a change by another thread does not touch.

    Args:
        model: a model in evaluation mode.
        base: its items.
        encoder: of new items; None where the run cannot take any.
        folder: of the data set, for pictures.
        index: an approximate index over the keys of `base`; None: exact.
        keywords: of the run's items, those that pictures were found to have: item id to words.
    """

    def __init__(
        self,
        model: Model,
        base: Base,
        encoder: ContentEncoder | None = None,
        folder: Path | None = None,
        index: ApproximateIndex | None = None,
        keywords: Mapping[str, list[str]] = {},
    ) -> None:
        self.model, self.encoder, self.folder, self.index = model, encoder, folder, index
        self._catalogue = Catalogue.of(base)
        self._keywords = keywords
        self._changing = Lock()

    # -- looking up

    @property
    def catalogue(self) -> Catalogue:
        """The items as they are now."""
        return self._catalogue

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those by which one can recommend alone, and find similar items."""
        return modalities_of(self.model)

    @property
    def takes_new_items(self) -> bool:
        return self.encoder is not None

    def item(self, item_id: str) -> Item:
        """What is known of an item. Raises InputError for an unknown one."""
        catalogue = self._catalogue
        return catalogue.item(catalogue.known_row(item_id))

    def keywords(self, item_id: str, n: int = 8) -> list[str]:
        """The words of its pictures where the run finds such words, else those that set its text apart."""
        catalogue = self._catalogue
        return self._words(catalogue, catalogue.known_row(item_id), n)

    def read_picture(self, item_id: str, number: int = 0) -> bytes:
        """The bytes of a picture of one of the run's items. Raises BrokenImage where there is none that can be read."""
        base = self._catalogue.base
        row = base.rows.get(item_id)
        if row is None or self.folder is None or not 0 <= number < len(base.images[row]):
            raise BrokenImage("no such picture")
        return read_image(self.folder, base.images[row][number])

    # -- recommending

    def recommend(
        self,
        history: Sequence[str],
        k: int = 10,
        *,
        exclude_seen: bool = True,
        filter: Callable[[Item], bool] | None = None,
        candidates: Collection[str] | None = None,
        by: str = BOTH,
        reasons: bool = False,
    ) -> Recommendations:
        """The `k` items with the highest scores after `history` (item ids, oldest first), best first.

        Ids that are not in the catalogue are left out and reported. Equal scores rank by row. Fewer than `k` come back
        only where there are no more.

        Args:
            exclude_seen: leave the items of the history out.
            filter: only items for which it is true. It is asked from the best item on, until there are `k`.
            candidates: only these items.
            by: a modality's name: its content and the ID alone score (MSM4SR-T and -V); "both": all modalities.
            reasons: say why, in short (costs as much as another 20 histories).

        Raises InputError: an empty history, or one of unknown items only; k < 1; a modality that does not score.
        """
        rest = (k, exclude_seen, filter, candidates, by, reasons)
        return self._recommend([history], *rest)[0]

    def recommend_batch(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        *,
        exclude_seen: bool = True,
        filter: Callable[[Item], bool] | None = None,
        candidates: Collection[str] | None = None,
        by: str = BOTH,
        reasons: bool = False,
    ) -> list[Recommendations]:
        """As `recommend`, for several histories; an InputError says which, counted from 1."""
        return self._recommend(histories, k, exclude_seen, filter, candidates, by, reasons)

    def _recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int,
        exclude_seen: bool,
        keep: Callable[[Item], bool] | None,
        candidates: Collection[str] | None,
        by: str,
        with_reasons: bool,
    ) -> list[Recommendations]:
        if k < 1:
            raise InputError(f"k is {k}: ask for at least 1 recommendation")
        if not histories:
            return []
        model, catalogue = self.model, self._catalogue
        known = [
            catalogue.known_rows(history, f"history {n} of {len(histories)}: " if len(histories) > 1 else "")
            for n, history in enumerate(histories, start=1)
        ]
        among = None
        if candidates is not None:
            among = {row for item_id in candidates if (row := catalogue.row(item_id)) is not None}
        keep_row = None if keep is None else lambda row: keep(catalogue.item(row))
        found = []
        with torch.inference_mode():
            queries: Sequence[Tensor | None] = [None] * len(known)
            if isinstance(model, ProductModel):
                queries = list(encode_histories(model, catalogue, [rows for rows, _ in known], by))
            for query, (rows, unknown) in zip(queries, known, strict=True):
                hidden = set(rows) if exclude_seen or not model.ranks_seen_items else set()
                best = best_rows(model, catalogue, rows, query, k, hidden, keep_row, among, self.index)
                chosen = [row for row, _ in best]
                why = reasons(model, catalogue, rows, query, chosen, by) if with_reasons else [None] * len(best)
                items = [
                    Recommendation(row, catalogue.item_id(row), catalogue.title(row), score, rank, reason)
                    for rank, ((row, score), reason) in enumerate(zip(best, why, strict=True), start=1)
                ]
                found.append(Recommendations(items, unknown))
        return found

    # -- similar items

    def similar_items(self, item_id: str, k: int = 10, by: str = BOTH) -> list[Recommendation]:
        """The `k` items most like an item, best first; the score is a cosine.

        by: "text", "visual" or another modality: what the model makes of it, items without it left out; "both": the
        mean over the modalities that the item has, one that the other lacks counted as 0; "taste": the vectors that are
        multiplied for a score, in which items are near that are taken after the same histories. A model that reads no
        content knows taste alone; ItemKNN compares items by who took both.

        Raises InputError: an unknown item, k < 1, a modality that the model or the item does not have.
        """
        if k < 1:
            raise InputError(f"k is {k}: ask for at least 1 item")
        catalogue = self._catalogue
        row = catalogue.known_row(item_id)
        with torch.inference_mode():
            scores = similarities(self.model, catalogue, row, by)
            best = top_k(scores, k)
        return [
            Recommendation(other, catalogue.item_id(other), catalogue.title(other), float(scores[other]), rank)
            for rank, other in enumerate(best, start=1)
        ]

    # -- adding and removing

    def add_items(self, items: Sequence[NewItem]) -> None:
        """Encode new items; from the next call on they are recommended as any other, by their content.

        All of them or none. Raises InputError: a model that takes no new items; an id that is there already, twice, or
        no proper id; an item of which nothing can be used; a picture that cannot be read.
        """
        self.insert(self.encode_items(items))

    def encode_items(self, items: Sequence[NewItem], new_ids: bool = True) -> list[EncodedItem]:
        """The slow half of `add_items`: nothing is changed yet. Without `new_ids`, the ids are not looked at."""
        encoder = self._encoder()
        if new_ids:
            self._check_new([item.item_id for item in items])
        contents = [content.Item(i.item_id, i.title, i.text, images=i.pictures, features=i.vectors) for i in items]
        encoded = [replace(one, images=()) for one in encoder.encode(contents)]
        for item, one in zip(items, encoded, strict=True):
            if not any(len(rows) for rows in one.features.values()):
                needs = " or ".join(sorted(one.features))
                raise InputError(f"item {item.item_id!r}: there is nothing to know it by; give it a {needs}")
        return [
            EncodedItem(i.item_id, i.title, i.text, tuple(i.categories), len(i.pictures), one)
            for i, one in zip(items, encoded, strict=True)
        ]

    def insert(self, items: Sequence[EncodedItem]) -> None:
        """The quick half of `add_items`."""
        self._encoder()
        if not items:
            return
        vectors = self._vectors_of(items)
        with self._changing:
            self._check_new([item.item_id for item in items])
            self._catalogue = self._catalogue.with_added(items, vectors)

    def update(self, gone: Sequence[str], come: Sequence[EncodedItem]) -> None:
        """Remove items that are there, then add others, in one step: nobody sees the catalogue between."""
        vectors = self._vectors_of(come) if come else None
        with self._changing:
            catalogue = self._catalogue.without(gone) if gone else self._catalogue
            self._catalogue = catalogue if vectors is None else catalogue.with_added(come, vectors)

    def remove_items(self, item_ids: Sequence[str]) -> None:
        """From the next call on these items are recommended no longer, and unknown in histories.

        All of them or none. Raises InputError for an unknown item, and where no item would be left.
        """
        with self._changing:
            catalogue = self._catalogue
            for item_id in item_ids:
                catalogue.known_row(item_id)
            rest = catalogue.without(item_ids)
            if rest.n_items == 0:
                raise InputError("no item would be left to recommend; keep one at least")
            self._catalogue = rest

    def _encoder(self) -> ContentEncoder:
        if self.encoder is None:
            raise InputError(
                f"a model {type(self.model).__name__} takes no new items: it must be trained on them; train msm4sr, "
                "which knows an item by its content"
            )
        return self.encoder

    def _check_new(self, item_ids: Sequence[str]) -> None:
        catalogue = self._catalogue
        seen = set()
        for item_id in item_ids:
            if not item_id.strip() or len(item_id) > LONGEST_ID or not item_id.isprintable():
                raise InputError(f"item id {item_id[:LONGEST_ID]!r}: give 1 to {LONGEST_ID} printable characters")
            if catalogue.row(item_id) is not None:
                raise ItemExists(f"item {item_id!r} is in the catalogue already; remove it first, or take another id")
            if item_id in seen:
                raise InputError(f"item {item_id!r} is given twice")
            seen.add(item_id)

    def _vectors_of(self, items: Sequence[EncodedItem]) -> Vectors:
        assert isinstance(self.model, ContentModel)
        features = {}
        for name in self.modalities:
            rows = [torch.from_numpy(item.encoded.features[name]) for item in items]
            lengths = torch.tensor([len(part) for part in rows])
            features[name] = (torch.cat(rows), torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]))
        with torch.inference_mode():
            catalogue = self.model.encode_new_items(features)
            present = torch.stack([features[name][1].diff() > 0 for name in self.modalities], dim=1)
            return Vectors(catalogue, self.model.scoring_vectors(catalogue), present)

    # -- explaining

    def explain(self, history: Sequence[str], item_id: str) -> Explanation:
        """What the score of an item after a history is made of; see `Explanation` and the module `explain`.

        Raises InputError as `recommend` does, and for an unknown item.
        """
        model, catalogue = self.model, self._catalogue
        row = catalogue.known_row(item_id)
        rows, unknown = catalogue.known_rows(history)
        sentences: list[Sentence] = []
        with torch.inference_mode():
            if isinstance(model, ProductModel):
                query = encode_histories(model, catalogue, [rows])[0]
                parts = score_parts(model, catalogue, rows, query, [row])[0]
                texts, vectors = self._sentences(catalogue, row)
                if texts and isinstance(model, ContentModel):
                    sentences = sentence_weights(model, catalogue, query, row, texts, vectors)
            else:
                parts = {ID: float(score_all(model, catalogue, rows)[row])}
            weights = past_weights(model, catalogue, rows, [row], model.max_history)
        history_weights = [
            PastItem(catalogue.item_id(past), catalogue.title(past), float(weight)) for past, weight in weights.items()
        ]
        return Explanation(
            item_id,
            catalogue.title(row),
            sum(parts.values()),
            parts,
            sorted(history_weights, key=lambda past: -past.weight),
            sentences,
            self._words(catalogue, row),
            unknown,
        )

    def _sentences(self, catalogue: Catalogue, row: int) -> tuple[list[str], np.ndarray]:
        """An item's sentences and their vectors; none where they are not known."""
        none: tuple[list[str], np.ndarray] = ([], np.zeros((0, 0), np.float32))
        if not isinstance(self.model, ContentModel) or self.encoder is None or not self.encoder.encodes("text"):
            return none
        n = len(catalogue.base)
        if row >= n:
            encoded = catalogue.added[row - n].encoded
            texts, vectors = list(encoded.sentences), encoded.features["text"]
        else:
            chosen, item = self.encoder.settings.text, catalogue.item(row)
            title = item.title if item.title != item.item_id else None
            texts = item_sentences(title, item.text, chosen.max_sentences, chosen.max_characters)
            vectors = self.model.content_rows("text", row).vectors.numpy()
        return (texts, vectors) if len(texts) == len(vectors) else none

    def _words(self, catalogue: Catalogue, row: int, n: int = 8) -> list[str]:
        item = catalogue.item(row)
        if item.added:
            words = catalogue.added[row - len(catalogue.base)].encoded.keywords
            of_pictures = list(dict.fromkeys(word for picture in words for word in picture))
        else:
            of_pictures = self._keywords.get(item.item_id, [])
        return of_pictures[:n] or self._distinctive.of(f"{item.title} {item.text or ''}", n)

    @cached_property
    def _distinctive(self) -> DistinctiveWords:
        base = self._catalogue.base
        return DistinctiveWords(f"{title} {text or ''}" for title, text in zip(base.titles, base.texts, strict=True))


def recommend(
    model: Scorer,
    items: ItemTable,
    history: Sequence[str],
    k: int = 10,
    exclude_seen: bool = True,
    *,
    catalogue: Tensor | None = None,
) -> list[Recommendation]:
    """The `k` items with the highest scores after `history` (item ids, oldest first), best first.

    The score is the dot product of the history's vector with the item's, equation (12), and for items of the history
    what the model may have learned to add to it (`model.seen_item_bias`). Equal scores rank by
    item row. The model reads the last `max_history` items; `exclude_seen` (default) keeps the whole
    history out of the list, older items too. Fewer than `k` come back only where the catalogue has no more.
    `catalogue` is `model.encode_items()` if the caller already has it, so that many histories share it.

    Raises InputError for an unknown item id (with the nearest ones), an empty history, k < 1, a model whose
    items are not those of `items`, and scores that are not finite.
    """
    if k < 1:
        raise InputError(f"k is {k}: ask for at least 1 recommendation")
    rows = history_rows(items, history)
    scores = score_items(model, rows, catalogue)
    if len(scores) != len(items):
        raise InputError(
            f"the model knows {len(scores)} items, the item table has {len(items)}: they are not of one run"
        )
    if not bool(torch.isfinite(scores).all()):
        raise InputError("the model's scores are not finite: its weights are damaged or its training diverged")

    hidden = set(rows) if exclude_seen else set()
    order: list[int] = torch.sort(scores, descending=True, stable=True).indices[: k + len(hidden)].tolist()
    best = [item for item in order if item not in hidden][:k]
    return [
        Recommendation(item, items.item_ids[item], items.titles[item], float(scores[item]), rank)
        for rank, item in enumerate(best, start=1)
    ]


def score_items(model: Scorer, rows: Sequence[int], catalogue: Tensor | None = None) -> Tensor:
    """Every item's score [N], float32 on the CPU, after a history of item rows, oldest first."""
    with torch.inference_mode(), _evaluating(model):
        if catalogue is None:
            catalogue = model.encode_items()
        batch = torch.tensor([rows[-model.max_history :]], dtype=torch.int64, device=catalogue.device)  # [1, L]
        length = torch.tensor([batch.shape[1]], device=catalogue.device)
        return model.score(batch, length, catalogue, model.scoring_vectors(catalogue))[0].float().cpu()


def history_rows(items: ItemTable, history: Sequence[str]) -> list[int]:
    """The rows of a history's item ids. Raises InputError for an empty history and for unknown ids."""
    if not history:
        raise InputError("the history is empty: give at least one item id")
    unknown = [item_id for item_id in dict.fromkeys(history) if item_id not in items.rows]
    if unknown:
        raise InputError("\n".join(_unknown_item(items, item_id) for item_id in unknown))
    return [items.rows[item_id] for item_id in history]


def user_history(dataset: Dataset, user_id: str) -> list[str]:
    """The item ids that a user took, oldest first. Raises InputError for an unknown user."""
    try:
        user = dataset.user_ids.index(user_id)
    except ValueError:
        near = _nearest(user_id, dataset.user_ids)
        hint = f"did you mean {', '.join(map(repr, near))}?" if near else f"ids look like {dataset.user_ids[0]!r}"
        where = f"the {dataset.n_users} users of {dataset.folder}"
        raise InputError(f"no user {user_id!r} among {where}: {hint}") from None
    return [dataset.item_ids[item] for item in dataset.histories[user]]


def _unknown_item(items: ItemTable, item_id: str) -> str:
    near = [items.rows[name] for name in _nearest(item_id, items.item_ids)]
    # People type titles where ids are asked for: show which id such a title has.
    wanted = set(_nearest(item_id, items.titles))
    near += [row for row, title in enumerate(items.titles) if title in wanted][:3]
    names = [
        repr(name) if title == name else f"{name!r} ({title})"
        for name, title in ((items.item_ids[row], items.titles[row]) for row in dict.fromkeys(near))
    ]
    hint = f"did you mean {', '.join(names)}?" if names else f"ids look like {items.item_ids[0]!r}"
    return f"no item {item_id!r} in the catalogue of {len(items)}: {hint}"


def _nearest(name: str, candidates: Sequence[str], n: int = 3) -> list[str]:
    """The `n` candidates most like `name`, letter case aside; none where none is much like it."""
    folded = name.casefold()
    by_folded: dict[str, str] = {}
    for candidate in candidates:
        by_folded.setdefault(candidate.casefold(), candidate)
    pool = list(by_folded)
    if len(pool) > CLOSE_CANDIDATES:
        letters = set(folded)
        pool = heapq.nsmallest(CLOSE_CANDIDATES, pool, key=lambda other: len(letters ^ set(other)))
    return [by_folded[near] for near in difflib.get_close_matches(folded, pool, n=n, cutoff=0.6)]


@contextmanager
def _evaluating(model: Scorer) -> Iterator[None]:
    """Dropout off while recommending, and the model left as it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
