"""From histories of rows to scores over a `Catalogue`. Call it in inference mode.

Of a model whose score is a product, only the histories' own rows are read and the product is taken with whatever is to
be ranked; of another one (ItemKNN) every score is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from msm4sr.data.batches import pad_histories
from msm4sr.errors import InputError
from msm4sr.models.base import ContentModel, Model, ProductModel
from msm4sr.recommend.catalogue import Catalogue
from msm4sr.recommend.index import ApproximateIndex, top_k

BOTH = "both"  # all modalities
TASTE = "taste"
SLOTS_AT_ONCE = 1 << 14  # items of histories that go through the model at once
APPROXIMATE_SHARE = 8  # an index is not asked for more than one in so many of its items


def modalities_of(model: Model) -> tuple[str, ...]:
    """Those by which one can recommend alone, and find similar items."""
    return model.content_modalities if isinstance(model, ContentModel) else ()


def encode_histories(
    model: ProductModel, catalogue: Catalogue, histories: Sequence[Sequence[int]], by: str = BOTH
) -> Tensor:
    """The vector of each history of rows (none is empty): [B, Q]. `by` a modality: what scores by it alone.

    Raises InputError for a modality that does not score.
    """
    modalities = modalities_of(model)
    if by != BOTH and by not in modalities:
        raise InputError(f"by is {by!r}: this model can recommend by {', '.join((*modalities, BOTH))}")
    latest = [history[-model.max_history :] for history in histories]
    vectors = torch.cat([_encode(model, catalogue, chunk) for chunk in _chunks(latest)])
    return model.only(vectors, by) if by != BOTH and isinstance(model, ContentModel) else vectors


def _encode(model: ProductModel, catalogue: Catalogue, histories: list[Sequence[int]]) -> Tensor:
    # Equal items are one row of what is gathered: some models count distinct rows.
    place: dict[int, int] = {}
    places = [np.array([place.setdefault(row, len(place)) for row in history]) for history in histories]
    padded, length = pad_histories(places, model.max_history)  # [B, L]
    return model.encode_last(padded, length, catalogue.inputs(torch.tensor(list(place))))


def _chunks(histories: list[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """As many at a time as have `SLOTS_AT_ONCE` slots, padding counted."""
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


def score_all(model: Model, catalogue: Catalogue, history: Sequence[int], query: Tensor | None = None) -> Tensor:
    """Every row's score after a history, -inf for removed items: [rows]. `query` is its vector, where there is one."""
    if query is not None:
        return with_repeats(model, history, catalogue.score(query))
    batch = torch.tensor([history[-model.max_history :]], dtype=torch.int64)
    vectors = catalogue.base.vectors
    scores = model.score(batch, torch.tensor([batch.shape[1]]), vectors.catalogue, vectors.keys)[0]
    return catalogue.without_removed(scores.float())


def repeated_rows(model: Model, history: Sequence[int]) -> list[int]:
    """Rows whose score is no product alone, since the model has read them in the history (`repeat`)."""
    adds = isinstance(model, ProductModel) and model.repeat is not None
    return sorted(set(history[-model.max_history :])) if adds else []


def with_repeats(model: Model, history: Sequence[int], scores: Tensor, rows: Tensor | None = None) -> Tensor:
    """Scores of `rows` (None: of all), in place with what a product model adds to those it has read in the history."""
    if isinstance(model, ProductModel) and model.repeat is not None:
        repeated = torch.tensor(repeated_rows(model, history), dtype=torch.int64)
        scores[repeated if rows is None else torch.isin(rows, repeated)] += model.repeat
    return scores


def best_rows(
    model: Model,
    catalogue: Catalogue,
    history: Sequence[int],
    query: Tensor | None,
    k: int,
    hidden: Collection[int] = (),
    keep: Callable[[int], bool] | None = None,
    among: Collection[int] | None = None,
    index: ApproximateIndex | None = None,
) -> list[tuple[int, float]]:
    """The `k` best rows and their scores, best first; equal scores by row.

    hidden: rows to leave out. keep: asked of each row from the best one on, until there are `k`. among: these rows
    alone.
    """
    hidden_rows = torch.tensor(sorted(hidden), dtype=torch.int64)
    wanted = k
    while True:
        rows, scores = _candidates(model, catalogue, history, query, wanted + len(hidden), among, index)
        if hidden:
            scores[hidden_rows if rows is None else torch.isin(rows, hidden_rows)] = -torch.inf
        best = top_k(scores, wanted)
        found = best if rows is None else rows[best].tolist()
        kept = [pair for pair in zip(found, scores[best].tolist(), strict=True) if keep is None or keep(pair[0])][:k]
        everything = among is not None or rows is None
        if len(kept) == k or (everything and len(best) < wanted):
            return kept
        wanted *= 4


def _candidates(
    model: Model,
    catalogue: Catalogue,
    history: Sequence[int],
    query: Tensor | None,
    wanted: int,
    among: Collection[int] | None,
    index: ApproximateIndex | None,
) -> tuple[Tensor | None, Tensor]:
    """Scores of all rows, and None; or rows in ascending order and their scores: those `among`, or by the index about
    the `wanted` best."""
    n = len(catalogue.base)
    if among is not None:
        rows = torch.tensor(sorted(among), dtype=torch.int64)
        if query is not None:
            return rows, with_repeats(model, history, catalogue.gather(rows).keys @ query, rows)
        return rows, score_all(model, catalogue, history)[rows]
    if index is None or query is None or wanted > n // APPROXIMATE_SHARE:
        return None, score_all(model, catalogue, history, query)
    moved = [row for row in repeated_rows(model, history) if row < n]  # the index knows products alone
    found = index.search(query, wanted + len(moved) + min(wanted, len(catalogue.removed)))
    found = torch.unique(torch.cat([found, torch.tensor(moved, dtype=torch.int64)]))
    if catalogue.removed:
        found = found[~torch.isin(found, catalogue.removed_rows)]
    rows = torch.cat([found, torch.arange(n, len(catalogue))])
    scores = torch.cat([catalogue.base.vectors.keys[found] @ query, catalogue.vectors.keys @ query])
    return rows, with_repeats(model, history, scores, rows)


def left_out(rows: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Each distinct row, latest first, and what the history is without it."""
    return [(left, [row for row in rows if row != left]) for left in dict.fromkeys(reversed(rows))]


def similarities(model: Model, catalogue: Catalogue, row: int, by: str = BOTH) -> Tensor:
    """How like each row is to one, -inf for itself and for what cannot be compared: [rows]. See `similar_items`."""
    modalities = modalities_of(model)
    ways = (*modalities, *([BOTH] if modalities else []), TASTE)
    if by not in ways and not (by == BOTH):
        raise InputError(f"by is {by!r}: this model can find similar items by {', '.join(ways)}")
    if not isinstance(model, ProductModel):
        scores = score_all(model, catalogue, [row])
    elif by == TASTE or not modalities:
        scores = _cosines(catalogue, row, lambda vectors: vectors.keys)
    else:
        scores = _by_content(modalities, catalogue, row, by)
    scores[row] = -torch.inf
    return catalogue.without_removed(scores)


def _by_content(modalities: Sequence[str], catalogue: Catalogue, row: int, by: str) -> Tensor:
    own = catalogue.gather(torch.tensor([row])).present[0]
    chosen = [m for m, name in enumerate(modalities) if by in (name, BOTH) and bool(own[m])]
    if not chosen:
        raise InputError(f"item {catalogue.item_id(row)!r} has no {by if by != BOTH else 'content'}: ask by {TASTE}")
    total = torch.zeros(len(catalogue))
    for m in chosen:
        cosines = _cosines(catalogue, row, lambda vectors, m=m: vectors.catalogue[:, m])
        present = torch.cat([catalogue.base.vectors.present[:, m], catalogue.vectors.present[:, m]])
        total += torch.where(present, cosines, 0.0 if by == BOTH else -torch.inf)
    return total / len(chosen)


def _cosines(catalogue: Catalogue, row: int, of: Callable[..., Tensor]) -> Tensor:
    """The cosine of each row to one, by the vectors that `of` takes out of `Vectors`: [rows]."""
    vector = of(catalogue.gather(torch.tensor([row])))[0]
    parts = [of(catalogue.base.vectors), of(catalogue.vectors)]
    lengths = vector.norm().clamp(min=1e-12)
    return torch.cat([part @ vector / (part.norm(dim=1).clamp(min=1e-12) * lengths) for part in parts])
