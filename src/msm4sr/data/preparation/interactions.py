"""Numbered interactions: the rules on them, their order, and their table."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from msm4sr.data.dataset import Flags, Ints, k_core
from msm4sr.data.preparation.source import PrepareReport, Rules
from msm4sr.data.schema import writing

ROW_GROUP = 1 << 20  # interactions of a row group


@dataclass
class Interactions:
    """Numbered interactions, one column each, in the order of the file until they are sorted."""

    user: Ints  # int32
    item: Ints  # int32
    order: Ints | None  # int64: time, or position; None: the rows are in order
    rating: Ints | None  # float32
    per_second: int  # units of `order` in a second; 0: `order` is no time
    user_ids: pl.Series  # the ID of each number
    item_ids: pl.Series

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

    def apply(self, rules: Rules, report: PrepareReport) -> None:
        """Drop duplicates, repeats and what is outside the cores; each step is counted in `report`."""
        self._record("usable rows", report)
        if self.per_second:
            reason = "interactions that repeat another, time included"
            self._drop("exact duplicates", reason, self.repeated(same_time=True), report)
        if rules.repeats == "last":
            reason = "interactions that the same user repeated later"
            self._drop("repeats collapsed", reason, self.repeated(same_time=False), report)
        if rules.user_core or rules.item_core:
            cores = ((rules.user_core, "user"), (rules.item_core, "item"))
            step = " and ".join(f"at least {core} of each {whose}" for core, whose in cores if core)
            sizes = len(self.user_ids), len(self.item_ids)
            kept = k_core(self.user, self.item, *sizes, rules.user_core, rules.item_core)[2]
            self._drop(step, "interactions outside the core", ~kept, report)

    def _drop(self, step: str, reason: str, dropped: Flags, report: PrepareReport) -> None:
        report.drop(reason, int(dropped.sum()), f"step '{step}'")
        if dropped.any():
            self.keep(~dropped)
        self._record(step, report)

    def _record(self, step: str, report: PrepareReport) -> None:
        counts = {"interactions": len(self.user)}
        for name, numbers, ids in (("users", self.user, self.user_ids), ("items", self.item, self.item_ids)):
            seen = np.zeros(len(ids), dtype=bool)
            seen[numbers] = True
            counts[name] = int(seen.sum())
        report.interactions_kept, report.users = counts["interactions"], counts["users"]
        report.steps.append({"step": step, **counts})

    def _note_ties(self, report: PrepareReport) -> None:
        """Report if the times of most users do not order their interactions."""
        if self.order is None or not self.per_second:
            return
        first = np.flatnonzero(np.diff(self.user, prepend=-1))
        lengths = np.diff(first, append=len(self.user))
        equal = np.minimum.reduceat(self.order, first) == np.maximum.reduceat(self.order, first)
        several = lengths > 1
        if 2 * (count := int((equal & several).sum())) > several.sum():
            report.notes.append(
                f"{count:,} of {several.sum():,} users with several interactions have one time for all of them, so "
                "their histories are in the order of the file; were the times rounded?"
            )

    def write(self, path: Path, report: PrepareReport) -> None:
        """Write the sorted interactions; numbers become IDs a chunk at a time."""
        self._note_ties(report)
        user, with_position = self.user, not self.per_second
        columns = {"user_id": pl.Series(user), "item_id": pl.Series(self.item)}
        if self.order is not None and self.per_second:
            finer = bool((self.order % self.per_second).any())
            self.order //= self.per_second
            columns["timestamp"] = pl.Series(self.order)
            begin, end = (datetime.fromtimestamp(int(t), UTC) for t in (self.order.min(), self.order.max()))
            report.order += f", from {begin:%Y-%m-%d} to {end:%Y-%m-%d}"
            with_position = finer and bool(self.repeated(same_time=True).any())
        if with_position:  # without it, rows that differ by less than a second would become duplicates
            first = np.flatnonzero(np.diff(user, prepend=-1))
            lengths = np.diff(first, append=len(user))
            columns["position"] = pl.Series((np.arange(len(user)) - np.repeat(first, lengths)).astype(np.int32))
        if self.rating is not None:
            columns["rating"] = pl.Series(self.rating).fill_nan(None)
        named = [
            pl.col(column).map_batches(ids.gather, return_dtype=pl.String, is_elementwise=True)
            for column, ids in (("user_id", self.user_ids), ("item_id", self.item_ids))
        ]
        write_parquet(pl.DataFrame(columns).lazy().with_columns(named), path, ROW_GROUP)


def write_parquet(table: pl.LazyFrame, path: Path, group: int) -> None:
    """Stream a table to disk, in row groups of `group` rows."""
    with writing(path):
        table.sink_parquet(path, compression="zstd", row_group_size=group, maintain_order=True, engine="streaming")
