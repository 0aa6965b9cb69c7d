"""All tensors that resuming a training needs, as one mapping: the content of `STAGE.last.safetensors`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from msm4sr.models.item_table import ItemTable, item_tables
from msm4sr.tensor_files import Blocks
from msm4sr.training.checkpoint import set_weights
from msm4sr.training.sharding import rows_of


def stored_weights(model: nn.Module) -> dict[str, Tensor | Blocks]:
    """The parameters (without the frozen features), all rows of tables; they are read when they are written."""
    tables = item_tables(model)
    return {n: rows_of(tables[n]) if n in tables else weight.detach() for n, weight in model.named_parameters()}


def stored_moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor | Blocks]:
    """The state of the optimiser by the number of the weight and its own names, such as "3/exp_avg"."""
    tables, stored = _tables_by_number(model, optimizer), dict[str, Tensor | Blocks]()
    for number, moments in optimizer.state_dict()["state"].items():
        for name, moment in moments.items():
            split = number in tables and moment.dim() > 0
            stored[f"{number}/{name}"] = rows_of(tables[number], moment) if split else moment
    return stored


def load_stored(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore weights and optimiser from stored tensors under `weights/` and `optimizer/`."""
    set_weights(model, below("weights", tensors))
    tables, moments = _tables_by_number(model, optimizer), dict[int, dict[str, Tensor]]()
    for name, moment in below("optimizer", tensors).items():
        number, _, kind = name.partition("/")
        table = tables.get(int(number)) if moment.dim() else None
        moments.setdefault(int(number), {})[kind] = (table.shard.rows(moment) if table else moment).clone()
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def below(folder: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with `folder/`, without it."""
    start = f"{folder}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _tables_by_number(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[int, ItemTable]:
    """The tables by the number of their weight in the optimiser."""
    tables = {id(table.weight): table for table in item_tables(model).values()}
    weights = enumerate(optimizer.param_groups[0]["params"])
    return {number: tables[id(weight)] for number, weight in weights if id(weight) in tables}
