"""Which image belongs to which item: files of a folder, or URLs to be fetched later."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from msm4sr.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif")

Image = Path | str
"""A file, links resolved, or a URL."""


def is_url(name: str) -> bool:
    """Whether an image is a URL and not a path."""
    return name.startswith(("https://", "http://"))


class ImageFolder:
    """A folder in which the images of items are found; None: URLs stay URLs, and there are no files.

    Attributes:
        missing: images that an item names, or should have, and that the folder lacks.
    """

    def __init__(self, folder: Path | None) -> None:
        """Raises InputError: no such folder."""
        if folder is not None and not folder.is_dir():
            raise InputError(f"{folder}: no such folder of images")
        self._root = None if folder is None else Path(os.path.realpath(folder))
        # Looked up in a listing: an ID or a URL never becomes a path.
        self._files: dict[str, str] = {}  # name, its suffix in lower case -> name
        for path in sorted(self._root.iterdir(), reverse=True) if self._root else ():
            if path.suffix.lower() in IMAGE_SUFFIXES:
                self._files[path.stem + path.suffix.lower()] = path.name
        self.missing: list[str] = []

    def find(self, item_id: str, names: Sequence[str] | None, where: str) -> list[Image]:
        """The images of an item: those that `names` lists, else the file `<item_id>.jpg` (or another suffix).

        Args:
            item_id: the item.
            names: paths in the folder, or URLs; a URL becomes the file of that name where the folder has one. None: the
                format has no image column; an item without a file is then counted as missing one.
            where: file and item, for messages.

        Raises:
            InputError: a path leads out of the folder.
        """
        if self._root is None:
            return [name for name in names or () if is_url(name)]
        found: list[Image] = []
        for name in names or ():
            if is_url(name):
                found.append(self._listed(unquote(urlsplit(name).path).rpartition("/")[2]) or name)
            elif path := self._inside(name, where):
                found.append(path)
            else:
                self.missing.append(f"item {item_id!r}: {name!r}")
        if not any(isinstance(image, Path) for image in found):
            by_id = next((path for suffix in IMAGE_SUFFIXES if (path := self._listed(item_id + suffix))), None)
            if by_id is not None:
                return [by_id]
            if names is None:
                self.missing.append(f"item {item_id!r}")
        return found

    def _listed(self, name: str) -> Path | None:
        stem, dot, suffix = name.rpartition(".")
        listed = self._files.get(stem + dot + suffix.lower())
        return None if listed is None else self._inside(listed, "the folder of images")

    def _inside(self, name: str, where: str) -> Path | None:
        """The image file `name` of the folder, links resolved; None if there is none."""
        if "\0" in name or self._root is None:
            return None
        path = Path(os.path.realpath(self._root / name))
        if not path.is_relative_to(self._root):
            raise InputError(f"{where}: image {name!r} lies outside {self._root}; give a path inside it")
        return path if path.suffix.lower() in IMAGE_SUFFIXES and os.path.isfile(path) else None


class SafeNames:
    """File names for the images of items: plain, short, and unique whatever the case."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def new(self, item_id: str, number: int, suffix: str) -> str:
        """The ID if it is plain and short, else its plain characters and a hash; then the number, from 1 on."""
        stem = item_id
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}", item_id):
            digest = hashlib.sha256(item_id.encode("utf-8", "surrogatepass")).hexdigest()[:16]
            stem = re.sub(r"[^A-Za-z0-9_-]+", "_", item_id)[:40].strip("_") + f"-{digest}"
        stem += f"-{number}" if number else ""
        name, copy = stem + suffix, 1
        while name.lower() in self._used:
            copy += 1
            name = f"{stem}-{copy}{suffix}"
        self.reserve(name)
        return name

    def reserve(self, name: str) -> None:
        """Never return this name."""
        self._used.add(name.lower())


def copy_images(item_id: str, images: Sequence[Image], folder: Path, names: SafeNames) -> list[str]:
    """Copy the files among `images` to `folder / "images"`. Returns the item's images there: paths and URLs."""
    copied = []
    for number, image in enumerate(images):
        if isinstance(image, Path):
            name = names.new(item_id, number, image.suffix.lower())
            shutil.copyfile(image, folder / "images" / name)
            copied.append(f"images/{name}")
        else:
            copied.append(image)
    return copied
