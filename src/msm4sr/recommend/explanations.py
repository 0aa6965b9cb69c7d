"""What a score is made of. Call it in inference mode.

With h a history's vector and F, E an item's content and ID (equation 12), the score is exactly the sum of h^a F^a over
the modalities, and of h E; and of what the model adds where the history holds the item, if it has learned that. What a
past item or a sentence weighs is the score as it is minus the score without it, all else as it was: such weights need
not sum to anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from msm4sr.models.base import ContentModel, Model, ProductModel
from msm4sr.recommend.catalogue import Catalogue
from msm4sr.recommend.scoring import BOTH, encode_histories, left_out, score_all, with_repeats

ID = "id"  # the name of the part of a score that is no modality's content
TAKEN = "taken"  # of the part that the history gives to what it holds
REASONS_FROM = 20  # latest items of a history among which a reason is looked for


@dataclass(frozen=True)
class Reason:
    """Why an item is recommended, in short: the past item that gives it most, and what of it counts most.

    `because` is None where every past item speaks against it; `mostly` is a modality, "id" or "taken".
    """

    because: str | None
    because_title: str
    mostly: str


@dataclass(frozen=True)
class PastItem:
    """An item of the history, and by how much the score falls without it (rises, where negative)."""

    item_id: str
    title: str
    weight: float


@dataclass(frozen=True)
class Sentence:
    """A sentence of an item: its alpha of equation 3, and by how much the score falls without it."""

    text: str
    attention: float
    weight: float


@dataclass(frozen=True)
class Explanation:
    """What the score of an item is made of.

    `parts` sum to the score: each modality's content, and "id", what was learned of the item beside its content; of a
    model with `seen_item_bias` also "taken", which is 0 of what the history does not hold.
    `history` has the items that were read, the most weighing first; `sentences` stand in the item's order; `keywords`
    are the words of its pictures where the run finds such words, else those that set its text apart. `unknown` are ids
    of the history that nobody knows.
    """

    item_id: str
    title: str
    score: float
    parts: dict[str, float]
    history: list[PastItem]
    sentences: list[Sentence]
    keywords: list[str]
    unknown: list[str]


def score_parts(
    model: ProductModel, catalogue: Catalogue, history: Sequence[int], query: Tensor, rows: Sequence[int]
) -> list[dict[str, float]]:
    """Of the score of each row after a history, whose vector is `query`, the parts by name."""
    chosen = torch.tensor(rows, dtype=torch.int64)
    vectors = catalogue.gather(chosen)
    names: tuple[str, ...] = (ID,)
    parts = (vectors.keys @ query).unsqueeze(1)  # [rows, parts]
    if isinstance(model, ContentModel):
        names, parts = (*model.content_modalities, ID), model.score_parts(query, vectors.catalogue)
    if model.repeat is not None:
        names = (*names, TAKEN)
        parts = torch.cat([parts, with_repeats(model, history, torch.zeros(len(rows)), chosen).unsqueeze(1)], dim=1)
    return [dict(zip(names, row, strict=True)) for row in parts.tolist()]


def past_weights(
    model: Model, catalogue: Catalogue, history: Sequence[int], rows: Sequence[int], latest: int, by: str = BOTH
) -> dict[int, Tensor]:
    """Of each of the `latest` distinct items that are read, by how much the scores of `rows` fall without it: [rows].

    Where nothing would be left to score by, it is the score itself.
    """
    read = history[-model.max_history :]
    without = dict(left_out(read)[:latest])
    histories = [read, *(rest for rest in without.values() if rest)]
    if isinstance(model, ProductModel):
        chosen = torch.tensor(rows, dtype=torch.int64)
        keys = catalogue.gather(chosen).keys
        scores = encode_histories(model, catalogue, histories, by) @ keys.T  # [histories, rows]
        for one, row in zip(histories, scores, strict=True):
            with_repeats(model, one, row, chosen)
    else:
        scores = torch.stack([score_all(model, catalogue, one)[torch.tensor(rows)] for one in histories])
    rests = iter(scores[1:])
    return {past: scores[0] - next(rests) if rest else scores[0] for past, rest in without.items()}


def reasons(
    model: Model, catalogue: Catalogue, history: Sequence[int], query: Tensor | None, rows: Sequence[int], by: str
) -> list[Reason]:
    """A reason for each row."""
    if not rows:
        return []
    weights = past_weights(model, catalogue, history, rows, REASONS_FROM, by)
    pasts = list(weights)
    most, place = torch.stack(list(weights.values())).max(dim=0)  # over [past, rows]
    mostly = [ID] * len(rows)
    if query is not None and isinstance(model, ProductModel):
        parts = score_parts(model, catalogue, history, query, rows)
        mostly = [max(part, key=part.__getitem__) for part in parts]
    chosen = [pasts[int(p)] if weight > 0 else None for p, weight in zip(place, most, strict=True)]
    return [
        Reason(None, "", name) if past is None else Reason(catalogue.item_id(past), catalogue.title(past), name)
        for past, name in zip(chosen, mostly, strict=True)
    ]


def sentence_weights(
    model: ContentModel, catalogue: Catalogue, query: Tensor, row: int, sentences: Sequence[str], rows: np.ndarray
) -> list[Sentence]:
    """What the sentences of a row's text weigh; `rows` [sentences, D_in] are their vectors.

    Without its only sentence, the item has the learned stand-in for a text.
    """
    n = len(sentences)
    vectors = torch.from_numpy(np.ascontiguousarray(rows))
    full, attention = model.encode_part("text", vectors, torch.tensor([n]))
    kept = torch.tensor([other for left in range(n) for other in range(n) if other != left], dtype=torch.int64)
    shorter, _ = model.encode_part("text", vectors[kept], torch.full((n,), n - 1))
    variants = catalogue.gather(torch.full((1 + n,), row)).catalogue
    variants[:, model.content_modalities.index("text")] = torch.cat([full, shorter])
    scores = model.scoring_vectors(variants) @ query
    return [
        Sentence(text, float(attention[place]), float(scores[0] - scores[1 + place]))
        for place, text in enumerate(sentences)
    ]
