"""Tables of ID embeddings whose rows the processes of a training divide among themselves.

A step exchanges only the embeddings of its items (`Task.gather`). What needs all rows, validation and checkpoints,
collects them in the first process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from msm4sr.models.item_table import ROWS_AT_ONCE, ItemTable, Shard, item_tables
from msm4sr.tensor_files import Blocks, in_file_order
from msm4sr.training.task import Task


def shard_here() -> Shard:
    """The rows that this process has outside of a training: the first process has all."""
    if dist.is_initialized() and dist.get_rank():
        return Shard(dist.get_rank(), dist.get_world_size())
    return Shard()


@dataclass(frozen=True)
class SplitRows(Blocks):
    """A tensor [N, ...] of which each process has the rows of its shard."""

    own: Tensor
    n_rows: int
    shard: Shard

    @property
    def dtype(self) -> torch.dtype:
        return self.own.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n_rows, *self.own.shape[1:])

    def blocks(self) -> Iterator[Tensor]:
        """All rows in their order, some at a time, in the first process. Every process must iterate to the end."""
        count = self.shard.count
        longest, size = Shard(0, count).size(self.n_rows), max(1, ROWS_AT_ONCE // count)
        for start in range(0, longest, size):
            part = self.own[start : start + size]
            missing = min(size, longest - start) - len(part)
            part = F.pad(part, (0, 0) * (part.dim() - 1) + (0, missing)).contiguous()
            parts = [torch.empty_like(part) for _ in range(count)] if self.shard.rank == 0 else None
            dist.gather(part, parts)
            if parts is not None:
                yield torch.stack(parts, dim=1).flatten(0, 1)[: self.n_rows - start * count]

    def complete(self) -> Tensor | None:
        """The tensor, in the first process; None in the others. Every process must call it."""
        if self.shard.rank:
            for _ in self.blocks():
                pass
            return None
        result, end = self.own.new_empty(self.shape), 0
        for block in self.blocks():
            result[end : end + len(block)] = block
            end += len(block)
        return result


def join_in(tensors: Mapping[str, Tensor | Blocks]) -> None:
    """Send this process's rows to the first process, which writes `tensors` to a file."""
    for name in in_file_order(tensors):
        value = tensors[name]
        if isinstance(value, Blocks):
            for _ in value.blocks():
                pass


def split_tables(task: Task, shard: Shard) -> list[str]:
    """Divide the `sparse_tables` of a task among the processes, and give every process all rows of other tables.

    Returns:
        The names of the weights that DDP must not synchronise.
    """
    tables = item_tables(task)
    for table in tables.values():
        if table in task.sparse_tables:
            if table.shard != shard:
                table.resize(shard)
        elif table.shard.count > 1:  # DDP copies the rows of the first process
            table.resize(Shard(), table.weight.new_empty(table.n_items, table.embedding_dim))
    return [name for name, table in tables.items() if table.shard.count > 1]


def rows_of(table: ItemTable, values: Tensor | None = None) -> SplitRows | Tensor:
    """All rows of a table (or of `values`, one for each row of it), wherever they are."""
    own = table.weight.detach() if values is None else values
    return own if table.shard.count == 1 else SplitRows(own, table.n_items, table.shard)


@contextmanager
def complete_tables(model: nn.Module) -> Iterator[None]:
    """During the block the first process reads all rows. Every process must enter it."""
    tables = [table for table in item_tables(model).values() if table.shard.count > 1]
    for table in tables:
        table.show(SplitRows(table.weight.detach(), table.n_items, table.shard).complete())
    try:
        yield
    finally:
        for table in tables:
            table.show(None)


def unite_tables(model: nn.Module) -> None:
    """Give the first process all rows; the others keep their own. Every process must call it."""
    for table in item_tables(model).values():
        rows = rows_of(table)
        if isinstance(rows, SplitRows) and (complete := rows.complete()) is not None:
            table.resize(Shard(), complete)
