"""Batches of history windows. The size of a batch is its number of pairs (prefix, next item), not of histories.

A training history x_1 ... x_T has the pairs (x_1 ... x_p, x_{p+1}). With `pairs: all` one row of a batch is a window
of the history, and every position in it is a pair: a causal Transformer encodes all prefixes in one pass. A history
longer than `max_history` is cut into windows that do not overlap, at positions that each epoch draws. With
`pairs: last`, as in the paper, one row is one prefix (its latest `max_history` items) and only its end is a pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from msm4sr.ragged import Ragged

Row = TypeVar("Row", Sequence[int], np.ndarray)

BUCKET = 64  # batches; windows are sorted by length within a bucket, so that a batch has little padding


@dataclass  # not frozen: Lightning Fabric cannot convert frozen dataclasses in mixed precision
class Batch:
    """Rows of history windows, padded on the right with item 0.

    Attributes:
        items: int64 [B, L].
        targets: int64 [B, L], the item that followed each position in the full history.
        mask: bool [B, L], True where (prefix up to here, target) is a pair of the loss.
    """

    items: Tensor
    targets: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Windows:
    """Windows of the flat array of items: inputs are values[start:start + length], targets one position later."""

    start: np.ndarray  # int64 [W]
    length: np.ndarray  # int64 [W]

    def n_pairs(self, pairs: Literal["all", "last"]) -> np.ndarray:
        """The pairs of the loss in each window: int64 [W]."""
        return self.length if pairs == "all" else np.ones_like(self.length)


def cut_windows(
    histories: Ragged, max_history: int, pairs: Literal["all", "last"], rng: np.random.Generator
) -> Windows:
    """The windows of one epoch. Every pair of every history is in exactly one of them."""
    first = histories.offsets[:-1].astype(np.int64)
    n_pairs = np.maximum(histories.offsets[1:] - first - 1, 0).astype(np.int64)  # [users]
    if pairs == "last":
        user = np.repeat(np.arange(len(first)), n_pairs)
        end = np.arange(len(user)) - np.repeat(n_pairs.cumsum() - n_pairs, n_pairs) + 1  # prefix length
        length = np.minimum(end, max_history)
        return Windows(first[user] + end - length, length)
    # the first cut is anywhere in a long history; a history that fits into one window is not cut
    head, has_pairs = n_pairs.copy(), n_pairs > 0  # a draw for each user with pairs: others change no batch
    cuts = rng.integers(1, max_history + 1, int(has_pairs.sum()))
    head[has_pairs] = np.where(n_pairs[has_pairs] > max_history, cuts, n_pairs[has_pairs])
    n_windows = np.where(n_pairs > 0, 1 + -(-(n_pairs - head) // max_history), 0)
    user = np.repeat(np.arange(len(first)), n_windows)
    nth = np.arange(len(user)) - np.repeat(n_windows.cumsum() - n_windows, n_windows)
    begin = np.where(nth == 0, 0, head[user] + (nth - 1) * max_history)
    end = np.minimum(head[user] + nth * max_history, n_pairs[user])
    return Windows(first[user] + begin, end - begin)


def epoch_batches(
    histories: Ragged,
    *,
    max_history: int,
    batch_pairs: int,
    pairs: Literal["all", "last"] = "all",
    drop: float = 0.0,
    rng: np.random.Generator,
) -> Iterator[Batch]:
    """All pairs of `histories` once, in random order, in batches of about `batch_pairs` pairs.

    Args:
        histories: the training parts.
        max_history: the longest row.
        batch_pairs: pairs in a batch; rows are not split, so a batch may have up to a row more or less.
        pairs: `all` or `last`, see the module.
        drop: sequence random drop (pre-training): each row draws a probability from U(0, drop), and drops each of its
            items with it; at least one stays. The next item of a kept position is the one that followed it in the
            full history; with `pairs: last` that is the next item of the last one kept.
        rng: draws cuts, order and drops.
    """
    windows = cut_windows(histories, max_history, pairs, rng)
    for rows in _bucketed(windows.length, windows.n_pairs(pairs), batch_pairs, rng):
        yield _batch(histories.values, windows.start[rows], windows.length[rows], pairs, drop, rng)


def count_batches(
    histories: Ragged, *, max_history: int, batch_pairs: int, pairs: Literal["all", "last"] = "all"
) -> int:
    """The number of batches in an epoch; approximate where windows have more pairs than a batch."""
    windows = cut_windows(histories, max_history, pairs, np.random.default_rng(0))
    return max(1, len(np.unique((windows.n_pairs(pairs).cumsum() - 1) // batch_pairs)))


def _bucketed(length: np.ndarray, weight: np.ndarray, batch_pairs: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Rows of each batch: shuffled, sorted by length within buckets of BUCKET batches, cut, shuffled again."""
    order = rng.permutation(len(length))
    bucket = (weight[order].cumsum() - 1) // (BUCKET * batch_pairs)
    order = order[np.lexsort((length[order], bucket))]
    batch = (weight[order].cumsum() - 1) // batch_pairs
    batches = np.split(order, np.flatnonzero(np.diff(batch)) + 1)
    return [batches[i] for i in rng.permutation(len(batches)) if len(batches[i])]


def _batch(
    values: np.ndarray,
    start: np.ndarray,
    length: np.ndarray,
    pairs: Literal["all", "last"],
    drop: float,
    rng: np.random.Generator,
) -> Batch:
    slot = np.arange(length.max())
    kept = slot < length[:, None]  # [B, L]
    place = np.where(kept, start[:, None] + slot, start[:, None])
    if drop > 0:
        draw = rng.random(kept.shape)
        stays = kept & (draw >= rng.uniform(0, drop, (len(length), 1)))
        safe = np.where(kept, draw, -1).argmax(axis=1)  # the item that would be dropped last
        stays[np.arange(len(length)), safe] = True
        front = np.argsort(~stays, axis=1, kind="stable")  # kept items move to the front, in order
        place, kept = np.take_along_axis(place, front, 1), np.take_along_axis(stays, front, 1)
        width = kept.sum(axis=1).max()
        place, kept, slot = place[:, :width], kept[:, :width], slot[:width]
    mask = kept if pairs == "all" else slot == kept.sum(axis=1, keepdims=True) - 1
    items = np.where(kept, values[place], 0).astype(np.int64)
    targets = np.where(mask, values[place + 1], 0).astype(np.int64)
    return Batch(torch.from_numpy(items), torch.from_numpy(targets), torch.from_numpy(mask))


def latest_items(histories: Iterable[Row], max_history: int) -> list[Row]:
    """The items of each history, oldest first, that a model reads: its latest `max_history`."""
    return [history[-max_history:] for history in histories]


def pad_histories(histories: Ragged, max_history: int, rows: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
    """The latest `max_history` items of each history, as a model reads them.

    Args:
        histories: item numbers, oldest first.
        max_history: the longest row.
        rows: the histories wanted, int [B]; None: all.

    Returns:
        Items int64 [B, L], padded on the right with 0, and lengths int64 [B].
    """
    rows = np.arange(len(histories)) if rows is None else rows
    end = histories.offsets[rows + 1]
    lengths = np.minimum(end - histories.offsets[rows], max_history)
    slot = np.arange(lengths.max(initial=1))
    read = slot < lengths[:, None]  # [B, L]
    items = np.zeros(read.shape, dtype=np.int64)
    items[read] = histories.values[((end - lengths)[:, None] + slot)[read]]
    return torch.from_numpy(items), torch.from_numpy(lengths)
