"""The rules on which interactions and items are kept: the same for every source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from msm4sr.data.kcore import Flags, Ints, k_core
from msm4sr.data.preparation.report import PrepareReport


class Rules(BaseModel):
    """Which interactions and items are kept: the same rules for every source."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_rating: float | None = Field(None, description="Drop interactions with a lower rating, or without one.")
    user_core: int = Field(0, ge=0, description="Drop users with fewer interactions, until all satisfy both cores.")
    item_core: int = Field(0, ge=0, description="Drop items with fewer interactions, until all satisfy both cores.")
    repeats: Literal["keep", "last"] = Field(
        "keep", description="last: of a user's interactions with the same item keep only the latest."
    )
    unknown_items: Literal["keep", "drop"] = Field(
        "keep", description="Interactions with an item that the catalogue lacks."
    )
    unseen_items: Literal["keep", "drop"] = Field("keep", description="Items without interactions.")
    max_invalid_fraction: float = Field(
        0.01, ge=0, le=1, description="Fraction of invalid rows in a file up to which they are dropped; else an error."
    )


LIKE_PAPER: Mapping[str, Any] = {"user_core": 5, "repeats": "last", "unseen_items": "drop"}
"""The paper's data: users with at least 5 interactions, repeats collapsed to the last, no unseen items."""


@dataclass
class Interactions:
    """Numbered interactions, one column each, in the order of the file until they are sorted."""

    user: Ints  # int32
    item: Ints  # int32
    order: Ints | None  # int64: time in microseconds, or position; None: the rows are in order
    rating: Ints | None  # float32
    has_time: bool  # whether `order` is a time

    def __len__(self) -> int:
        return len(self.user)

    def keep(self, rows: Ints) -> None:
        """Keep only these rows (flags, or places in their new order), one column at a time: memory is the limit."""
        self.user, self.item = self.user[rows], self.item[rows]
        self.order = None if self.order is None else self.order[rows]
        self.rating = None if self.rating is None else self.rating[rows]

    def sort(self) -> None:
        """Sort by user, then time or position; ties keep the order of the file."""
        self.keep(np.lexsort((self.user,) if self.order is None else (self.order, self.user)))

    def repeated(self, same_time: bool) -> Flags:
        """Rows with another of the same user and item: at the same time and earlier in the file (`same_time`), else at
        a later time, or later in the file.
        """
        order = np.lexsort((self.item, self.user) if self.order is None else (self.order, self.item, self.user))
        same = np.ones(max(len(order) - 1, 0), dtype=bool)
        for column in (self.user, self.item, *([self.order] if same_time and self.order is not None else [])):
            values = column[order]
            same &= values[1:] == values[:-1]
        repeated = np.zeros(len(order), dtype=bool)
        repeated[order[1:] if same_time else order[:-1]] = same
        return repeated

    def apply(self, rules: Rules, n_users: int, n_items: int, report: PrepareReport) -> None:
        """Drop duplicates, repeats and what is outside the cores; each step is counted in `report`."""

        def keep(step: str, reason: str, kept: Flags) -> None:
            report.drop(reason, int((~kept).sum()), f"step '{step}'")
            if not kept.all():
                self.keep(kept)
            report.step(step, len(self), distinct(self.user, n_users), distinct(self.item, n_items))

        if self.has_time:
            reason = "interactions that repeat another, time included"
            keep("exact duplicates", reason, ~self.repeated(same_time=True))
        if rules.repeats == "last":
            reason = "interactions that the same user repeated later"
            keep("repeats collapsed", reason, ~self.repeated(same_time=False))
        if rules.user_core or rules.item_core:
            cores = ((rules.user_core, "user"), (rules.item_core, "item"))
            step = " and ".join(f"at least {core} of each {whose}" for core, whose in cores if core)
            kept = k_core(self.user, self.item, n_users, n_items, rules.user_core, rules.item_core)[2]
            keep(step, "interactions outside the core", kept)


def distinct(numbers: Ints, count: int) -> int:
    """How many of the numbers 0 to `count` - 1 occur."""
    seen = np.zeros(count, dtype=bool)
    seen[numbers] = True
    return int(seen.sum())
