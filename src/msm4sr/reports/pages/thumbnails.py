"""Pictures small enough to live inside a page."""

from __future__ import annotations

import base64
import io
import zlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from msm4sr.data.sources.images import is_url
from msm4sr.features.images import BrokenImage, load_image
from msm4sr.recommend.recommender import ItemTable

SIDE = 240  # pixels of the longer side: sharp on a card of 120 CSS pixels on a dense screen, about 8 kB
TINTS = 6  # colours of the placeholder tiles in style.css


@dataclass(frozen=True)
class Tile:
    """What a card shows on top: a picture as a data URI, or else an initial on a coloured tile."""

    title: str
    source: str | None  # data:image/jpeg;base64,...
    fills: bool  # nearly square: may be cropped to fill the tile; others are shown whole
    initial: str
    tint: int
    note: str  # why there is no picture; empty where there is one


class Tiles:
    """The tiles of one page. Each picture is decoded once, however often its item appears."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, int], Tile] = {}

    def tile(self, items: ItemTable, row: int) -> Tile:
        key = (id(items), row)
        if key not in self._made:
            self._made[key] = make_tile(items, row)
        return self._made[key]


def make_tile(items: ItemTable, row: int) -> Tile:
    """Item `row`'s first readable picture, or a placeholder that says why there is none."""
    title = items.titles[row]
    paths = [(items.folder, path) for path in items.images[row]] if items.images and items.folder else []
    for folder, path in paths:
        try:
            picture = load_image(folder, path, size_hint=SIDE)
        except BrokenImage:
            continue
        ratio = picture.width / picture.height
        return Tile(title, data_uri(picture), 0.75 <= ratio <= 1.34, "", 0, "")
    note = "picture unreadable" if paths else "no picture"
    if paths and all(is_url(path) for _, path in paths):
        note = "not fetched yet"
    return Tile(title, None, False, initial_of(title), tint_of(items.item_ids[row]), note)


def initial_of(title: str) -> str:
    """The letter that stands on the tile of an item without a picture."""
    return next((letter.upper() for letter in title if letter.isalnum()), "?")


def tint_of(item_id: str) -> int:
    """The colour of its tile; by crc32, not hash(): the same in every process."""
    return zlib.crc32(item_id.encode()) % TINTS


def data_uri(picture: Image.Image) -> str:
    """An RGB picture as a small JPEG inside a `data:` URI."""
    return "data:image/jpeg;base64," + base64.b64encode(small_jpeg(picture, SIDE)).decode("ascii")


def small_jpeg(picture: Image.Image, side: int) -> bytes:
    """An RGB picture as a JPEG whose longer side has `side` pixels at most."""
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80, optimize=True)
    return buffer.getvalue()


def write_page(path: Path, page: str) -> None:
    """Write a page so that a reader sees the old one or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
