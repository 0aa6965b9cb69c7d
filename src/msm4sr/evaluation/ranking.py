"""Full ranking: the ranks of each user's next items among all items of the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from msm4sr.data.batches import pad_histories
from msm4sr.data.dataset import Targets
from msm4sr.data.remaining import Ints
from msm4sr.evaluation.metrics import CUTOFFS
from msm4sr.models.base import Scorer
from msm4sr.progress import Advance
from msm4sr.ragged import Ragged

SCORES_IN_CACHE = 1 << 21  # 8 MiB of float32: on a CPU, larger chunks wait for memory
SCORES_AT_ONCE = 1 << 24  # elsewhere, 64 MiB; float32 counts exactly up to this number
USERS_AT_ONCE = 32  # at least: products of fewer rows read the item vectors for little work
TOKENS_AT_ONCE = 1 << 14  # padded history slots that go through the model at once

Ranks = npt.NDArray[np.float64]
"""The rank of each target [targets]: 1 is the best, ties rank at their mean, infinity is not ranked."""
Protocol = Literal["seen_included", "seen_excluded"]
"""Whether the items of a user's history are ranked like any item, or not at all."""
Lists = npt.NDArray[np.int64]
"""The best items of each row [B, k], best first; `NO_ITEM` after the last where fewer items are ranked."""
NO_ITEM = -1
LIST_LENGTH = max(CUTOFFS)
OnLists = Callable[[Protocol, Ints, Lists], None]
"""Is given the lists of some histories, and the numbers of these."""


@torch.inference_mode()
def rank_targets(
    model: Scorer,
    targets: Targets,
    protocols: Sequence[Protocol] = ("seen_included",),
    *,
    among: npt.NDArray[np.bool_] | None = None,
    advance: Advance = lambda users: None,
    on_lists: OnLists | None = None,
) -> dict[Protocol, Ranks]:
    """The rank of each target given its history, among all N items, by each protocol.

    All protocols use the same scores. Users are ranked in chunks, so that memory does not depend on users times items:
    a chunk has `scores_at_once` scores, or those of `USERS_AT_ONCE` users if that is more. After an empty history all
    items tie, unless the model `ranks_without_history`.

    Args:
        model: put into evaluation mode by the caller. If it never ranks seen items, both protocols exclude them.
        targets: histories and what to rank after each.
        protocols: the protocols wanted. A target that is in its history is a miss when seen items are excluded.
        among: [N], rank only these items, of which every target is one; None: all.
        advance: called with the number of users ranked since the last call.
        on_lists: called with the `LIST_LENGTH` best items after each history of a chunk, for each protocol
            (`best_items`).

    Raises:
        FloatingPointError: a score of the model is not a number.
    """
    embeddings = model.encode_items()
    item_vectors = model.scoring_vectors(embeddings)
    n_users, device = len(targets.histories), item_vectors.device
    ranks: dict[Protocol, Ranks] = {protocol: np.empty(len(targets.targets)) for protocol in protocols}
    places = Ragged.from_lengths(np.arange(len(targets.targets)), targets.counts)  # of each history's targets
    lengths = np.minimum(np.diff(targets.histories.offsets), model.max_history)
    by_length = np.argsort(lengths, kind="stable")
    chunk = max(USERS_AT_ONCE, scores_at_once(device) // len(item_vectors))
    chunk = max(1, min(chunk, TOKENS_AT_ONCE // max(1, int(lengths.max(initial=1)))))
    for start in range(0, n_users, chunk):
        users = by_length[start : start + chunk]
        rows = users if len(users) > 1 else users.repeat(2)  # a product of one row may separate equal items
        items, length = (part.to(device) for part in pad_histories(targets.histories, model.max_history, rows))
        trained = torch.from_numpy(rows if targets.users is None else targets.users[rows]).to(device)
        scores = model.score(items, length.clamp(min=1), embeddings, item_vectors, trained).float()
        if not model.ranks_without_history:
            scores[length == 0] = 0.0
        scores = scores[: len(users)]
        if among is not None:
            scores[:, torch.from_numpy(~among).to(scores.device)] = -torch.inf
        for protocol in sorted(ranks, reverse=True):  # "seen_included" first: excluding changes the scores
            if protocol == "seen_excluded" or not model.ranks_seen_items:
                _exclude_seen(scores, targets.histories.take(users))
            for row, place in _one_target_each(places.take(users)):
                target = torch.from_numpy(targets.targets[place]).to(scores.device)
                own = scores if len(row) == len(users) else scores[torch.from_numpy(row).to(scores.device)]
                ranks[protocol][place] = ranks_of(own, target).numpy()
            if on_lists is not None:
                on_lists(protocol, users, best_items(scores, LIST_LENGTH))
        advance(len(users))
    return ranks


def _one_target_each(places: Ragged) -> Iterator[tuple[Ints, Ints]]:
    """The rows that have an n-th value, and these values, for n = 1, 2, ..."""
    lengths = places.lengths
    for number in range(int(lengths.max())):
        rows = np.flatnonzero(lengths > number)
        yield rows, places.values[places.offsets[rows] + number]


def _exclude_seen(scores: Tensor, histories: Ragged) -> None:
    """Rank no item of each row's history: scores [B, N] are changed."""
    row, seen = torch.from_numpy(histories.row_numbers), torch.from_numpy(histories.values.astype(np.int64))
    scores[row.to(scores.device), seen.to(scores.device)] = -torch.inf


def scores_at_once(device: torch.device) -> int:
    """The number of scores that are computed and compared at a time."""
    return SCORES_IN_CACHE if device.type == "cpu" else SCORES_AT_ONCE


def ranks_of(scores: Tensor, targets: Tensor) -> Tensor:
    """The rank of one item per row: scores float32 [B, N], targets int64 [B] to float64 [B]; ties rank at their mean.

    The mean of the first and the last place of the ties: 1 + the items that score higher, and the items that score at
    least as high. An item of score -inf is not ranked: its rank is infinity.

    Raises:
        FloatingPointError: a score is not a number; it would otherwise rank as the best.
    """
    own = scores.gather(1, targets.unsqueeze(1))
    places = torch.ones_like(targets)
    for block in torch.split(scores, max(1, scores_at_once(scores.device) // len(scores)), dim=1):
        if block.amax().isnan():
            raise FloatingPointError("a score is not a number: the training has diverged; try a lower learning rate")
        flags = torch.empty_like(block)  # of the type of the scores: counted several times as fast as bool
        for compare in (torch.gt, torch.ge):
            places += compare(block, own, out=flags).sum(dim=1).long()
    ranks = places.cpu().double() / 2  # some devices have no float64
    return ranks.masked_fill_(own[:, 0].cpu() == -torch.inf, torch.inf)


def best_items(scores: Tensor, k: int) -> Lists:
    """The items of the k highest of scores [B, N], best first; equal scores in the order of the items; -inf is none."""
    width = min(k, scores.shape[1])
    highest = torch.topk(scores, width, sorted=False).values
    least = highest.amin(dim=1, keepdim=True)
    chosen = scores >= least
    several = chosen.sum(dim=1) > width  # more items share the lowest score than have a place
    if several.any():
        places = (highest[several] == least[several]).sum(dim=1, keepdim=True)
        tied = scores[several] == least[several]
        chosen[several] &= ~tied | (tied.cumsum(dim=1, dtype=torch.int32) <= places)
    items = chosen.nonzero()[:, 1].view(len(scores), width)  # ascending
    ordered, order = scores.gather(1, items).sort(dim=1, descending=True, stable=True)
    lists = np.full((len(scores), k), NO_ITEM, dtype=np.int64)
    lists[:, :width] = torch.where(ordered > -torch.inf, items.gather(1, order), NO_ITEM).cpu().numpy()
    return lists
