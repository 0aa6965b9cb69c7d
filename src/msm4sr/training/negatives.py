"""Negative items, drawn from the items that are not in a history."""

from __future__ import annotations

import torch
from torch import Tensor

from msm4sr.data.batches import Batch


class ItemSampler:
    """Draws items of the catalogue, independently and repeatedly, by their relative `weights` [N]."""

    def __init__(self, weights: Tensor) -> None:
        self.probabilities = weights / weights.sum()  # [N]
        self._cumulative = self.probabilities.double().cumsum(0)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """int64 [count]."""
        draws = torch.rand(count, generator=generator, device=self._cumulative.device, dtype=torch.float64)
        return torch.searchsorted(self._cumulative, draws * self._cumulative[-1], right=True)


def absent_items(batch: Batch, n_items: int, generator: torch.Generator | None = None) -> Tensor:
    """For every slot, an item that is neither an item nor a target of its row: int64 [B, L].

    A row is a window of a history, so an item that the user has seen outside of it may be drawn. For a row that holds
    the full catalogue, any item is drawn.
    """
    real = batch.mask.flip(1).cummax(1).values.flip(1)  # up to the row's last pair
    return draw_absent(
        torch.cat([batch.items, batch.targets], dim=1), torch.cat([real, batch.mask], dim=1), n_items, generator
    )[:, : batch.items.shape[1]]


def draw_absent(rows: Tensor, real: Tensor, n_items: int, generator: torch.Generator | None = None) -> Tensor:
    """For every slot of `rows` [B, L], an item that is not among the `real` [B, L] items of its row: int64 [B, L].

    Uniform, without rejection: the k-th item that a row lacks is k + j, where j of the row's items come before it.
    """
    width = rows.shape[1]
    last = n_items + width  # beyond all items
    present = torch.where(real, rows, last).sort(dim=1).values
    repeated = torch.nn.functional.pad(present[:, 1:] == present[:, :-1], (1, 0))
    present = present.masked_fill(repeated, last).sort(dim=1).values  # each item once
    counted = present < last
    free = n_items - counted.sum(dim=1, keepdim=True)  # [B, 1]
    full = free == 0
    draw = torch.rand(rows.shape, generator=generator, device=rows.device, dtype=torch.float64)
    nth = (draw * torch.where(full, n_items, free)).long()
    absent_before = present - torch.arange(width, device=rows.device)  # before each present item
    absent_before = absent_before.masked_fill(~counted | full, n_items)
    return nth + torch.searchsorted(absent_before, nth, right=True)
