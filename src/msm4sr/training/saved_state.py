"""All tensors that resuming a training needs, as one mapping: the content of `STAGE.last.safetensors`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msm4sr.models.item_table import ItemTable, item_tables, own_rows
from msm4sr.tensor_files import Blocks, Part
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


def part_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> Part:
    """From the name and the value of a stored tensor to what this process has of it."""
    own_weights, tables = own_rows(model), _tables_by_number(model, optimizer)

    def part(name: str, value: Tensor) -> Tensor:
        kind, _, rest = name.partition("/")
        if kind == "weights":
            return own_weights(rest, value)
        number = int(rest.partition("/")[0]) if kind == "optimizer" else None
        return tables[number].shard.rows(value) if number in tables and value.dim() else value

    return part


def load_stored(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore weights and optimiser from `weights/...` and `optimizer/...`, which are removed from `tensors`."""
    weights: dict[str, Tensor] = {}
    moments: dict[int, dict[str, Tensor]] = {}
    for name in list(tensors):
        kind, _, rest = name.partition("/")
        if kind == "weights":
            weights[rest] = tensors.pop(name)
        elif kind == "optimizer":
            number, _, moment = rest.partition("/")
            moments.setdefault(int(number), {})[moment] = tensors.pop(name)
    set_weights(model, weights)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _tables_by_number(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[int, ItemTable]:
    """The tables by the number of their weight in the optimiser."""
    tables = {id(table.weight): table for table in item_tables(model).values()}
    weights = enumerate(optimizer.param_groups[0]["params"])
    return {number: tables[id(weight)] for number, weight in weights if id(weight) in tables}
