"""What is known of an item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import polars as pl


@dataclass(frozen=True, eq=False)
class Item:
    """An item of a catalogue, or one to add: an id, its content, and its features where they are known.

    Attributes:
        item_id: unique in its catalogue.
        title: None for an item without one.
        text: a description; None for an item without one.
        categories: names.
        images: paths relative to the folder of the data set, or the bytes of image files.
        features: modality to float32 [rows, dim]: what the frozen encoders made of the content, or precomputed
            embeddings that come with a new item.
        sentences: the sentences that the rows of the text stand for.
        keywords: the keywords that the rows of the images stand for.
    """

    item_id: str
    title: str | None = None
    text: str | None = None
    categories: Sequence[str] = ()
    images: Sequence[str | bytes] = ()
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    sentences: Sequence[str] = ()
    keywords: Sequence[Sequence[str]] = ()

    @property
    def name(self) -> str:
        """The title, or the id of an item without one."""
        return self.title if self.title and self.title.strip() else self.item_id

    @classmethod
    def from_row(cls, items: pl.DataFrame, row: int) -> Self:
        """Row `row` of a catalogue, as `read_items` gives it."""
        columns = ("item_id", "title", "text", "categories", "image")
        item_id, title, text, categories, images = items.select(columns).row(row)
        return cls(item_id, title, text, tuple(categories or ()), tuple(path for path in images or () if path))
