"""Full ranking: the rank of each user's next item among all items of the catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from msm4sr.data.batches import pad_histories
from msm4sr.data.dataset import Targets
from msm4sr.models.base import Scorer
from msm4sr.progress import Advance

SCORES_AT_ONCE = 1 << 24  # 64 MiB of float32: scores of a chunk of users times all items
TOKENS_AT_ONCE = 1 << 14  # padded history slots that go through the model at once

Ranks = npt.NDArray[np.float64]
"""The rank of each user's target [users]: 1 is the best, ties rank at their mean."""
Protocol = Literal["seen_included", "seen_excluded"]
"""Whether the items of a user's history are ranked like any item, or last."""


@torch.inference_mode()
def rank_targets(
    model: Scorer,
    targets: Targets,
    protocols: Sequence[Protocol] = ("seen_included",),
    *,
    among: npt.NDArray[np.bool_] | None = None,
    advance: Advance = lambda users: None,
) -> dict[Protocol, Ranks]:
    """The rank of `targets.targets[u]` given `targets.histories[u]`, among all N items, by each protocol.

    All protocols use the same scores. Users are ranked in chunks, so that memory does not depend on users times items.

    Args:
        model: put into evaluation mode by the caller. If it never ranks seen items, both protocols exclude them.
        targets: histories of users 0, 1, ... and what to rank.
        protocols: the protocols wanted. A target that is in its history is a miss when seen items are excluded.
        among: [N], rank only these items, of which every target is one; None: all.
        advance: called with the number of users ranked since the last call.

    Raises:
        FloatingPointError: a score of the model is not a number.
    """
    embeddings = model.encode_items()
    item_vectors = model.scoring_vectors(embeddings)
    n_users, device = len(targets.targets), item_vectors.device
    ranks: dict[Protocol, Ranks] = {protocol: np.empty(n_users) for protocol in protocols}
    lengths = np.minimum(np.diff(targets.histories.offsets), model.max_history)
    by_length = np.argsort(lengths, kind="stable")
    chunk = max(1, min(SCORES_AT_ONCE // len(item_vectors), TOKENS_AT_ONCE // max(1, int(lengths.max()))))
    for start in range(0, n_users, chunk):
        users = by_length[start : start + chunk]
        histories = [targets.histories[int(u)] for u in users]
        items, length = (part.to(device) for part in pad_histories(histories, model.max_history))
        trained = torch.from_numpy(users if targets.users is None else targets.users[users]).to(device)
        scores = model.score(items, length, embeddings, item_vectors, trained).float()
        target = torch.from_numpy(targets.targets[users]).to(scores.device)
        if among is not None:
            scores[:, torch.from_numpy(~among).to(scores.device)] = -torch.inf
        for protocol in sorted(ranks, reverse=True):  # "seen_included" first: excluding changes the scores
            if protocol == "seen_excluded" or not model.ranks_seen_items:
                _exclude_seen(scores, histories)
            ranks[protocol][users] = ranks_of(scores, target).numpy()
        advance(len(users))
    return ranks


def _exclude_seen(scores: Tensor, histories: Sequence[npt.NDArray[np.int32]]) -> None:
    """Rank the items of each row's history last: scores [B, N] are changed."""
    row = torch.repeat_interleave(torch.arange(len(histories)), torch.tensor([len(history) for history in histories]))
    seen = torch.from_numpy(np.concatenate(histories).astype(np.int64))
    scores[row.to(scores.device), seen.to(scores.device)] = -torch.inf


def ranks_of(scores: Tensor, targets: Tensor) -> Tensor:
    """The rank of one item per row: scores [B, N], targets int64 [B] to float64 [B]; ties rank at their mean.

    Raises:
        FloatingPointError: a score is not a number; it would otherwise rank as the best.
    """
    if scores.isnan().any():
        raise FloatingPointError("a score is not a number: the training has diverged; try a lower learning rate")
    own = scores.gather(1, targets.unsqueeze(1))
    better = (scores > own).sum(dim=1)
    equal = (scores == own).sum(dim=1)  # itself included
    return better.cpu().double() + (equal.cpu().double() + 1) / 2  # some devices have no float64
