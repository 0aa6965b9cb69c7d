"""From histories of rows to scores over a `Catalogue`. Call these functions in inference mode, with a model in
evaluation mode.

Of a factorized model, only the embeddings of the histories' items are read, and the product is computed with the items
that are ranked; of another model (ItemKNN) all scores are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from msm4sr.data.batches import latest_items, pad_histories
from msm4sr.errors import InputError
from msm4sr.models.base import FactorizedModel, Model
from msm4sr.models.capabilities import has_content, is_factorized
from msm4sr.ragged import Ragged
from msm4sr.recommend.catalogue import Catalogue
from msm4sr.recommend.index import VectorIndex, Within, top_k
from msm4sr.recommend.stages import stage

BOTH = "both"  # all modalities
COLLABORATIVE = "collaborative"
SLOTS_AT_ONCE = 1 << 14  # positions of padded histories that are encoded at once


@dataclass(frozen=True)
class Query:
    """A history to score after."""

    read: Sequence[int]  # the rows that the model reads, oldest first: the latest `max_history` of the history
    vector: Tensor | None = None  # of the history [Q]; None for an empty one, or a model whose scores are no products


@dataclass(frozen=True)
class Selection:
    """Which rows to recommend: `k` of those `among` (None: all) without the `hidden` ones.

    `keep` is called for each row from the best one on, until it was true `k` times; None: it is true for all.
    """

    k: int
    hidden: Collection[int]
    keep: Callable[[int], bool] | None
    among: Collection[int] | None


def modalities_of(model: Model) -> tuple[str, ...]:
    """The modalities that can score alone, and that similar items can be compared in."""
    return model.content_modalities if has_content(model) else ()


def make_queries(model: Model, catalogue: Catalogue, histories: Sequence[Sequence[int]], by: str = BOTH) -> list[Query]:
    """A query for each history of rows, oldest first. Raises InputError for an unknown `by`."""
    if by != BOTH and by not in (modalities := modalities_of(model)):
        raise InputError(f"by is {by!r}: this model can recommend by {', '.join((*modalities, BOTH))}")
    read = latest_items(histories, model.max_history)
    filled = [history for history in read if history]
    if not is_factorized(model) or not filled:
        return [Query(history) for history in read]
    vectors = iter(encode_histories(model, catalogue, filled, by))
    return [Query(history, next(vectors) if history else None) for history in read]


def encode_histories(model: FactorizedModel, catalogue: Catalogue, read: Sequence[Sequence[int]], by: str) -> Tensor:
    """The vectors of histories of rows that the model reads: [B, Q]."""
    vectors = torch.cat([_encode(model, catalogue, chunk) for chunk in _chunks(read)])
    return model.only(vectors, by) if by != BOTH and has_content(model) else vectors


def _encode(model: FactorizedModel, catalogue: Catalogue, read: Sequence[Sequence[int]]) -> Tensor:
    # Equal items are one row of the gathered embeddings: some models count distinct rows.
    place: dict[int, int] = {}
    places = Ragged.from_rows(([place.setdefault(row, len(place)) for row in history] for history in read), np.int64)
    padded, length = pad_histories(places, model.max_history)  # [B, L]
    return model.encode_last(padded, length, catalogue.gather("embeddings", torch.tensor(list(place))))


def _chunks(histories: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """As many histories at a time as have `SLOTS_AT_ONCE` positions, with padding."""
    chunk: list[Sequence[int]] = []
    longest = 0
    for history in histories:
        longest = max(longest, len(history))
        if chunk and longest * (len(chunk) + 1) > SLOTS_AT_ONCE:
            yield chunk
            chunk, longest = [], len(history)
        chunk.append(history)
    if chunk:
        yield chunk


def score_all(model: Model, catalogue: Catalogue, query: Query) -> Tensor:
    """The score of every row, -inf for removed items: [rows]. After an empty history, its popularity."""
    if not query.read:
        return catalogue.popularity()
    if query.vector is not None:
        return add_seen_bias(model, query.read, catalogue.score(query.vector))
    batch, length = torch.tensor([query.read]), torch.tensor([len(query.read)])
    tensors = catalogue.tensors
    scores = model.score(batch, length, tensors.embeddings, tensors.item_vectors)[0]
    return catalogue.without_removed(scores.float())


def add_seen_bias(model: Model, read: Sequence[int], scores: Tensor, rows: Tensor | None = None) -> Tensor:
    """Add the seen-item bias to the scores of `rows` (None: of all) in place, if the model has one."""
    if is_factorized(model) and (bias := model.seen_bias) is not None:
        biased = torch.tensor(sorted(set(read)), dtype=torch.int64)
        scores[biased if rows is None else torch.isin(rows, biased)] += bias
    return scores


def best_rows(
    model: Model, catalogue: Catalogue, query: Query, selection: Selection, index: VectorIndex
) -> list[tuple[int, float]]:
    """The best selected rows and their scores, best first; equal scores by row. Raises IndexUnavailable.

    `index` has the items of the run.
    """
    k, keep = selection.k, selection.keep
    wanted = k
    while True:
        with stage("search"):
            best = _best_of_all(model, catalogue, query, selection, wanted, index)
        with stage("rules"):
            kept = [pair for pair in best if keep is None or keep(pair[0])][:k]
        if len(kept) == k or len(best) < wanted:
            return kept
        wanted *= 4


def _best_of_all(
    model: Model, catalogue: Catalogue, query: Query, selection: Selection, wanted: int, index: VectorIndex
) -> list[tuple[int, float]]:
    """As `best_rows`, the `wanted` best without `keep`."""
    among = None if selection.among is None else torch.tensor(sorted(selection.among), dtype=torch.int64)
    if query.vector is None:
        scores = score_all(model, catalogue, query)
        scores[torch.tensor(sorted(selection.hidden), dtype=torch.int64)] = -torch.inf
        return (
            _pairs(torch.arange(len(scores)), scores, wanted) if among is None else _pairs(among, scores[among], wanted)
        )
    n, biased = len(catalogue.items), list[int]()
    if is_factorized(model) and model.seen_bias is not None:
        # The index has only the products: a seen item may rank higher by its bias.
        biased = [row for row in {*query.read} - {*selection.hidden} if row < n]
    excluded = torch.tensor([*(row for row in selection.hidden if row < n), *biased], dtype=torch.int64)
    if catalogue.removed:
        excluded = torch.cat([excluded, catalogue.removed_rows])
    found = index.search(query.vector, wanted, Within(None if among is None else among[among < n], excluded=excluded))
    if not biased and not catalogue.added:
        return list(zip(found.rows.tolist(), found.scores.tolist(), strict=True))
    beside = torch.cat([torch.tensor(biased, dtype=torch.int64), torch.arange(n, len(catalogue))])
    vectors = torch.cat([catalogue.tensors.item_vectors[biased], catalogue.added_tensors.item_vectors])
    scores = add_seen_bias(model, query.read, vectors @ query.vector, beside)
    scores[torch.isin(beside, torch.tensor(list(selection.hidden), dtype=torch.int64))] = -torch.inf
    if among is not None:
        scores[~torch.isin(beside, among)] = -torch.inf
    rows, order = torch.cat([found.rows, beside]).sort()
    return _pairs(rows, torch.cat([found.scores, scores])[order], wanted)


def _pairs(rows: Tensor, scores: Tensor, k: int) -> list[tuple[int, float]]:
    """The `k` best of ascending rows, and their scores."""
    best = top_k(scores, k)
    return list(zip(rows[best].tolist(), scores[best].tolist(), strict=True))


def similarities(model: Model, catalogue: Catalogue, row: int, by: str = BOTH) -> Tensor:
    """The similarity of each row to one, -inf for itself and for rows without the modality: [rows].

    See `Recommender.similar_items`.
    """
    modalities = modalities_of(model)
    choices = (*modalities, *([BOTH] if modalities else []), COLLABORATIVE)
    if by not in choices and by != BOTH:
        raise InputError(f"by is {by!r}: this model can find similar items by {', '.join(choices)}")
    if not is_factorized(model):
        scores = score_all(model, catalogue, Query([row]))
    elif by == COLLABORATIVE or not modalities:
        scores = _cosines(row, catalogue.tensors.item_vectors, catalogue.added_tensors.item_vectors)
    else:
        scores = _by_content(modalities, catalogue, row, by)
    scores[row] = -torch.inf
    return catalogue.without_removed(scores)


def _by_content(modalities: Sequence[str], catalogue: Catalogue, row: int, by: str) -> Tensor:
    present = torch.cat([catalogue.tensors.present, catalogue.added_tensors.present])  # [rows, modalities]
    chosen = [m for m, name in enumerate(modalities) if by in (name, BOTH) and bool(present[row, m])]
    if not chosen:
        what = by if by != BOTH else "content"
        raise InputError(f"item {catalogue.item_id(row)!r} has no {what}: use by={COLLABORATIVE!r}")
    total = torch.zeros(len(catalogue))
    for m in chosen:
        cosines = _cosines(row, catalogue.tensors.embeddings[:, m], catalogue.added_tensors.embeddings[:, m])
        total += torch.where(present[:, m], cosines, 0.0 if by == BOTH else -torch.inf)
    return total / len(chosen)


def _cosines(row: int, run: Tensor, added: Tensor) -> Tensor:
    """The cosine of each vector, those of the run's items and of the added ones, with that of `row`: [rows]."""
    vector = run[row] if row < len(run) else added[row - len(run)]
    length = vector.norm().clamp(min=1e-12)
    return torch.cat([table @ vector / (table.norm(dim=1).clamp(min=1e-12) * length) for table in (run, added)])
