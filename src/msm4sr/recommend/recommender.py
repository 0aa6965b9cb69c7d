"""From a history to recommendations: `Recommender`, used by the command line, the reports and the service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from msm4sr.data.dataset import Dataset, training_counts
from msm4sr.data.images import BrokenImage
from msm4sr.data.items import Item, Items
from msm4sr.errors import InputError
from msm4sr.features.content import ContentEncoder
from msm4sr.features.images import read_image
from msm4sr.features.text import item_sentences
from msm4sr.models.base import Model
from msm4sr.models.capabilities import has_content, is_factorized
from msm4sr.ragged import Ragged
from msm4sr.recommend.catalogue import Catalogue, ItemTensors
from msm4sr.recommend.explanations import (
    DistinctiveWords,
    Explanation,
    PastItem,
    Reason,
    Sentence,
    past_weights,
    reasons_for,
    score_parts,
    sentence_weights,
)
from msm4sr.recommend.history_cache import HistoryCache
from msm4sr.recommend.index import ExactIndex, Found, VectorIndex
from msm4sr.recommend.rules import NO_RULES, Rules
from msm4sr.recommend.scoring import BOTH, best_of, best_rows, make_queries, modalities_of, similarities
from msm4sr.recommend.stages import stage
from msm4sr.recommend.users import UserHistories


@dataclass(frozen=True)
class Recommendation:
    """A recommended item. Scores, boosts included, are comparable within one list only; ranks count from 1."""

    item_id: str
    title: str  # or the id of an item without one
    score: float
    rank: int
    reason: Reason | None = None  # on request


@dataclass(frozen=True)
class Recommendations:
    """Recommended items, best first, and the ids of the history that the catalogue lacks.

    `popular`: no item of the history is known; the items are those with the most training interactions, which are the
    scores (before boosts).
    """

    items: list[Recommendation]
    unknown: list[str]
    popular: bool = False


class Recommender:
    """Recommends for any history and supports new items. Thread-safe.

        recommender = load_recommender("runs/shop")
        recommender.recommend(["A-17", "B-02"], k=10).items
        recommender.add_items([Item("N-1", "Red wooden train", images=[Path("train.jpg").read_bytes()])])

    A call sees one state of `catalogue`, whatever other threads change meanwhile. Each of `modalities` can score alone.

    Args:
        model: in evaluation mode, on the CPU.
        catalogue: its items.
        encoder: encodes new items; None for a run without support for them.
        folder: the data set's, for images.
        index: of the item vectors of the run; None: exact.
        keywords: item id to the keywords of its images, of the run's items.
        strict: unknown ids in a history or in rules are an error that names the closest ids; else those of a history
            are reported in `Recommendations.unknown`, and all are ignored.
        users: the histories of the users of the run; None: they are unknown.
    """

    def __init__(
        self,
        model: Model,
        catalogue: Catalogue,
        encoder: ContentEncoder | None = None,
        folder: Path | None = None,
        index: VectorIndex | None = None,
        keywords: Mapping[str, list[str]] = {},
        strict: bool = False,
        users: UserHistories | None = None,
    ) -> None:
        self.model, self.encoder, self.folder, self.strict = model, encoder, folder, strict
        self.index: VectorIndex = index or ExactIndex(catalogue.tensors.item_vectors)
        self.catalogue, self.modalities = catalogue, modalities_of(model)
        self.cache = HistoryCache(model) if is_factorized(model) else None
        self.users, self._keywords, self._changing = users, keywords, Lock()

    @classmethod
    def from_dataset(cls, model: Model, dataset: Dataset) -> Recommender:
        """The recommender of a model in memory that was trained on `dataset`; it does not support new items.

        The model is moved to the CPU and put into evaluation mode.
        """
        items, counts = Items.from_frame(dataset.items), training_counts(dataset).tolist()
        catalogue = Catalogue.of_model(model.cpu().eval(), items, counts, str(dataset.folder))
        users = UserHistories(lambda: dataset, items.item_ids)
        return cls(model, catalogue, folder=dataset.folder, users=users)

    def item(self, item_id: str) -> Item:
        """The stored content of an item. Raises UnknownItem."""
        catalogue = self.catalogue
        return catalogue.item(catalogue.known_row(item_id))

    def keywords(self, item: Item, n: int = 8) -> list[str]:
        """Keywords of the item's images if the run finds keywords, else distinctive words of its text."""
        found = list(dict.fromkeys(chain.from_iterable(item.keywords))) or self._keywords.get(item.item_id, [])
        return found[:n] or self._distinctive.of(f"{item.name} {item.text or ''}", n)

    @cached_property
    def _distinctive(self) -> DistinctiveWords:
        items = self.catalogue.items
        return DistinctiveWords(f"{items.name(row)} {text or ''}" for row, text in enumerate(items.texts))

    def read_image(self, item_id: str, number: int = 0) -> bytes:
        """The bytes of an image file of one of the run's items. Raises BrokenImage if it cannot be read."""
        items = self.catalogue.items
        row = items.rows.get(item_id)
        if row is None or self.folder is None or not 0 <= number < len(items.images[row]):
            raise BrokenImage("no such image")
        return read_image(self.folder, items.images[row][number])

    def recommend(
        self,
        history: Sequence[str],
        k: int = 10,
        *,
        exclude_seen: bool = True,
        rules: Rules = NO_RULES,
        by: str = BOTH,
        reasons: bool = False,
    ) -> Recommendations:
        """The `k` items with the highest scores after `history`, best first; equal scores in the order of the rows.

        After a history that is empty or has only unknown ids: the most popular items (`Recommendations.popular`).
        The model reads the latest `model.max_history` items; `exclude_seen` excludes the older ones too. Fewer than
        `k` items are returned only if there are no more.

        Args:
            history: item ids, oldest first.
            k: number of items.
            exclude_seen: do not recommend items of the history.
            rules: which items to rank, boosts, and diversity; for popular items too.
            by: a modality: its content and the ID alone score the items that have it (MSM4SR-T and -V of the paper);
                "both": all modalities.
            reasons: add a reason to each item unless they are popular ones, at the cost of about 20 more histories.

        Raises:
            InputError: `strict` and an unknown id or category; k < 1; a modality that cannot score alone.
        """
        return self.recommend_batch([history], k, exclude_seen=exclude_seen, rules=rules, by=by, reasons=reasons)[0]

    def recommend_batch(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        *,
        exclude_seen: bool = True,
        rules: Rules = NO_RULES,
        by: str = BOTH,
        reasons: bool = False,
    ) -> list[Recommendations]:
        """As `recommend`, for several histories; an InputError names the history, counted from 1.

        Args:
            histories: of item ids, each oldest first.
            k: number of items for each.
            exclude_seen: do not recommend items of the history.
            rules: which items to rank, boosts, and diversity.
            by: a modality, or "both".
            reasons: add a reason to each item.
        """
        if k < 1:
            raise InputError(f"k is {k}: ask for at least 1 recommendation")
        if not histories:
            return []
        model, catalogue, n = self.model, self.catalogue, len(histories)
        known = [
            catalogue.known_rows(history, self.strict, f"history {number} of {n}: " if n > 1 else "")
            for number, history in enumerate(histories, start=1)
        ]
        with stage("rules"):
            row_rules = rules.rows(catalogue, self.strict)
        found = []
        with torch.inference_mode():
            with stage("encode"):
                queries = make_queries(model, catalogue, [rows for rows, _ in known], by, self.cache)
            if exclude_seen or not model.ranks_seen_items:
                queries = [replace(query, hidden=set(rows)) for query, (rows, _) in zip(queries, known, strict=True)]
            with stage("search"):
                lists = best_rows(model, catalogue, queries, k, row_rules, self.index)
            for query, best, (rows, unknown) in zip(queries, lists, known, strict=True):
                why = None
                if reasons and rows:
                    with stage("reasons"):
                        why = reasons_for(model, catalogue, query, best.rows.tolist(), by)
                found.append(Recommendations(_recommendations(catalogue, best, why), unknown, not rows))
        return found

    def recommend_for_user(self, user_id: str, k: int = 10, **options: Any) -> Recommendations:
        """As `recommend`, after the history of a user of the run's data. Raises as `user_history` too.

        Args:
            user_id: of the data.
            k: number of items.
            options: those of `recommend`.
        """
        return self.recommend(self.user_history(user_id), k, **options)

    def user_history(self, user_id: str) -> list[str]:
        """The ids of the items that a user of the run's data interacted with, oldest first.

        Raises:
            UnknownUser: the data has no such user; if `strict`, the message names the closest ids.
            InputError: the data is not there, or its items are no longer those of the run.
        """
        if self.users is None:
            raise InputError("this recommender has no data with users; give a history")
        return self.users.history(user_id, self.strict)

    def similar_items(self, item_id: str, k: int = 10, by: str = BOTH) -> list[Recommendation]:
        """The `k` items most similar to an item, best first; the score is a cosine.

        Args:
            item_id: of the catalogue, or added.
            k: number of items.
            by: a modality: the embeddings of its content, among the items that have it; "both": the mean over the
                modalities of the item, with 0 for a modality that the other item lacks; "collaborative": the item
                vectors, which are close for items that follow the same histories. A model that reads no content only
                has the last; ItemKNN compares items by the users that they share.

        Raises:
            InputError: an unknown item, k < 1, a modality that the model or the item lacks.
        """
        if k < 1:
            raise InputError(f"k is {k}: ask for at least 1 item")
        catalogue = self.catalogue
        row = catalogue.known_row(item_id)
        with torch.inference_mode():
            scores = similarities(self.model, catalogue, row, by)
            return _recommendations(catalogue, best_of(torch.arange(len(scores)), scores, k))

    def add_items(self, items: Sequence[Item]) -> None:
        """Encode new items; from the next call on they are recommended by their content. All are added, or none.

        Args:
            items: with texts, the bytes of images, or features.

        Raises:
            InputError: a model without new items; an id that is in the catalogue, given twice or malformed; an
                item without usable content; an image that cannot be read.
        """
        self.catalogue.check_new(items)
        self.update([], [replace(item, images=()) for item in self.encode_items(items)])

    def encode_items(self, items: Sequence[Item]) -> list[Item]:
        """The slow part of `add_items`: the items with their features. Nothing changes yet, and ids are not checked."""
        if self.encoder is None:
            name = self.model.config.model_dump()["name"]
            raise InputError(f"{name} cannot add items without retraining; msm4sr can")
        encoded = self.encoder.encode(items)
        for item in encoded:
            if not any(len(rows) for rows in item.features.values()):
                nouns = {"text": "a text", "visual": "an image"}
                needs = " or ".join(nouns.get(name, name) for name in sorted(item.features))
                raise InputError(f"item {item.item_id!r}: it has no content that the model reads; give it {needs}")
        return encoded

    def update(self, removed: Sequence[str], added: Sequence[Item], available: Mapping[str, bool] = {}) -> None:
        """Remove items, add encoded ones, and switch known items off or on; no reader sees a state in between.

        Args:
            removed: ids of items to remove.
            added: items from `encode_items`.
            available: item id to whether it is recommended.
        """
        tensors = self.tensors_of(added) if added else None
        with self._changing:
            catalogue = self.catalogue.without(removed) if removed else self.catalogue
            catalogue = catalogue if tensors is None else catalogue.with_added(added, tensors)
            for value in (True, False):
                ids = [one for one, on in available.items() if on == value and catalogue.row(one) is not None]
                catalogue = catalogue.with_available(ids, value) if ids else catalogue
            self.catalogue = catalogue

    def remove_items(self, item_ids: Sequence[str]) -> None:
        """Remove all of these items or none; from the next call on they are neither recommended nor known in histories.

        Raises InputError for an unknown item, or if no item would remain.
        """
        with self._changing:
            rest = self.catalogue.without(item_ids)
            rest.check_left()
            self.catalogue = rest

    def set_available(self, item_ids: Sequence[str], available: bool) -> None:
        """Recommend items from the next call on, or no longer; in histories they stay known.

        Raises InputError for an unknown item, or if no item would be left to recommend.
        """
        with self._changing:
            catalogue = self.catalogue.with_available(item_ids, available)
            catalogue.check_left()
            self.catalogue = catalogue

    def tensors_of(self, items: Sequence[Item]) -> ItemTensors:
        """Encoded items as the model represents them. Raises InputError for features that make no finite scores."""
        assert has_content(self.model)
        features = {}
        for name in self.modalities:
            rows = [torch.from_numpy(item.features[name]) for item in items]
            features[name] = Ragged(torch.cat(rows), torch.tensor([0, *accumulate(map(len, rows))]))
        with torch.inference_mode():
            embeddings = self.model.encode_new_items(features)
            present = torch.stack([features[name].lengths > 0 for name in self.modalities], dim=1)
            tensors = ItemTensors(embeddings, self.model.scoring_vectors(embeddings), present)
        if not bool(torch.isfinite(tensors.embeddings).all() and torch.isfinite(tensors.item_vectors).all()):
            raise InputError("the scores of a new item are not finite")
        return tensors

    def explain(self, history: Sequence[str], item_id: str) -> Explanation:
        """Explain the score of an item after a history: its parts, and what each history item contributes.

        Args:
            history: item ids, oldest first.
            item_id: the item whose score is explained.

        Raises:
            InputError: as `recommend`; an unknown item; no item of the history is known.
        """
        model, catalogue = self.model, self.catalogue
        row = catalogue.known_row(item_id)
        rows, unknown = catalogue.known_rows(history, self.strict)
        if not rows:
            raise InputError("none of the history's items is in the catalogue: give at least one that is")
        with torch.inference_mode():
            (query,) = make_queries(model, catalogue, [rows])
            (parts,) = score_parts(model, catalogue, query, [row])
            weights = past_weights(model, catalogue, query.read, [row], model.max_history)
            sentences = self._sentences(catalogue, row, query.vector)
        past = [PastItem(catalogue.item_id(one), catalogue.name(one), float(weight)) for one, weight in weights.items()]
        past.sort(key=lambda one: -one.weight)
        name, keywords = catalogue.name(row), self.keywords(catalogue.item(row))
        return Explanation(item_id, name, sum(parts.values()), parts, past, sentences, keywords, unknown)

    def _sentences(self, catalogue: Catalogue, row: int, vector: Tensor | None) -> list[Sentence]:
        """An item's sentences and their weights after a history with `vector`; none if they are unknown."""
        if vector is None or not has_content(self.model) or self.encoder is None or not self.encoder.encodes("text"):
            return []
        item, chosen = catalogue.item(row), self.encoder.settings.text
        if catalogue.is_added(row):
            texts = item.sentences
            features = self.model.prepare_rows("text", torch.from_numpy(item.features["text"]))
        else:
            texts = item_sentences(item.title, item.text, chosen.max_sentences, chosen.max_characters)
            features = self.model.content_rows("text")[row].float()
        same = 0 < len(texts) == len(features)
        return sentence_weights(self.model, catalogue, vector, row, texts, features) if same else []


def _recommendations(
    catalogue: Catalogue, best: Found, reasons: Sequence[Reason | None] | None = None
) -> list[Recommendation]:
    rows, scores = best.rows.tolist(), best.scores.tolist()
    return [
        Recommendation(catalogue.item_id(row), catalogue.name(row), score, rank, reason)
        for rank, (row, score, reason) in enumerate(zip(rows, scores, reasons or [None] * len(rows), strict=True), 1)
    ]
