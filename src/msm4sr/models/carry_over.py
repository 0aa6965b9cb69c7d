"""Trained weights in a model over other items, users and categories: what both have in common keeps its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from msm4sr.errors import InputError
from msm4sr.models.base import Model, RowKind
from msm4sr.models.item_table import Shard, item_tables
from msm4sr.models.layers import update_features


@dataclass(frozen=True, eq=False)
class Common:
    """The items (users, categories) that two models have in common: the row of each in the one and in the other."""

    there: Tensor  # int64 [n], in the trained model
    here: Tensor  # int64 [n], in the new model

    @classmethod
    def of(cls, there: Sequence[str], here: Sequence[str]) -> Common:
        """From the ids of all rows of both."""
        row = {name: number for number, name in enumerate(there)}
        pairs = [(row[name], number) for number, name in enumerate(here) if name in row]
        rows = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
        return cls(rows[:, 0], rows[:, 1])

    def __len__(self) -> int:
        return len(self.here)

    def of_shard(self, shard: Shard) -> Common:
        """Those in a shard of the new model, numbered as the rows of the shard."""
        own = self.here % shard.count == shard.rank
        return Common(self.there[own], self.here[own] // shard.count)


def carry_over(
    weights: Mapping[str, Tensor], model: Model, common: Mapping[RowKind, Common], *, zero_new: bool
) -> None:
    """Copy trained weights into a new model of the same settings, in place.

    Rows of `Model.row_weights` follow their item, user or category; those of what left are dropped. Whatever the
    weights were trained with belongs to them (the whitening map, centre and scale of features) and replaces what the
    new model has computed from its own items. What a model keeps of the interactions (graph, degrees) remains its own.

    Args:
        weights: all parameters of the trained model by name.
        model: may be a shard, see `ItemTable`.
        common: of each kind of rows that the model has.
        zero_new: whether new rows become 0 (an ID embedding of 0 leaves the content alone) or keep their initial value.

    Raises:
        InputError: the models do not have the same weights.
    """
    own, tables = dict(model.named_parameters()), item_tables(model)
    _check(weights, model)
    with torch.no_grad():
        for name, weight in own.items():
            kind = model.row_kind(name)
            trained = weights[name].to(weight.device)
            if kind is None:
                weight.copy_(trained)
                continue
            rows = common[kind].of_shard(tables[name].shard) if name in tables else common[kind]
            if zero_new:
                weight.zero_()
            weight[rows.here.to(weight.device)] = trained[rows.there.to(weight.device)].to(weight.dtype)
    update_features(model)


def _check(weights: Mapping[str, Tensor], model: Model) -> None:
    """Raise InputError for a weight that only one of the models has, or that has another shape."""
    own = dict(model.named_parameters())
    for name in [*own, *weights]:
        there, here = (list(found[name].shape) if name in found else None for found in (weights, own))
        if there is not None and here is not None and model.row_kind(name):
            there, here = there[1:], here[1:]
        if there != here:
            shapes = ["absent" if shape is None else str(shape) for shape in (there, here)]
            raise InputError(f"{name} is {shapes[0]} there and {shapes[1]} here")
