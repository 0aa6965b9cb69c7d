"""Explanations of scores. Call these functions in inference mode.

With h the vector of a history and F, E the content and ID embeddings of an item (equation 12), the score is the exact
sum of h^a F^a over the modalities and of h E, plus the seen-item bias if the history has the item and the model has
such a bias. The weight of a past item or of a sentence is the score minus the score without it, all else equal; these
weights need not sum to the score.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import torch
from torch import Tensor

from msm4sr.features.keywords import words_of
from msm4sr.models.base import ContentModel, Model
from msm4sr.models.capabilities import has_content, is_factorized
from msm4sr.ragged import Ragged
from msm4sr.recommend.catalogue import Catalogue
from msm4sr.recommend.scoring import BOTH, Query, add_seen_bias, by_modality, encode_histories, score_all

ID = "id"  # the part of a score that is no modality's content
SEEN = "seen"  # the part that is the seen-item bias
REASONS_FROM = 20  # latest items of a history among which a reason is searched
MAX_CHARACTERS, MAX_TEXTS = 4000, 20_000  # of a text and of a catalogue, whose words are counted


@dataclass(frozen=True)
class Reason:
    """Why an item is recommended, in short.

    `because` is the past item that adds most to the score, null if every past item lowers it; `mostly` the largest
    part of the score: a modality, "id" or "seen".
    """

    because: str | None
    because_title: str
    mostly: str


@dataclass(frozen=True)
class PastItem:
    """An item of the history, and the score minus the score without it."""

    item_id: str
    title: str
    weight: float


@dataclass(frozen=True)
class Sentence:
    """A sentence of an item, its attention weight (equation 3), and the score minus the score without it."""

    text: str
    attention: float
    weight: float


@dataclass(frozen=True)
class Explanation:
    """The explanation of the score of an item.

    Attributes:
        parts: sum to the score: the content of each modality; "id", which was learned beside the content; and of a
            model with a seen-item bias "seen", which is 0 for items that the history lacks.
        history: the items that the model read, the highest weight first.
        sentences: in the order of the item's text.
        keywords: of its images if the run finds keywords, else distinctive words of its text.
        unknown: ids of the history that the catalogue lacks.
    """

    item_id: str
    title: str
    score: float
    parts: dict[str, float]
    history: list[PastItem]
    sentences: list[Sentence]
    keywords: list[str]
    unknown: list[str]


def score_parts(model: Model, catalogue: Catalogue, query: Query, rows: Sequence[int]) -> list[dict[str, float]]:
    """The parts of each row's score by name."""
    chosen = torch.tensor(rows, dtype=torch.int64)
    if not is_factorized(model) or query.vector is None:
        return [{ID: score} for score in score_all(model, catalogue, query)[chosen].tolist()]
    names: tuple[str, ...] = (ID,)
    if has_content(model):
        names = (*model.content_modalities, ID)
        parts = model.score_parts(query.vector, catalogue.gather("embeddings", chosen))  # [rows, parts]
    else:
        parts = (catalogue.gather("item_vectors", chosen) @ query.vector).unsqueeze(1)
    if model.seen_bias is not None:
        names = (*names, SEEN)
        seen = add_seen_bias(model, query.read, torch.zeros(len(rows)), chosen)
        parts = torch.cat([parts, seen.unsqueeze(1)], dim=1)
    return [dict(zip(names, row, strict=True)) for row in parts.tolist()]


def past_weights(
    model: Model, catalogue: Catalogue, read: Sequence[int], rows: Sequence[int], latest: int, by: str = BOTH
) -> dict[int, Tensor]:
    """The weights of the `latest` distinct past items for the scores of `rows`: [rows] each.

    `read` are the rows that the model reads. The weight of the only past item is the score.
    """
    past = list(dict.fromkeys(reversed(read)))[:latest]
    without = {left: [row for row in read if row != left] for left in past}
    histories = [read, *(rest for rest in without.values() if rest)]
    chosen = torch.tensor(rows, dtype=torch.int64)
    if is_factorized(model):
        vectors = encode_histories(model, catalogue, histories, by)
        products = vectors @ catalogue.gather("item_vectors", chosen).T  # [histories, rows]
        scores = by_modality(model, catalogue, by, products, chosen)
        for history, row in zip(histories, scores, strict=True):
            add_seen_bias(model, history, row, chosen)
    else:
        scores = torch.stack([score_all(model, catalogue, Query(history))[chosen] for history in histories])
    rests = iter(scores[1:])
    return {left: scores[0] - next(rests) if rest else scores[0] for left, rest in without.items()}


def reasons_for(model: Model, catalogue: Catalogue, query: Query, rows: Sequence[int], by: str) -> list[Reason]:
    """A reason for each row."""
    if not rows:
        return []
    weights = past_weights(model, catalogue, query.read, rows, REASONS_FROM, by)
    past = list(weights)
    most, place = torch.stack(list(weights.values())).max(dim=0)  # over [past, rows]
    reasons = []
    row_parts = score_parts(model, catalogue, query, rows)
    for number, weight, parts in zip(place.tolist(), most.tolist(), row_parts, strict=True):
        row, mostly = past[number], max(parts, key=parts.__getitem__)
        because, title = (catalogue.item_id(row), catalogue.name(row)) if weight > 0 else (None, "")
        reasons.append(Reason(because, title, mostly))
    return reasons


def sentence_weights(
    model: ContentModel, catalogue: Catalogue, vector: Tensor, row: int, texts: Sequence[str], features: Tensor
) -> list[Sentence]:
    """The sentences of an item and their weights, after a history with `vector` [Q].

    `features` [sentences, k] are those of the sentences. Without its only sentence, the item has no text.
    """
    n = len(texts)
    full, attention = model.encode_part("text", Ragged(features, torch.tensor([0, n])))
    kept = torch.tensor([other for left in range(n) for other in range(n) if other != left], dtype=torch.int64)
    shorter, _ = model.encode_part("text", Ragged(features[kept], (n - 1) * torch.arange(n + 1)))
    variants = catalogue.gather("embeddings", torch.full((1 + n,), row))
    variants[:, model.content_modalities.index("text")] = torch.cat([full, shorter])
    scores = model.scoring_vectors(variants) @ vector
    weights = scores[0] - scores[1:]
    return [Sentence(*row) for row in zip(texts, attention.tolist(), weights.tolist(), strict=True)]


class DistinctiveWords:
    """The words of a text with the highest tf-idf: (1 + log count in the text) log(texts / texts with the word).

    Excluded are words that fewer than two texts have, since they are names rather than keywords, and English stop
    words (scikit-learn's list). Of the texts of the catalogue, the first `MAX_TEXTS` are counted.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        words = [set(words_of(text[:MAX_CHARACTERS])) for text in islice(texts, MAX_TEXTS)]
        self._texts, self._texts_with = len(words), Counter(chain.from_iterable(words))

    def of(self, text: str, n: int = 8) -> list[str]:
        """The `n` best words of a text, best first; ties in alphabetical order."""
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

        counts = Counter(word for word in words_of(text[:MAX_CHARACTERS]) if word not in ENGLISH_STOP_WORDS)
        scored = [
            (-(1 + math.log(count)) * math.log(self._texts / self._texts_with[word]), word)
            for word, count in counts.items()
            if 2 <= self._texts_with[word] < self._texts
        ]
        return [word for _, word in sorted(scored)[:n]]
