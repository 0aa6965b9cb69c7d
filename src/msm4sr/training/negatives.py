"""Items to compare the next item with, drawn from those that a history lacks."""

from __future__ import annotations

import torch
from torch import Tensor

from msm4sr.data.batches import Batch


def absent_items(batch: Batch, n_items: int, generator: torch.Generator | None = None) -> Tensor:
    """For every slot an item that stands nowhere in its row, as item or as target: int64 [B, L].

    A row is a window of a history: what its user took outside of it may be drawn. A row that holds all items gets
    any of them.
    """
    real = batch.mask.flip(1).cummax(1).values.flip(1)  # up to the row's last pair
    return draw_absent(
        torch.cat([batch.items, batch.targets], dim=1), torch.cat([real, batch.mask], dim=1), n_items, generator
    )[:, : batch.items.shape[1]]


def draw_absent(rows: Tensor, real: Tensor, n_items: int, generator: torch.Generator | None = None) -> Tensor:
    """For every slot of `rows` [B, L] an item that is not among its row's `real` [B, L] ones: int64 [B, L].

    Uniform, without trying again: the k-th item that a row lacks is k + j, where j of the row's items come before it.
    """
    width = rows.shape[1]
    last = n_items + width  # beyond all items
    taken = torch.where(real, rows, last).sort(dim=1).values
    repeated = torch.nn.functional.pad(taken[:, 1:] == taken[:, :-1], (1, 0))
    taken = taken.masked_fill(repeated, last).sort(dim=1).values  # each item once
    counted = taken < last
    free = n_items - counted.sum(dim=1, keepdim=True)  # [B, 1]
    everything = free == 0
    draw = torch.rand(rows.shape, generator=generator, device=rows.device, dtype=torch.float64)
    nth = (draw * torch.where(everything, n_items, free)).long()
    lacking_before = taken - torch.arange(width, device=rows.device)  # of each item taken
    lacking_before = lacking_before.masked_fill(~counted | everything, n_items)
    return nth + torch.searchsorted(lacking_before, nth, right=True)
