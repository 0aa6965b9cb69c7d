"""From the blocks of a source to numbered interactions: cleaned blocks are files, IDs are numbered in a database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from msm4sr.data.database import CHUNK, Database, parquet_files
from msm4sr.data.preparation.catalogue import alike_ids, compare_ids, write_part
from msm4sr.data.preparation.cleaning import Cleaner
from msm4sr.data.preparation.interactions import Interactions
from msm4sr.data.preparation.source import PrepareReport, Source
from msm4sr.data.preparation.times import Times
from msm4sr.data.remaining import Flags
from msm4sr.data.schema import scan_parquet
from msm4sr.errors import InputError

EXAMPLES = 1000  # unknown IDs that are compared with the catalogue for a message
COLUMNS = {"time_int": pl.Int64(), "time_float": pl.Float64(), "position": pl.Int64(), "rating": pl.Float32()}


class Numbering:
    """Reads a source, drops what the rules on single rows drop, and numbers users and items in `database`."""

    def __init__(self, source: Source, report: PrepareReport, database: Database) -> None:
        self._source, self._report, self._database = source, report, database
        self._cleaner = Cleaner(source, report)
        self.times = Times(report, lambda row: source.place("interactions", row))
        self.catalogue: list[Path] | None = None  # the rows of the catalogue, each with its number as `code`
        self.catalogue_rows = 0
        self.n_items = 0  # numbers of items: rows of the catalogue, then the other items of the interactions

    def read_items(self, blocks: Iterator[pl.DataFrame]) -> None:
        """Write the catalogue to files and number its items; of those with the same ID the first counts."""
        report, parts = self._report, list[Path]()
        report.items_read = 0
        for block in blocks:
            block = self._cleaner.texts(self._cleaner.ids(block, "items"))
            if len(block):
                codes = pl.int_range(self.catalogue_rows, self.catalogue_rows + len(block), dtype=pl.Int32)
                parts.append(write_part(block.with_columns(code=codes), self._database.folder, len(parts)))
                self.catalogue_rows += len(block)
        path = self._source.files[-1]
        self._cleaner.check("items", path)
        if not parts:
            raise InputError(f"{path}: no item with an ID in {report.items_read:,} rows")
        run, listed = self._database.run, parquet_files(parts)
        run(f"CREATE TABLE items AS SELECT item_id, min(code)::INTEGER AS item_code FROM {listed} GROUP BY item_id")
        if repeated := self.catalogue_rows - self._database.count("items"):
            [(row, item_id)] = run(
                f"SELECT row, item_id FROM {listed} JOIN items USING (item_id) WHERE code > item_code "
                "ORDER BY code LIMIT 1"
            )
            reason = "items with an ID that an earlier row has"
            report.drop(reason, repeated, f"{self._source.place('items', row)}: {item_id!r}")
        self.catalogue, self.n_items = parts, self.catalogue_rows

    def read_interactions(self, blocks: Iterator[pl.DataFrame]) -> Interactions:
        """Number all interactions. Raises InputError if nothing is left."""
        report, database, path = self._report, self._database, self._source.files[0]
        parts = list(self._spill(blocks))
        self._cleaner.check("interactions", path)
        report.steps.append({"step": "read", "interactions": report.interactions_read})
        if not parts:
            raise report.nothing_left(path)
        database.share_memory()
        raw, columns = parquet_files(parts), scan_parquet(parts[0]).collect_schema()
        if self.catalogue is None:
            database.run("CREATE TABLE items (item_id VARCHAR, item_code INTEGER)")
        unknown = self._number_items(raw)
        database.run(
            "CREATE TABLE users AS SELECT user_id, (row_number() OVER (ORDER BY earliest) - 1)::INTEGER AS user_code "
            f"FROM (SELECT user_id, min(row) AS earliest FROM {raw} SEMI JOIN items USING (item_id) GROUP BY user_id)"
        )
        if not (n_users := database.count("users")):
            raise report.nothing_left(path, f"; {compare_ids(unknown, _ItemIds(database, self.catalogue_rows))}")
        others = ", ".join(name for name in COLUMNS if name in columns)
        database.run(
            f"CREATE TABLE numbered AS SELECT row, user_code, item_code{others and ', '}{others} "
            f"FROM {raw} JOIN items USING (item_id) JOIN users USING (user_id)"
        )
        for part in parts:
            part.unlink()
        per_second, moment, possible = 0, "position" if "position" in columns else "0::BIGINT", "true"
        if "time_int" in columns:
            per_second, moment, possible = self._decide_times()
        rating = ", rating::DOUBLE AS rating" if "rating" in columns else ""  # DuckDB groups floats slowly
        query = f"SELECT row, user_code, item_code, {moment} AS moment{rating} FROM numbered WHERE {possible}"
        database.run(f"CREATE VIEW usable AS {query}")
        self._note_unknown(unknown)
        return Interactions(database, "usable", per_second, n_users, self.n_items, "rating" in columns)

    def _spill(self, blocks: Iterator[pl.DataFrame]) -> Iterator[Path]:
        """The files of the cleaned blocks."""
        number = 0
        for block in blocks:
            block = self._rated(self._cleaner.ids(block, "interactions"))
            if "time" in block.columns:
                integers = block["time"].dtype.is_integer()
                times = (
                    {"time_int": "time", "time_float": None} if integers else {"time_int": None, "time_float": "time"}
                )
                block = block.with_columns(
                    (pl.lit(None) if time is None else pl.col(time)).cast(COLUMNS[name]).alias(name)
                    for name, time in times.items()
                )
            block = block.select(
                "row", "user_id", "item_id", *(pl.col(n).cast(t) for n, t in COLUMNS.items() if n in block)
            )
            if len(block):
                yield write_part(block, self._database.folder, number, "interactions")
                number += 1

    def _rated(self, block: pl.DataFrame) -> pl.DataFrame:
        """The rows that `min_rating` keeps."""
        lowest = self._report.rules.min_rating
        if lowest is None:
            return block
        if "rating" not in block.columns:
            raise InputError(f"{self._source.files[0]}: has no ratings; omit min_rating")
        for condition, reason in (
            (pl.col("rating").is_not_null(), "interactions without a rating"),
            (pl.col("rating") >= lowest, f"interactions rated under {lowest:g}"),
        ):
            kept = block.select(condition).to_series().fill_null(False)
            if not kept.all():
                row = block["row"][int(kept.arg_min() or 0)]
                self._report.drop(reason, len(block) - int(kept.sum()), str(self._source.place("interactions", row)))
                block = block.filter(kept)
        return block

    def _number_items(self, raw: str) -> list[str]:
        """Number the items that the catalogue lacks, or drop their interactions. Returns some of their IDs."""
        report, database = self._report, self._database
        others = f"SELECT item_id, min(row) AS earliest, count(*) AS repeats FROM {raw} ANTI JOIN items USING (item_id)"
        database.run(f"CREATE TABLE others AS {others} GROUP BY item_id")
        examples = database.run(f"SELECT item_id, earliest FROM others ORDER BY earliest LIMIT {EXAMPLES}")
        if self.catalogue is not None and report.rules.unknown_items == "drop":
            if examples:
                place = self._source.place("interactions", examples[0][1])
                reason = "interactions with an item that the catalogue lacks"
                [lacking] = database.row("SELECT sum(repeats)::BIGINT FROM others")
                report.drop(reason, lacking, f"{place}: {examples[0][0]!r}")
        else:
            number = f"({self.n_items - 1} + row_number() OVER (ORDER BY earliest))::INTEGER"
            database.run(f"INSERT INTO items SELECT item_id, {number} FROM others")
            self.n_items += database.count("others")
        database.run("DROP TABLE others")
        return [item_id for item_id, _ in examples]

    def _decide_times(self) -> tuple[int, str, str]:
        for chunk in self._database.chunks("numbered", "row, time_int, time_float"):
            for column in ("time_int", "time_float"):
                given = chunk.filter(pl.col(column).is_not_null())
                if len(given):
                    self.times.add(given["row"].to_numpy(), given[column].to_numpy())
        return self.times.decide()

    def _note_unknown(self, unknown: list[str]) -> None:
        """Report unknown items if most interactions have one, or if their IDs are like others."""
        if self.catalogue is None or not unknown:
            return
        report, known = self._report, _ItemIds(self._database, self.catalogue_rows)
        lacking = report.interactions_read - self._database.count(f"usable WHERE item_code < {self.catalogue_rows}")
        if 2 * lacking > report.interactions_read:
            report.notes.append(
                f"most interactions are with items outside the catalogue: {compare_ids(unknown, known)}"
            )
        elif alike := alike_ids(unknown, known):
            report.notes.append(f"items outside the catalogue: {alike}")

    def listed_items(self) -> Flags:
        """Which numbers are those of items of the catalogue: bool [n_items]."""
        listed = np.zeros(self.n_items, dtype=bool)
        for chunk in self._database.chunks("items", "item_code"):
            listed[chunk["item_code"].to_numpy()] = True
        listed[self.catalogue_rows :] = False
        return listed

    def add_unlisted(self, table: str) -> None:
        """Add the items of `table` that only the interactions mention to the files of the catalogue."""
        parts, database = self.catalogue or [], self._database
        schema = scan_parquet(parts[0]).collect_schema() if parts else {"item_id": pl.String(), "code": pl.Int32()}
        appeared = f"SELECT item_code, min((user_code, moment, row)) AS place FROM {table} GROUP BY item_code"
        database.run(
            f"CREATE TABLE unlisted AS SELECT item_id, item_code FROM ({appeared}) JOIN items USING (item_code) "
            f"WHERE item_code >= {self.catalogue_rows} ORDER BY place"
        )
        for chunk in database.chunks("unlisted", "item_id, item_code AS code", in_order=True):
            rows = chunk.select(pl.col(n) if n in chunk else pl.lit(None, t).alias(n) for n, t in schema.items())
            parts.append(write_part(rows, database.folder, len(parts)))
        self.catalogue = parts


class _ItemIds:
    """The IDs of the catalogue, in its order; read from the database whenever they are iterated."""

    def __init__(self, database: Database, rows: int) -> None:
        self._database, self._rows = database, rows

    def __iter__(self) -> Iterator[str]:
        for start in range(0, self._rows, CHUNK):
            places = f"item_code >= {start} AND item_code < {min(start + CHUNK, self._rows)}"
            for (item_id,) in self._database.run(f"SELECT item_id FROM items WHERE {places} ORDER BY item_code"):
                yield item_id
