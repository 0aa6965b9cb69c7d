"""One item, and the items of a catalogue."""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import polars as pl

from msm4sr.errors import InputError

# Characters, and categories, of an item to add.
LONGEST_ID, LONGEST_CATEGORY, LONGEST_TITLE, LONGEST_TEXT, MOST_CATEGORIES = 200, 200, 1000, 1_000_000, 50
# Control characters except tabs and line ends, for a character set of a regular expression.
CONTROL = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"
_BAD_CHARACTER = re.compile(rf"[{CONTROL}\ud800-\udfff]")


def is_url(image: str) -> bool:
    """Whether an image is a URL and not a path."""
    return image.startswith(("https://", "http://"))


def has_image(images: Sequence[str] | None) -> bool:
    """Whether an item has an image file; a URL is an image that is not fetched yet."""
    return not all(map(is_url, images or ()))


@dataclass(frozen=True, eq=False)
class Item:
    """An item of a catalogue, or one to add: an id, its content, and optionally its features."""

    item_id: str  # unique in its catalogue
    title: str | None = None
    text: str | None = None  # a description
    categories: Sequence[str] = ()
    images: Sequence[str | bytes] = ()  # paths relative to the folder of the data set, or the bytes of image files
    # Modality to float32 [rows, dim], from the frozen encoders or precomputed.
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    sentences: Sequence[str] = ()  # the sentence of each row of the text
    keywords: Sequence[Sequence[str]] = ()  # the keywords of each image

    @property
    def name(self) -> str:
        """The title, or the id of an item without one."""
        return self.title if self.title and self.title.strip() else self.item_id

    @staticmethod
    def from_row(items: pl.DataFrame, row: int) -> Item:
        """Row `row` of a catalogue, as `read_items` gives it."""
        return Items.from_frame(items[row])[0]


def check_characters(text: str) -> str:
    """Return `text`. Raises ValueError if it has a control character or half of a surrogate pair."""
    if found := _BAD_CHARACTER.search(text):
        raise ValueError(f"character {found.start() + 1} (U+{ord(found[0]):04X}) is not allowed; remove it")
    return text


def check_texts(texts: list[str]) -> list[str]:
    """`check_characters` for many texts: one search if all are right."""
    if _BAD_CHARACTER.search("".join(texts)):
        for text in texts:
            check_characters(text)
    return texts


def check_item(item: Item) -> None:
    """Raise InputError if the id or a text of an item to add is malformed or too long."""
    item_id = item.item_id
    if not item_id.strip() or len(item_id) > LONGEST_ID or not item_id.isprintable():
        raise InputError(f"item id {item_id[:LONGEST_ID]!r}: give 1 to {LONGEST_ID} printable characters")
    if item_id in (".", ".."):
        raise InputError(f"item id {item_id!r}: no path can end with it; use another id")
    if len(item.categories) > MOST_CATEGORIES:
        raise InputError(f"item {item_id!r}: {len(item.categories):,} categories; give at most {MOST_CATEGORIES}")
    for name, texts, longest in (
        ("title", [item.title], LONGEST_TITLE),
        ("text", [item.text], LONGEST_TEXT),
        ("categories", item.categories, LONGEST_CATEGORY),
    ):
        for text in texts:
            if len(text or "") > longest:
                raise InputError(f"item {item_id!r}, {name}: {len(text or ''):,} characters; give at most {longest:,}")
            try:
                check_characters(text or "")
            except ValueError as error:
                raise InputError(f"item {item_id!r}, {name}: {error}") from None


@dataclass(frozen=True, eq=False)
class Items:
    """The items of a catalogue as columns, since millions of `Item` objects need ten times the memory."""

    item_ids: list[str]
    titles: list[str | None]
    texts: list[str | None]
    categories: list[tuple[str, ...]]
    images: list[tuple[str, ...]]

    @staticmethod
    def from_frame(frame: pl.DataFrame) -> Items:
        """The items of a table as `read_items` gives it."""
        return Items(
            item_ids=frame["item_id"].to_list(),
            titles=frame["title"].to_list(),
            texts=frame["text"].to_list(),
            categories=[tuple(names or ()) for names in frame["categories"].to_list()],
            images=[tuple(path for path in paths or () if path) for paths in frame["image"].to_list()],
        )

    @cached_property
    def rows(self) -> Mapping[str, int]:
        """Item id to row."""
        return {item_id: row for row, item_id in enumerate(self.item_ids)}

    @cached_property
    def rows_by_category(self) -> Mapping[str, np.ndarray]:
        """Category to the rows of its items: int64, ascending."""
        rows: dict[str, array[int]] = {}
        for row, names in enumerate(self.categories):
            for name in dict.fromkeys(names):
                if (found := rows.get(name)) is None:
                    found = rows[name] = array("q")
                found.append(row)
        return {name: np.frombuffer(found, np.int64) for name, found in rows.items()}

    def __len__(self) -> int:
        return len(self.item_ids)

    def __getitem__(self, row: int) -> Item:
        return Item(self.item_ids[row], self.titles[row], self.texts[row], self.categories[row], self.images[row])

    def name(self, row: int) -> str:
        """The title of an item, or the id of one without a title."""
        title = self.titles[row]  # not `self[row].name`, which is slow for a million items
        return title if title and title.strip() else self.item_ids[row]
