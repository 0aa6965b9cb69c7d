"""From histories of rows to scores over a `Catalogue`. Call these functions in inference mode, with a model in
evaluation mode.

Of a factorized model, only the embeddings of the histories' items are read, and the product is computed with the items
that are ranked; of another model (ItemKNN) all scores are computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from msm4sr.data.batches import latest_items, pad_histories
from msm4sr.errors import InputError
from msm4sr.models.base import FactorizedModel, Model
from msm4sr.models.capabilities import has_content, is_factorized
from msm4sr.ragged import Ragged
from msm4sr.recommend.catalogue import Catalogue
from msm4sr.recommend.diversity import diversify, pool_size
from msm4sr.recommend.history_cache import HistoryCache
from msm4sr.recommend.index import Found, VectorIndex, Within, top_k
from msm4sr.recommend.rules import RowRules

BOTH = "both"  # all modalities
COLLABORATIVE = "collaborative"
SLOTS_AT_ONCE = 1 << 11  # positions of padded histories that are encoded at once
BESIDE_SHARE = 8  # at most one in so many rows is scored beside the index; if there are more, all are scored


@dataclass(frozen=True)
class Query:
    """A history to score after."""

    read: Sequence[int]  # the rows that the model reads, oldest first: the latest `max_history` of the history
    vector: Tensor | None = None  # of the history [Q]; None for an empty one, or a model whose scores are no products
    by: str = BOTH  # the modality that scores
    hidden: Collection[int] = ()  # rows that are not recommended


def modalities_of(model: Model) -> tuple[str, ...]:
    """The modalities that can score alone, and that similar items can be compared in."""
    return model.content_modalities if has_content(model) else ()


def make_queries(
    model: Model,
    catalogue: Catalogue,
    histories: Sequence[Sequence[int]],
    by: str = BOTH,
    cache: HistoryCache | None = None,
) -> list[Query]:
    """A query for each history of rows, oldest first. Raises InputError for an unknown `by`.

    A history that is alone, of items of the run, is encoded through the `cache`.
    """
    if by != BOTH and by not in (modalities := modalities_of(model)):
        raise InputError(f"by is {by!r}: this model can recommend by {', '.join((*modalities, BOTH))}")
    read = latest_items(histories, model.max_history)
    filled = [history for history in read if history]
    if not is_factorized(model) or not filled:
        return [Query(history) for history in read]
    if cache is not None and len(filled) == 1 and max(filled[0]) < len(catalogue.items):
        encoded = _only(model, cache.encode(filled[0], partial(catalogue.gather, "embeddings")), by)
    else:
        encoded = encode_histories(model, catalogue, filled, by)
    vectors = iter(encoded)
    return [Query(history, next(vectors), by) if history else Query(history) for history in read]


def encode_histories(model: FactorizedModel, catalogue: Catalogue, read: Sequence[Sequence[int]], by: str) -> Tensor:
    """The vectors of histories of rows that the model reads: [B, Q]."""
    order = sorted(range(len(read)), key=lambda place: len(read[place]))  # similar lengths need little padding
    chunks = _chunks([read[place] for place in order])
    vectors = torch.cat([_encode(model, catalogue, chunk) for chunk in chunks])
    return _only(model, vectors[torch.tensor(order).argsort()], by)


def _only(model: FactorizedModel, vectors: Tensor, by: str) -> Tensor:
    """Vectors [B, Q] of which other modalities than `by` do not count."""
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
    """The score of every row, excluded ones too, -inf for those without the modality of the query: [rows].

    After an empty history, its popularity.
    """
    if not query.read:
        return catalogue.popularity()
    if query.vector is not None:
        scores = by_modality(model, catalogue, query.by, catalogue.score(query.vector))
        return add_seen_bias(model, query.read, scores)
    return _model_scores(model, catalogue, query)


def by_modality(model: Model, catalogue: Catalogue, by: str, scores: Tensor, rows: Tensor | None = None) -> Tensor:
    """Products [..., n] of vectors by a modality with item vectors of `rows` (None: of all) as scores by it alone.

    An item's modalities may share the weight of its score; alone a modality has it all. Without it: -inf.
    """
    if by == BOTH or not has_content(model):
        return scores
    present = catalogue.gather("present", torch.arange(len(catalogue)) if rows is None else rows)  # [n, modalities]
    m = model.content_modalities.index(by)
    return torch.where(present[:, m], scores / model.modality_weights(present)[:, m], -torch.inf)


def _model_scores(model: Model, catalogue: Catalogue, query: Query) -> Tensor:
    """The scores that a model computes for the items of the run."""
    batch, length = torch.tensor([query.read]), torch.tensor([len(query.read)])
    tensors = catalogue.tensors
    return model.score(batch, length, tensors.embeddings, tensors.item_vectors)[0].float()


def add_seen_bias(model: Model, read: Sequence[int], scores: Tensor, rows: Tensor | None = None) -> Tensor:
    """Add the seen-item bias to the scores of `rows` (None: of all) in place, if the model has one."""
    if is_factorized(model) and (bias := model.seen_bias) is not None:
        biased = torch.tensor(sorted(set(read)), dtype=torch.int64)
        scores[biased if rows is None else torch.isin(rows, biased)] += bias
    return scores


def score_deviation(model: Model, catalogue: Catalogue, query: Query) -> float:
    """The standard deviation of the scores of the run's items, without the seen-item bias; 1 if all are equal.

    Removed and unavailable items count, so that a change of the catalogue changes no other score. Of the products of a
    history's vector q with item vectors of covariance C, it is sqrt(q^T C q). Scores by one modality are those of the
    items that have it.
    """
    if query.vector is not None and query.by != BOTH:
        rows = torch.arange(len(catalogue.items))
        scores = by_modality(model, catalogue, query.by, catalogue.score(query.vector)[rows], rows)
        variance = float(scores[scores.isfinite()].double().var(correction=0))
    elif query.vector is not None:
        vector = query.vector.double()
        variance = float(vector @ catalogue.tensors.covariance @ vector)
    else:
        scores = _model_scores(model, catalogue, query) if query.read else catalogue.counts
        variance = float(scores.double().var(correction=0))
    return math.sqrt(variance) if variance > 0 else 1.0


def best_rows(
    model: Model, catalogue: Catalogue, queries: Sequence[Query], k: int, rules: RowRules, index: VectorIndex
) -> list[Found]:
    """The `k` best rows after each query and their scores, boosts included; diverse ones if the rules say so.

    `index` has the items of the run. Raises IndexUnavailable.
    """
    if not rules.diversity:
        return _highest(model, catalogue, queries, k, rules, index)
    pools = _highest(model, catalogue, queries, pool_size(k), rules, index)
    return [_diverse(model, catalogue, pool, k, rules.diversity) for pool in pools]


def _diverse(model: Model, catalogue: Catalogue, pool: Found, k: int, diversity: float) -> Found:
    scores = pool.scores.double().numpy()
    chosen = diversify(scores, _similar_to(model, catalogue, pool.rows), k, diversity)
    return Found(pool.rows[chosen], pool.scores[chosen])


def _similar_to(model: Model, catalogue: Catalogue, rows: Tensor) -> Callable[[int], np.ndarray]:
    """A function from the place of one of `rows` to its similarity with all of them, of the `collaborative` kind."""
    if not is_factorized(model):
        return lambda place: score_all(model, catalogue, Query([int(rows[place])]))[rows].numpy()
    vectors = torch.nn.functional.normalize(catalogue.gather("item_vectors", rows)).numpy()
    return lambda place: vectors @ vectors[place]


def _highest(
    model: Model, catalogue: Catalogue, queries: Sequence[Query], k: int, rules: RowRules, index: VectorIndex
) -> list[Found]:
    """The `k` allowed rows with the highest scores after each query.

    Where the products of the run's items are all that is needed, the index is searched for several queries at once.
    """
    beside = [_beside(model, catalogue, query, rules) for query in queries]
    plain = {
        number: query.vector
        for number, query in enumerate(queries)
        if query.vector is not None and query.by == BOTH and rules.bonus is None and not len(beside[number])
    }
    found: dict[int, Found] = {}
    if plain:
        within = [_within(catalogue, queries[number], rules) for number in plain]
        found = dict(zip(plain, index.search_each(torch.stack([*plain.values()]), k, within), strict=True))
    return [
        found[number] if number in found else _scored(model, catalogue, query, beside[number], k, rules, index)
        for number, query in enumerate(queries)
    ]


def _scored(
    model: Model, catalogue: Catalogue, query: Query, beside: Tensor, k: int, rules: RowRules, index: VectorIndex
) -> Found:
    """`_highest` for a query with scores that are no products of the run's items: those of rows `beside`, or boosts."""
    bonus = None if rules.bonus is None else score_deviation(model, catalogue, query) * rules.bonus
    if query.vector is None or query.by != BOTH or len(beside) * BESIDE_SHARE > len(catalogue):
        scores = catalogue.without_excluded(score_all(model, catalogue, query))
        scores = scores if bonus is None else scores + bonus
        scores[list(query.hidden)] = -torch.inf
        rows = torch.arange(len(scores)) if rules.allowed_rows is None else rules.allowed_rows
        return best_of(rows, scores[rows], k)
    within, wanted = _within(catalogue, query, rules, beside), k
    products = catalogue.gather("item_vectors", beside) @ query.vector
    products = add_seen_bias(model, query.read, products, beside)
    while True:
        found = index.search(query.vector, wanted, within)
        rows, order = torch.cat([found.rows, beside]).sort()
        scores = torch.cat([found.scores, products])[order]
        best = best_of(rows, scores if bonus is None else scores + bonus[rows], k)
        # What the index did not find has no higher product than what it found, and no positive boost.
        if bonus is None or len(found.rows) < wanted:
            return best
        if len(best.rows) == k and best.scores[-1] > found.scores[-1]:
            return best
        wanted *= 4


def _within(catalogue: Catalogue, query: Query, rules: RowRules, *without: Tensor) -> Within:
    """The rows of the run's items to search among, `without` some rows."""
    n, allowed = len(catalogue.items), rules.allowed_rows
    hidden = torch.tensor(list(query.hidden), dtype=torch.int64)
    excluded = torch.cat([hidden, *without, catalogue.excluded_rows])
    excluded = excluded[excluded < n] if catalogue.added else excluded
    return Within(None if allowed is None else allowed[allowed < n], rules.only_categories, excluded)


def _beside(model: Model, catalogue: Catalogue, query: Query, rules: RowRules) -> Tensor:
    """The rows that are scored beside the index, which has only the products of the run's items.

    They are the added items, those of the history if they have a bias, and those with a positive boost: int64,
    ascending.
    """
    biased = set(query.read).difference(query.hidden)
    if biased and not (is_factorized(model) and model.seen_bias is not None):
        biased = set()
    if not biased and not catalogue.added and not len(rules.raised_rows):
        return rules.raised_rows
    added = torch.arange(len(catalogue.items), len(catalogue))
    rows: Tensor = torch.unique(torch.cat([rules.raised_rows, added, torch.tensor(list(biased), dtype=torch.int64)]))
    hidden = torch.tensor(list(query.hidden), dtype=torch.int64)
    rows = rows[~torch.isin(rows, torch.cat([hidden, catalogue.excluded_rows]))]
    return rows if rules.allowed is None else rows[rules.allowed[rows]]


def best_of(rows: Tensor, scores: Tensor, k: int) -> Found:
    """The `k` best of ascending rows, and their scores."""
    best = top_k(scores, k)
    return Found(rows[best], scores[best])


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
    return catalogue.without_excluded(scores)


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
