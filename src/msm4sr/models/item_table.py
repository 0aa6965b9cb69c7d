"""The table of ID embeddings. Several processes divide its rows, so that each keeps and updates its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS_AT_ONCE = 1 << 12
"""Rows that are drawn, sent or written at a time. (Larger blocks would stay in the heap of glibc.)"""


@dataclass(frozen=True)
class Shard:
    """The items of one of `count` processes: `rank`, `rank` + `count`, `rank` + 2 `count`, ...

    Popular items often have neighbouring numbers; dealt out in turn, each process has its share of them.
    """

    rank: int = 0
    count: int = 1

    def size(self, n_items: int) -> int:
        """How many of `n_items` items are in the shard."""
        return (n_items - self.rank + self.count - 1) // self.count

    def rows(self, table: Tensor) -> Tensor:
        """The rows of the shard: [N, ...] to [n, ...]."""
        return table[self.rank :: self.count]

    def group(self, items: Tensor) -> tuple[Tensor, list[int], Tensor]:
        """The distinct items, those of the first process first, each group in ascending order.

        Returns:
            int64 [C], the distinct items; how many each process has; int64 as `items`, the place of each item.
        """
        owner, row = items % self.count, items // self.count
        rows = int(row.max()) + 1 if len(row) else 1
        distinct, place = torch.unique(owner * rows + row, return_inverse=True)
        counts = torch.bincount(distinct // rows, minlength=self.count).tolist()
        return distinct % rows * self.count + distinct // rows, counts, place


class ItemTable(nn.Embedding):
    """The embeddings of N items, or the rows of a shard of them: `weight` [n, D], from N(0, 1) unless drawn again.

    Every shard has the rows that the complete table would have with the same random state. During training each process
    has its shard, and at other times the first one has all rows. With `sparse`, gradients hold the rows of a step only.
    """

    def __init__(self, n_items: int, dim: int, shard: Shard = Shard()) -> None:
        size = shard.size(n_items)
        super().__init__(size, dim, _weight=torch.empty(size, dim))
        self.n_items, self.shard = n_items, shard
        self._all: Tensor | None = None
        self.draw(1.0)

    @torch.no_grad()
    def draw(self, std: float) -> None:
        """New embeddings from N(0, `std`^2)."""
        for start in range(0, self.n_items, ROWS_AT_ONCE):
            stop = min(start + ROWS_AT_ONCE, self.n_items)
            rows = torch.empty(stop - start, self.embedding_dim, device=self.weight.device).normal_(0, std)
            first = -(start - self.shard.rank) % self.shard.count  # of the shard, among these rows
            own = rows[first :: self.shard.count]
            at = (start + first) // self.shard.count
            self.weight[at : at + len(own)] = own

    def forward(self, items: Tensor) -> Tensor:
        """The embeddings of items, of a shard only its own: int64 [...] to [..., D]."""
        if self._all is not None:
            return F.embedding(items, self._all)
        if self.shard.count == 1:
            return F.embedding(items, self.weight, sparse=self.sparse)
        rows = F.embedding(items // self.shard.count, self.weight, sparse=self.sparse)
        if rows.requires_grad:  # the mean over the processes, as DDP makes it for all other weights
            rows.register_hook(lambda gradient: gradient / self.shard.count)  # type: ignore[no-untyped-call]
        return rows

    def table(self) -> Tensor:
        """The embeddings of all items: [N, D]."""
        if self._all is not None:
            return self._all
        if self.shard.count > 1:
            raise RuntimeError("this process has only its own rows of the ID embeddings; the first process has all")
        return self.weight

    def show(self, complete: Tensor | None) -> None:
        """Read the embeddings of all items from `complete` [N, D] instead; None: no longer."""
        self._all = complete

    def resize(self, shard: Shard, rows: Tensor | None = None) -> None:
        """Become another shard with these `rows` [n, D]; None: with the shard's rows of the complete table."""
        if rows is None:
            rows = shard.rows(self.table().detach()).clone() if shard != self.shard else self.weight.detach()
        self.weight.data, self.weight.grad = rows, None
        self.num_embeddings, self.shard = len(rows), shard


def item_tables(model: nn.Module) -> dict[str, ItemTable]:
    """The tables of a model by the names of their weights."""
    return {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, ItemTable)}


def shard_of(model: nn.Module) -> Shard:
    """Which rows of its tables a model has in this process."""
    return next((table.shard for table in item_tables(model).values()), Shard())
