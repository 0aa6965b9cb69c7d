"""Images small enough to be embedded in a page."""

from __future__ import annotations

import base64
import io
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from msm4sr.data.images import BrokenImage
from msm4sr.data.items import Item, is_url
from msm4sr.features.images import load_image

SIDE = 240  # pixels of the longer side: sharp on a card of 120 CSS pixels on a dense screen, about 8 kB
TINTS = 6  # colours of the tiles of items without an image, in style.css


@dataclass(frozen=True)
class Thumbnail:
    """An image of an item, or the reason why there is none."""

    item: Item
    source: str | None  # a data URI
    fills: bool = False  # nearly square: may be cropped to fill its tile; other images are shown uncropped
    note: str = ""  # why there is no image


class Thumbnails:
    """The thumbnails of one page; each image is decoded once. No images are shown without the data set's folder."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._encoded: dict[str, tuple[str, bool] | None] = {}

    def of(self, item: Item) -> Thumbnail:
        """The first readable image of an item, or the reason why there is none."""
        paths = [path for path in item.images if isinstance(path, str)] if self._folder else []
        for path in paths:
            if encoded := self._encode(path):
                return Thumbnail(item, *encoded)
        note = "image unreadable" if paths else "no image"
        if paths and all(map(is_url, paths)):
            note = "not fetched yet"
        return Thumbnail(item, None, note=note)

    def each(self, item: Item) -> list[Thumbnail]:
        """One thumbnail for every image of an item."""
        return [self.of(replace(item, images=(path,))) for path in item.images]

    def _encode(self, path: str) -> tuple[str, bool] | None:
        if path not in self._encoded:
            try:
                image = load_image(self._folder or Path(), path, size_hint=SIDE)
                uri = "data:image/jpeg;base64," + base64.b64encode(small_jpeg(image, SIDE)).decode("ascii")
                self._encoded[path] = uri, 0.75 <= image.width / image.height <= 1.34
            except BrokenImage:
                self._encoded[path] = None
        return self._encoded[path]


def initial_of(title: str) -> str:
    """The letter on the tile of an item without an image."""
    return next((letter.upper() for letter in title if letter.isalnum()), "?")


def tint_of(item_id: str) -> int:
    """The colour of its tile; by crc32, not hash(): the same in every process."""
    return zlib.crc32(item_id.encode()) % TINTS


def small_jpeg(image: Image.Image, side: int) -> bytes:
    """An RGB image as a JPEG whose longer side has at most `side` pixels."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80, optimize=True)
    return buffer.getvalue()
