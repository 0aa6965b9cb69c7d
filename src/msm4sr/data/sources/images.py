"""Which picture belongs to which item: files of a folder, or addresses to be fetched later."""

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

Picture = Path | str
"""A file, links resolved, or an address."""


def is_url(name: str) -> bool:
    return name.startswith(("https://", "http://"))


class Pictures:
    """A folder of pictures, in which items find theirs."""

    def __init__(self, folder: Path | None) -> None:
        """Raises InputError: no such folder."""
        if folder is not None and not folder.is_dir():
            raise InputError(f"{folder}: no such folder of images")
        self._root = None if folder is None else Path(os.path.realpath(folder))
        # Looked up in a listing: an ID or an address never becomes a path.
        self._files: dict[str, str] = {}  # name, its suffix in lower case -> name
        for path in sorted(self._root.iterdir(), reverse=True) if self._root else ():
            if path.suffix.lower() in IMAGE_SUFFIXES:
                self._files[path.stem + path.suffix.lower()] = path.name
        self.missing: list[str] = []
        """What an item names, or should have, and the folder lacks."""

    def of_item(self, item_id: str, names: Sequence[str] | None, where: str) -> list[Picture]:
        """The pictures that `names` names, else the file `<item_id>.jpg` (or another suffix).

        An address stands for the file of its name; without one it stays an address. None for `names` means that
        no column names pictures; an item without a file of its own is then counted as missing one.

        Raises InputError: a name leads out of the folder.
        """
        if self._root is None:
            return [name for name in names or () if is_url(name)]
        found: list[Picture] = []
        for name in names or ():
            path = self._named(unquote(urlsplit(name).path).rpartition("/")[2]) if is_url(name) else None
            picture = path or (name if is_url(name) else self._inside(name, where))
            if picture is None:
                self.missing.append(f"item {item_id!r}: {name!r}")
            else:
                found.append(picture)
        if not any(isinstance(picture, Path) for picture in found):
            own = next((path for suffix in IMAGE_SUFFIXES if (path := self._named(item_id + suffix))), None)
            if own is not None:
                return [own]
            if names is None:
                self.missing.append(f"item {item_id!r}")
        return found

    def _named(self, name: str) -> Path | None:
        stem, dot, suffix = name.rpartition(".")
        listed = self._files.get(stem + dot + suffix.lower())
        return None if listed is None else self._inside(listed, "the folder of images")

    def _inside(self, name: str, where: str) -> Path | None:
        """The image file `name` of the folder, links resolved; None if there is none."""
        if "\0" in name:
            return None
        assert self._root is not None
        path = Path(os.path.realpath(self._root / name))
        if not path.is_relative_to(self._root):
            raise InputError(f"{where}: image {name!r} lies outside {self._root}; give a path inside it")
        return path if path.suffix.lower() in IMAGE_SUFFIXES and os.path.isfile(path) else None


class SafeNames:
    """File names for items' pictures that are plain and short, and unique whatever the case."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def new(self, item_id: str, number: int, suffix: str) -> str:
        """The ID if it is plain and short, else what is plain of it and a hash; then the number, from 1 on."""
        stem = _plain_stem(item_id, number)
        name, again = stem + suffix, 1
        while name.lower() in self._used:
            again += 1
            name = f"{stem}-{again}{suffix}"
        self.take(name)
        return name

    def take(self, name: str) -> None:
        """This name is used already."""
        self._used.add(name.lower())


def _plain_stem(item_id: str, number: int) -> str:
    stem = item_id
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}", item_id):
        digest = hashlib.sha256(item_id.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", item_id)[:40].strip("_") + f"-{digest}"
    return f"{stem}-{number}" if number else stem


def copy_pictures(item_id: str, pictures: Sequence[Picture], folder: Path, names: SafeNames) -> list[str]:
    """Copy the files among `pictures` to `folder / "images"`; the `image` of the item: paths and addresses."""
    image = []
    for number, picture in enumerate(pictures):
        if isinstance(picture, Path):
            name = names.new(item_id, number, picture.suffix.lower())
            shutil.copyfile(picture, folder / "images" / name)
            image.append(f"images/{name}")
        else:
            image.append(picture)
    return image
