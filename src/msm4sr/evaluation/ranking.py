"""Full ranking: where each user's next item stands among all items of the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from msm4sr.data.batches import pad_histories
from msm4sr.data.dataset import Targets
from msm4sr.models.base import Scorer

SCORES_AT_ONCE = 1 << 24  # 64 MiB of float32: scores of a chunk of users times all items
TOKENS_AT_ONCE = 1 << 14  # padded history slots that go through the model at once


def rank_targets(
    model: Scorer,
    targets: Targets,
    *,
    exclude_seen: bool = False,
    among: npt.NDArray[np.bool_] | None = None,
    on_progress: Callable[[int], object] = lambda users: None,
) -> npt.NDArray[np.float64]:
    """The rank of `targets.targets[u]` given `targets.histories[u]`, among all N items: float64 [users].

    Rank 1 is the best; items with the target's score rank at their mean. Users are taken in chunks, so that memory
    grows with N alone, not with users times items.

    Args:
        model: put into evaluation mode by the caller.
        targets: histories of users 0, 1, ... and what to rank.
        exclude_seen: rank the items of the history last. A target that is among them is then a miss.
        among: [N], rank these items alone, of which every target is one; None: all.
        on_progress: told how many users were ranked since the last call.

    Raises:
        FloatingPointError: the model gave a score that is no number.
    """
    (ranks,) = rank_protocols(model, targets, (exclude_seen,), among=among, on_progress=on_progress)
    return ranks


@torch.inference_mode()
def rank_protocols(
    model: Scorer,
    targets: Targets,
    exclude_seen: Sequence[bool],
    *,
    among: npt.NDArray[np.bool_] | None = None,
    on_progress: Callable[[int], object] = lambda users: None,
) -> list[npt.NDArray[np.float64]]:
    """`rank_targets` with the history ranked, without, or both, from the same scores: float64 [users] for each."""
    catalogue = model.encode_items()
    keys = model.scoring_vectors(catalogue)
    ranks = {excludes: np.empty(len(targets.targets), dtype=np.float64) for excludes in exclude_seen}
    lengths = np.minimum(np.diff(targets.histories.offsets), model.max_history)
    by_length = np.argsort(lengths, kind="stable")
    users_at_once = max(1, min(SCORES_AT_ONCE // len(keys), TOKENS_AT_ONCE // max(1, int(lengths.max()))))
    for start in range(0, len(by_length), users_at_once):
        users = by_length[start : start + users_at_once]
        histories = [targets.histories[int(u)] for u in users]
        items, length = (part.to(keys.device) for part in pad_histories(histories, model.max_history))
        whose = torch.from_numpy(users if targets.users is None else targets.users[users]).to(keys.device)
        scores = model.score(items, length, catalogue, keys, whose).float()
        target = torch.from_numpy(targets.targets[users]).to(scores.device)
        if among is not None:
            scores[:, torch.from_numpy(~among).to(scores.device)] = -torch.inf
        for excludes in sorted(ranks):  # with the history first
            if excludes:
                _leave_out(scores, histories)
            ranks[excludes][users] = ranks_of(scores, target).numpy()
        on_progress(len(users))
    return [ranks[excludes] for excludes in exclude_seen]


def _leave_out(scores: Tensor, histories: Sequence[npt.NDArray[np.int32]]) -> None:
    """Give the items of each row's history no chance: scores [B, N] are changed."""
    row = torch.repeat_interleave(torch.arange(len(histories)), torch.tensor([len(history) for history in histories]))
    seen = torch.from_numpy(np.concatenate(histories).astype(np.int64))
    scores[row.to(scores.device), seen.to(scores.device)] = -torch.inf


def ranks_of(scores: Tensor, targets: Tensor) -> Tensor:
    """Rank of one item a row: scores [B, N], targets int64 [B] to float64 [B]; ties at their mean.

    Raises FloatingPointError for a score that is no number, which would otherwise rank as the best.
    """
    if scores.isnan().any():
        raise FloatingPointError("a score is not a number: the training has diverged; try a lower learning rate")
    own = scores.gather(1, targets.unsqueeze(1))
    better = (scores > own).sum(dim=1)
    equal = (scores == own).sum(dim=1)  # itself included
    return better.cpu().double() + (equal.cpu().double() + 1) / 2  # some devices have no float64
