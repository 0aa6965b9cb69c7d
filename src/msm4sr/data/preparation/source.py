"""What a source is: a format that `msm4sr prepare` reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, get_args

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from msm4sr.data.preparation.report import PrepareReport
from msm4sr.data.preparation.rules import Rules
from msm4sr.registry import Registry


class Source(BaseModel):
    """A format: its files, its settings, and how it becomes two tables.

    A subclass in any package adds a format:

        @SOURCES.register("shop")
        class Shop(Source):
            \"\"\"From the shop's database dump to a prepared folder.\"\"\"

            dump: Path = Field(description="The dump.")
            currency: str = Field("EUR", description="Of the prices.")

    Then `msm4sr prepare shop DUMP OUT --currency USD` exists: fields without a default are its arguments, the others
    its options, the docstring and the descriptions its help. Another package declares its module as the entry point
    "shop" of the group "msm4sr.sources".
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: ClassVar[str]
    """Name of the format in provenance.json."""
    rules: ClassVar[Rules] = Rules()
    """The rules that apply unless others are given."""
    unit: ClassVar[str] = "line"
    """What `row` counts in the blocks, for messages."""

    images: Path | None = Field(None, description="A folder of images.")

    @property
    def files(self) -> list[Path]:
        """The files that are read; the first has the interactions, the last the items."""
        raise NotImplementedError

    def read_interactions(self, report: PrepareReport) -> Iterator[pl.DataFrame]:
        """Read the interactions in blocks; invalid rows are counted in `report`.

        Returns:
            Blocks with the columns `row` int64 (place in the file), `user_id`, `item_id` str (not null, not empty), and
            where the format has them `rating` float and `time` int64 (microseconds since 1970) or `position` int64 (in
            the history of the user). With neither `time` nor `position` the rows of a user are in order.
        """
        raise NotImplementedError

    def read_items(self, report: PrepareReport) -> Iterator[pl.DataFrame] | None:
        """Read the catalogue in blocks; invalid rows are counted in `report`.

        Returns:
            Blocks with the columns `row`, `item_id`, and where the format has them `title`, `text` (str), `categories`,
            `image` (list[str]: files in the folder of images, or URLs). None: the items are those of the interactions.
        """
        return None

    def settings(self) -> dict[str, Any]:
        """The fields for provenance.json, without paths, which differ between machines."""
        paths = {
            name
            for name, field in type(self).model_fields.items()
            if Path in (field.annotation, *get_args(field.annotation))
        }
        return self.model_dump(mode="json", exclude=paths)


SOURCES: Registry[type[Source]] = Registry("source", "msm4sr.sources", ["msm4sr.data.sources"])
"""All sources by name."""
