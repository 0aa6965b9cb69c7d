"""The parts of `msm4sr prepare`: a source (a format), the rules that apply to every source, and the report."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import polars as pl
from pydantic import Field

from msm4sr.errors import InputError
from msm4sr.registry import Registry
from msm4sr.strict import Strict

TableName = Literal["interactions", "items"]


class Rules(Strict):
    """Which interactions and items are kept."""

    min_rating: float | None = Field(None, description="Drop interactions with a lower rating, or without one.")
    user_core: int = Field(0, ge=0, description="Drop users with fewer interactions, until all satisfy both cores.")
    item_core: int = Field(0, ge=0, description="Drop items with fewer interactions, until all satisfy both cores.")
    repeats: Literal["keep", "last"] = Field(
        "keep", description="last: keep only the latest of a user's interactions with the same item."
    )
    unknown_items: Literal["keep", "drop"] = Field(
        "keep", description="Interactions with an item that the catalogue lacks."
    )
    unseen_items: Literal["keep", "drop"] = Field("keep", description="Items without interactions.")
    max_invalid_fraction: float = Field(
        0.01, ge=0, le=1, description="Maximum fraction of invalid rows, which are dropped; more are an error."
    )


LIKE_PAPER: Mapping[str, Any] = {"user_core": 5, "repeats": "last", "unseen_items": "drop"}


@dataclass
class Drop:
    """What was dropped for one reason, with the first case."""

    reason: str
    count: int
    example: str


class Place(NamedTuple):
    """Where a row was read, for messages."""

    file: Path
    unit: str  # what `number` counts
    number: int

    def __str__(self) -> str:
        return f"{self.file.name}, {self.unit} {self.number}"


@dataclass
class PrepareReport:
    """What was read, kept and dropped; `provenance.json` of the folder holds the same."""

    out: Path
    rules: Rules
    interactions_read: int = 0
    interactions_kept: int = 0
    users: int = 0
    items_read: int | None = None  # None: no table of items, they are those of the interactions
    items_kept: int = 0
    with_title: int = 0
    with_text: int = 0
    with_categories: int = 0
    with_image: int = 0
    with_urls: int = 0  # items whose images include a URL that is yet to be fetched
    order: str = ""  # what the order of a history is based on
    time_unit: str = ""  # of the column `time` of the blocks (see `UNITS`); "": microseconds
    # Name of each step, with the number of interactions, users and seen items after it.
    steps: list[dict[str, int | str]] = field(default_factory=list)
    dropped: list[Drop] = field(default_factory=list)
    # Rows of each table that could not be read; they are among the dropped.
    invalid: dict[TableName, int] = field(default_factory=lambda: {"interactions": 0, "items": 0})
    notes: list[str] = field(default_factory=list)
    user_columns: list[str] = field(default_factory=list)  # of the table of users, if there is one
    users_described: int = 0  # users with a row in it

    def drop(self, reason: str, count: int, example: str) -> None:
        """Count what is dropped; of each reason the first example stays."""
        known = next((drop for drop in self.dropped if drop.reason == reason), None)
        if known is not None:
            known.count += count
        elif count:
            self.dropped.append(Drop(reason, count, example))

    def drop_invalid(self, table: TableName, reason: str, count: int, example: str) -> None:
        """Count rows that cannot be read."""
        self.drop(reason, count, example)
        self.invalid[table] += count

    def too_many_invalid(self, table: TableName) -> bool:
        """Whether more rows, for all reasons together, are invalid than the rules allow."""
        read = self.interactions_read if table == "interactions" else self.items_read or 0
        return self.invalid[table] > self.rules.max_invalid_fraction * read

    def nothing_left(self, path: Path, advice: str = "") -> InputError:
        """The error if no interaction is left; it says what was dropped."""
        why = "; ".join(f"{drop.count} {drop.reason}" for drop in self.dropped) or "the file has no rows"
        return InputError(f"{path}: no interaction is left of {self.interactions_read:,} ({why}){advice}")

    def lines(self) -> list[str]:
        """The report to print, one fact per line."""
        read = "those of the interactions" if self.items_read is None else f"{self.items_read:,} read"
        return [
            f"interactions  {self.interactions_kept:,} kept of {self.interactions_read:,}, {self.users:,} users",
            f"order         {self.order}",
            f"items         {self.items_kept:,} kept ({read}): {self.with_title:,} with title, "
            f"{self.with_text:,} text, {self.with_categories:,} categories, {self.with_image:,} image",
            *(f"user column   {name}, {self.users_described:,} users" for name in self.user_columns),
            *(f"dropped       {drop.count:,} {drop.reason} (first: {drop.example})" for drop in self.dropped),
            *(f"note          {note}" for note in self.notes),
            f"written       {self.out}",
        ]


class Source(Strict):
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

    format: ClassVar[str]  # its name in provenance.json
    rules: ClassVar[Rules] = Rules()  # apply unless others are given
    unit: ClassVar[str] = "line"  # what `row` counts in the blocks, for messages

    images: Path | None = Field(None, description="A folder of images.")
    users: Path | None = Field(None, description="A table of users, with columns that reports compare users by.")

    @property
    @abstractmethod
    def files(self) -> list[Path]:
        """The files that are read; the first has the interactions, the last the items."""

    @property
    def user_column(self) -> str:
        """The ID column of the table of users."""
        return "user_id"

    def place(self, table: TableName, row: int) -> Place:
        """Where a `row` of the blocks was read."""
        return Place(self.files[0 if table == "interactions" else -1], self.unit, row)

    @abstractmethod
    def read_interactions(self, report: PrepareReport) -> Iterator[pl.DataFrame]:
        """Read the interactions in blocks; invalid rows are counted in `report`.

        Blocks have the columns `row` int64 (place in the file, or in all files: ascending, see `place`), `user_id`,
        `item_id` str (not null, not empty), and if the format has them `rating` float and `time` int64 (microseconds
        since 1970; in another unit, or as float64, if `report.time_unit` says so) or `position` int64 (in the history
        of the user). With neither `time` nor `position` the rows of a user are in order.
        """

    def read_items(self, report: PrepareReport) -> Iterator[pl.DataFrame] | None:
        """Read the catalogue in blocks; invalid rows are counted in `report`.

        Blocks have the columns `row`, `item_id`, and if the format has them `title`, `text` (str), `categories`,
        `image` (list[str]: files in the folder of images, or URLs). None: the items are those of the interactions.
        """
        return None

    def settings(self) -> dict[str, Any]:
        """The fields for provenance.json, without paths, which differ between machines."""
        fields = type(self).model_fields.items()
        paths = {name for name, info in fields if Path in (info.annotation, *get_args(info.annotation))}
        return self.model_dump(mode="json", exclude=paths)


SOURCES: Registry[type[Source]] = Registry("source", "msm4sr.sources", ["msm4sr.data.sources"])
