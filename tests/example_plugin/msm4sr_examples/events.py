"""A data source: a web shop's events as JSON lines."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import polars as pl
from pydantic import Field

from msm4sr.data.preparation.reading import InvalidRow, read_blocks
from msm4sr.data.preparation.source import SOURCES, PrepareReport, Source

COLUMNS = {"user_id": pl.String(), "item_id": pl.String(), "time": pl.Int64()}


@SOURCES.register("events")
class Events(Source):
    """From JSON lines {"user": ..., "item": ..., "event": ..., "at": ...} to a prepared folder."""

    format: ClassVar[str] = "events"

    file: Path = Field(description="The JSON lines.")
    event: str = Field("buy", description="The event that counts as an interaction.")

    @property
    def files(self) -> list[Path]:
        return [self.file]

    def read_interactions(self, report: PrepareReport) -> Iterator[pl.DataFrame]:
        report.order, report.time_unit = "the time of the event", "s"
        return read_blocks(self.file, self._parse, COLUMNS, report, "interactions")

    def _parse(self, line: bytes) -> tuple[str, str, int]:
        try:
            row = json.loads(line)
            user, item, event, time = str(row["user"]), str(row["item"]), row["event"], int(row["at"])
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidRow("lines that are no event") from error
        if event != self.event:
            raise InvalidRow("other events", event)
        return user, item, time
