"""Numbered interactions in a database: the rules on them, their order, and their file."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from msm4sr.data.database import Database, parquet_files, quoted
from msm4sr.data.preparation.source import PrepareReport, Rules
from msm4sr.data.remaining import Flags, Ints, k_core
from msm4sr.data.schema import writing

ROW_GROUP = 1 << 20  # interactions of a row group


class Interactions:
    """The interactions that are kept so far.

    Args:
        database: has the tables `numbered` (dropped when it is no longer needed), `users` (`user_code`, `user_id`) and
            `items` (`item_code`, `item_id`).
        table: `row` (place in the files), `user_code`, `item_code`, `moment` (a time, or a position; the same for all:
            the rows are in order), and `rating` if there are ratings.
        per_second: units of `moment` in a second; 0: it is no time.
        n_users, n_items: one more than the largest number of a user and of an item.
    """

    def __init__(
        self, database: Database, table: str, per_second: int, n_users: int, n_items: int, with_rating: bool
    ) -> None:
        self._database, self.table, self._per_second = database, table, per_second
        self._sizes, self._with_rating = (n_users, n_items), with_rating
        self.count = 0

    def apply(self, rules: Rules, report: PrepareReport) -> None:
        """Drop duplicates, repeats and what is outside the cores; each step is counted in `report`."""
        self._record("usable rows", report)
        rating = ", arg_min_null(rating, row) AS rating" if self._with_rating else ""
        if self._per_second:
            reason = "interactions that repeat another, time included"
            key = "user_code, item_code, moment"
            first = f"SELECT {key}, min(row) AS row{rating} FROM {self.table} GROUP BY {key}"
            self._keep("exact duplicates", reason, first, report)
        if rules.repeats == "last":
            reason = "interactions that the same user repeated later"
            self._keep("repeats collapsed", reason, self._latest(), report)
        if not self.table.startswith("kept"):
            self._store(f"SELECT * FROM {self.table}")  # what follows reads it several times
        if rules.user_core or rules.item_core:
            cores = ((rules.user_core, "user"), (rules.item_core, "item"))
            step = " and ".join(f"at least {core} of each {whose}" for core, whose in cores if core)
            flags = k_core(self._pairs, *self._sizes, rules.user_core, rules.item_core)
            self._keep(step, "interactions outside the core", self._within(*flags), report)

    def _latest(self) -> str:
        """The latest interaction of each user with each item: one number orders by moment, then by row."""
        place = "moment::HUGEINT * (1::HUGEINT << 40) + row"
        rating = f", arg_max_null(rating, {place}) AS rating" if self._with_rating else ""
        key = "user_code, item_code"
        grouped = f"SELECT {key}, max({place}) AS place{rating} FROM {self.table} GROUP BY {key}"
        columns = (
            "user_code, item_code, (place >> 40)::BIGINT AS moment, (place & ((1::HUGEINT << 40) - 1))::BIGINT AS row"
        )
        return f"SELECT {columns}{', rating' if self._with_rating else ''} FROM ({grouped})"

    def _pairs(self) -> Iterator[tuple[Ints, Ints]]:
        for chunk in self._database.chunks(self.table, "user_code, item_code"):
            yield chunk["user_code"].to_numpy(), chunk["item_code"].to_numpy()

    def _within(self, users: Flags, items: Flags) -> str:
        """The interactions of these users with these items."""
        conditions = []
        for name, flags in (("user_code", users), ("item_code", items)):
            path = self._database.folder / f"core_{name}.parquet"
            with writing(path):
                pl.DataFrame({name: np.flatnonzero(flags).astype(np.int32)}).write_parquet(path)
            conditions.append(f"{name} IN (FROM {parquet_files([path])})")
        return f"SELECT * FROM {self.table} WHERE {' AND '.join(conditions)}"

    def _keep(self, step: str, reason: str, query: str, report: PrepareReport) -> None:
        before = self.count
        self._store(query)
        self._record(step, report)
        report.drop(reason, before - self.count, f"step '{step}'")

    def _store(self, query: str) -> None:
        old, self.table = self.table, "kept_2" if self.table == "kept_1" else "kept_1"
        self._database.run(f"CREATE TABLE {self.table} AS {query}")
        self._database.run(f"DROP TABLE {old}" if old.startswith("kept") else f"DROP VIEW {old}; DROP TABLE numbered")

    def _record(self, step: str, report: PrepareReport) -> None:
        self.count, *others = self._database.row(
            f"SELECT count(*), (SELECT count(*) FROM (SELECT DISTINCT user_code FROM {self.table})), "
            f"(SELECT count(*) FROM (SELECT DISTINCT item_code FROM {self.table})) FROM {self.table}"
        )
        report.interactions_kept, report.users = self.count, others[0]
        report.steps.append({"step": step, "interactions": self.count, "users": others[0], "items": others[1]})

    def write(self, path: Path, report: PrepareReport) -> None:
        """Write the interactions, sorted by user, then moment; ties keep the order of the files."""
        run, per_second = self._database.row, self._per_second
        columns, with_position = ["user_id", "item_id"], not per_second
        if per_second:
            self._note_ties(report)
            earliest, latest, finer = run(
                f"SELECT min(moment), max(moment), bool_or(moment % {per_second} != 0) FROM {self.table}"
            )
            begin, end = (datetime.fromtimestamp(moment // per_second, UTC) for moment in (earliest, latest))
            report.order += f", from {begin:%Y-%m-%d} to {end:%Y-%m-%d}"
            columns.append(f"moment // {per_second} AS timestamp")
            # Without a position, rows that differ by less than a second would become duplicates.
            seconds = f"SELECT DISTINCT user_code, item_code, moment // {per_second} FROM {self.table}"
            with_position = finer and self._database.count(f"({seconds})") < self.count
        if with_position:
            window = "PARTITION BY user_code ORDER BY moment, row"
            columns.append(f"(row_number() OVER ({window}) - 1)::INTEGER AS position")
        if self._with_rating:
            columns.append("rating::FLOAT AS rating")
        joined = f"{self.table} JOIN users USING (user_code) JOIN items USING (item_code)"
        self._database.run(
            f"COPY (SELECT {', '.join(columns)} FROM {joined} ORDER BY user_code, moment, row) TO {quoted(str(path))} "
            f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP})"
        )

    def _note_ties(self, report: PrepareReport) -> None:
        """Report if the times of most users do not order their interactions."""
        users = f"SELECT min(moment) = max(moment) AS equal FROM {self.table} GROUP BY user_code HAVING count(*) > 1"
        several, equal = self._database.row(f"SELECT count(*), coalesce(count_if(equal), 0) FROM ({users})")
        if 2 * equal > several:
            report.notes.append(
                f"{equal:,} of {several:,} users with several interactions have one time for all of them, so "
                "their histories are in the order of the file; were the times rounded?"
            )

    def seen_items(self) -> Flags:
        """Which items have an interaction: bool [n_items]."""
        seen = np.zeros(self._sizes[1], dtype=bool)
        for _, items in self._pairs():
            seen[items] = True
        return seen
