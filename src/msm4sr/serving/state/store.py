"""What a service needs of a store of items, and what stores have in common: changes, and items as rows of a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, Field, Json, StrictStr, ValidationError
from safetensors.numpy import load, save

from msm4sr.data.items import LONGEST_TEXT, LONGEST_TITLE, Item, check_item
from msm4sr.errors import InputError, first_line
from msm4sr.recommend.catalogue import ItemExists, UnknownItem

FORMAT = 2  # of the tables; 2: with the availability of items
TIMEOUT = 5  # seconds that a change waits for another process
MOST_IMAGES = 1000  # of an item
Counter = Literal["change", "reload"]


class StoreUnavailable(Exception):
    """The store cannot be read or changed at present."""


@dataclass(frozen=True)
class Change:
    """The latest change of an item, or of its availability."""

    number: int  # ascending
    item_id: str
    item: Item | None = None  # with its features, and in place of its images their numbers; None: removed or damaged
    removed: bool = False
    replaces: bool = False  # whether it was added in place of an item of the run
    encoded_by: str = ""  # the name of the encoders of its features
    damage: str = ""  # what is wrong with its row
    available: bool | None = None  # a change of the availability; the other values are then the default ones


class StateStore(Protocol):
    """The items that were added and removed while a run is served. Thread-safe; several processes may use one store.

    Each item that changed has a row with the number of its latest change. All changes of a store are in one order, and
    a process reads those after the last one that it knows. A change that returns is on disk.

    Every method may raise StoreUnavailable.
    """

    name: str  # of the store in messages
    at_once: bool  # whether `version` costs microseconds, so that each request can call it; else a thread must `wait`

    def unusable(self, error: object) -> InputError:
        """The message about a store that cannot be read or written."""
        ...

    def close(self) -> None:
        """Close files and connections."""
        ...

    def wait(self, seconds: float) -> None:
        """Return when another process may have changed the store, at the latest after so long. For one thread."""
        ...

    def version(self) -> int:
        """A number that differs whenever any process has changed the store."""
        ...

    def counter(self, name: Counter) -> int:
        """The number of the latest change, or of the requests to reload the run."""
        ...

    def changes(self, since: int = 0) -> list[Change]:
        """The changes after number `since`, in order; of each item only the latest."""
        ...

    def images(self, item_id: str) -> list[bytes]:
        """The image files that were uploaded for an item."""
        ...

    def image(self, item_id: str, number: int) -> bytes | None:
        """One of them; None if there is none."""
        ...

    def transaction(self) -> AbstractContextManager[None]:
        """No other thread or process changes the store in this block; it changes the store completely or not at all."""
        ...

    def add(self, items: Sequence[Item], encoded_by: str, replaces: Sequence[bool]) -> None:
        """Store new items, images and features. Raises ItemExists if another process has added one of them."""
        ...

    def remove(self, item_id: str, of_the_run: bool) -> None:
        """Store that an item was removed. Raises UnknownItem if another process has removed it meanwhile."""
        ...

    def set_available(self, item_ids: Sequence[str], available: bool) -> None:
        """Store whether items can be recommended. An item that is added again can be."""
        ...

    def request_reload(self) -> None:
        """Make every process reload the run."""
        ...

    def replace_features(self, changes: Sequence[Change], encoded_by: str) -> None:
        """Store features that other encoders made of these items, unless they have changed since.

        This does not count as a change.
        """
        ...


def check_absent(item_id: str, removed: bool | None) -> None:
    """Raises ItemExists unless the latest change of a new item removed it, or it has none."""
    if removed is False:
        raise ItemExists(f"item {item_id!r} is in the catalogue already; remove it first")


def check_present(item_id: str, removed: bool | None, of_the_run: bool) -> None:
    """Raises UnknownItem if the latest change of an item removed it, or nothing has added it."""
    if removed or (removed is None and not of_the_run):
        raise UnknownItem(f"no item {item_id!r} in the catalogue")


_Sentence = Annotated[str, Field(max_length=LONGEST_TEXT)]


class _Words(BaseModel):
    sentences: list[_Sentence] = Field(max_length=LONGEST_TEXT)
    keywords: list[list[Annotated[str, Field(max_length=LONGEST_TITLE)]]] = Field(max_length=MOST_IMAGES)


class _Row(BaseModel):
    """A row of the table, as `row_of` writes it; an item that was removed has no content."""

    item_id: StrictStr
    change: int
    removed: bool
    replaces: bool
    title: StrictStr | None
    text: StrictStr | None
    categories: Json[list[str]] | None
    images: int | None = Field(ge=0, le=MOST_IMAGES)
    encoded_by: StrictStr | None
    features: bytes | None
    words: Json[_Words] | None
    stored: int  # images

    def item(self) -> Item:
        if self.features is None or self.words is None or self.images is None or self.categories is None:
            raise ValueError("content is missing")
        if self.images > self.stored:
            raise ValueError(f"{self.images - self.stored} of its {self.images} images are missing")
        names, arrays = tuple(map(str, range(self.images))), load(self.features)
        content = (self.title, self.text, tuple(self.categories), names, arrays)
        item = Item(self.item_id, *content, self.words.sentences, self.words.keywords)
        check_item(item)
        return item


COLUMNS = tuple(name for name in _Row.model_fields if name != "stored")


def row_of(item: Item, change: int, replaces: bool, encoded_by: str) -> tuple[object, ...]:
    """An added item as a row of `COLUMNS`."""
    content = (item.title, item.text, json.dumps(list(item.categories)), len(item.images))
    return (item.item_id, change, False, replaces, *content, encoded_by, *encoded(item))


def encoded(item: Item) -> tuple[bytes, str]:
    """The columns `features` and `words`."""
    return save(dict(item.features)), json.dumps({"sentences": item.sentences, "keywords": item.keywords})


def merged_changes(rows: Iterable[Sequence[Any]], switched: Iterable[tuple[int, str, object]]) -> list[Change]:
    """All changes in order.

    Args:
        rows: of `COLUMNS` and the number of stored images.
        switched: number, item id and whether the item is available.
    """
    availability = [Change(number, str(item_id), available=value != 0) for number, item_id, value in switched]
    return sorted([*map(_change, rows), *availability], key=lambda change: change.number)


def _change(row: Sequence[Any]) -> Change:
    """The change that a row describes; it has `damage` if the row is malformed."""
    columns = dict(zip(_Row.model_fields, row, strict=True))
    try:
        valid = _Row.model_validate(columns)
        item = None if valid.removed else valid.item()
        return Change(valid.change, valid.item_id, item, valid.removed, valid.replaces, valid.encoded_by or "")
    except Exception as error:  # safetensors raises all kinds of errors on damaged data
        damage = first_line(error)
        if isinstance(error, ValidationError):
            damage = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
    number, item_id = columns["change"], str(columns["item_id"]).encode("utf-8", "backslashreplace").decode()
    return Change(number if isinstance(number, int) else 0, item_id, replaces=bool(columns["replaces"]), damage=damage)
