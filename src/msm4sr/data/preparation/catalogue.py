"""The catalogue of a prepared folder: its images, found by item and copied, and `items.parquet`."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

import polars as pl

from msm4sr.data.images import BrokenImage, file_suffix
from msm4sr.data.items import is_url
from msm4sr.data.preparation.reading import column
from msm4sr.data.preparation.source import PrepareReport, TableName
from msm4sr.data.remaining import Flags
from msm4sr.data.schema import ITEM_COLUMNS, ITEMS, read_parquet, scan_parquet, writing
from msm4sr.errors import InputError, excerpt

ITEM_GROUP = 1 << 16  # items of a row group: their texts are long

MISSING = "images that the folder of images lacks"
Image = tuple[Path, str] | str  # a file, links resolved, and the suffix of its format; or a URL


class ImageFolder:
    """A folder in which the images of items are found; None: URLs stay URLs, and there are no files."""

    def __init__(self, folder: Path | None, report: PrepareReport) -> None:
        if folder is not None and not folder.is_dir():
            raise InputError(f"{folder}: no such folder of images")
        self._root = None if folder is None else Path(os.path.realpath(folder))
        self._report = report
        # Looked up in a listing: an ID or a URL never becomes a path.
        self._files: dict[str, str] = {}  # name, its suffix in lower case -> name
        self._by_stem: dict[str, list[str]] = {}  # name with and without its suffix -> names, in alphabetical order
        for name in sorted(os.listdir(self._root)) if self._root else ():
            path = Path(name)
            self._files.setdefault(path.stem + path.suffix.lower(), name)
            for stem in {name, path.stem}:
                self._by_stem.setdefault(stem, []).append(name)

    def find(self, item_id: str, names: Sequence[str] | None, where: str) -> list[Image]:
        """The images of an item: those that `names` lists, else the first image `<item_id>.*` in the folder.

        `names` are paths in the folder, or URLs; a URL becomes the file of that name if the folder has one. None: no
        image column; an item without a file is then counted as missing one. `where` is for messages. What is missing
        or no image is counted in the report. Raises InputError if a path leads out of the folder.
        """
        if self._root is None:
            return [name for name in names or () if is_url(name)]
        found: list[Image] = []
        for name in names or ():
            if is_url(name):
                stem, dot, suffix = unquote(urlsplit(name).path).rpartition("/")[2].rpartition(".")
                listed = self._files.get(stem + dot + suffix.lower())
                found += (listed and self._first(item_id, [listed])) or [name]
            else:
                found += self._first(item_id, [name], where)
        if not any(isinstance(image, tuple) for image in found):
            return self._first(item_id, self._by_stem.get(item_id, []), counted=names is None) or found
        return found

    def _first(
        self, item_id: str, names: Sequence[str], where: str = "the folder of images", counted: bool = True
    ) -> list[Image]:
        """The first of these files that is an image, links resolved, if any. None is reported if `counted`."""
        reason, example = MISSING, f"item {item_id!r}"
        for name in names:
            path = self._inside(name, where)
            if path is None:
                example += f": {excerpt(name)}"
                continue
            try:
                return [(path, file_suffix(path))]
            except BrokenImage as error:
                # Without the size of this file, so that equal reasons are counted together.
                reason = f"images that cannot be used: {error.reason.rpartition(': ')[2]}"
                example = f"item {item_id!r}: {excerpt(name)}"
        self._report.drop(reason, int(counted), example)
        return []

    def _inside(self, name: str, where: str) -> Path | None:
        """The file `name` of the folder, links resolved; None if there is none."""
        if "\0" in name or self._root is None:
            return None
        path = Path(os.path.realpath(self._root / name))
        if not path.is_relative_to(self._root):
            raise InputError(f"{where}: image {name!r} lies outside {self._root}; give a path inside it")
        return path if os.path.isfile(path) else None


def compare_ids(unknown: Sequence[str], known: Iterable[str]) -> str:
    """For messages: how IDs differ from those of the catalogue, with an example of each."""
    has = excerpt(next(iter(known)))
    other = f"{excerpt(unknown[0])} is not in the catalogue, which has {has}; do both use the same IDs?"
    return alike_ids(unknown, known) or other


def alike_ids(unknown: Sequence[str], known: Iterable[str]) -> str:
    """For messages: the IDs that differ from one of the catalogue only in how they are written; "" if none does."""
    alikes: dict[str, Callable[[str], str]] = {
        "leading zeros": lambda name: name.lstrip("0"),
        "upper and lower case": str.casefold,
        "blanks": lambda name: "".join(name.split()),
        "a final .0": lambda name: name.removesuffix(".0"),
        "invisible characters": lambda name: "".join(sign for sign in name if unicodedata.category(sign) != "Cf"),
        "their Unicode form": partial(unicodedata.normalize, "NFKC"),
    }
    rest, found = dict.fromkeys(unknown), list[str]()
    for difference, alike in alikes.items():
        wanted = {alike(name): name for name in rest}
        matches = {wanted[key]: name for name in known if (key := alike(name)) in wanted} if rest else {}
        if matches:
            (match, other), *more = matches.items()
            count = f" (and {len(more):,} more)" if more else ""
            found.append(f"{match!a} and {other!a} of the catalogue differ by {difference}{count}")
        rest = {name: None for name in rest if name not in matches}
    return "; ".join(found) + "; write them alike" if found else ""


class SafeNames:
    """File names for the images of items: plain, short, and unique regardless of case."""

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


def write_part(frame: pl.DataFrame, folder: Path, number: int, table: TableName = "items") -> Path:
    """Write a part of a table, to be read again."""
    path = folder / f"{table}-{number:06d}.parquet"
    with writing(path):
        frame.write_parquet(path, compression="lz4")
    return path


def write_catalogue(
    parts: Sequence[Path], kept: Flags, images: ImageFolder, where: Path, folder: Path, report: PrepareReport
) -> None:
    """Copy the images of the items that are kept (bool [codes]), and join the parts in `items.parquet`.

    `parts` have the column `code` and some of `ITEM_COLUMNS`, and are overwritten; `where` is for messages.
    """
    names = SafeNames()
    for path in parts:
        part = read_parquet(path)
        part = part.filter(pl.Series(kept[part["code"].to_numpy()]))
        ids = part["item_id"].to_list()
        listed = [paths or [] for paths in part["image"].to_list()] if "image" in part.columns else [None] * len(ids)
        copied: list[list[str] | None] = []
        for item_id, paths in zip(ids, listed, strict=True):
            found = images.find(item_id, paths, f"{where}: item {item_id!r}")
            copied.append([_copy(image, folder, item_id, n, names) for n, image in enumerate(found)] or None)
        part = part.with_columns(column("image", copied, ITEM_COLUMNS["image"]))
        part = part.select(name for name in ITEM_COLUMNS if name in part.columns)
        report.items_kept += len(part)
        report.with_urls += sum(any(map(is_url, paths or ())) for paths in copied)
        for name in part.columns[1:]:
            counter = f"with_{name}"
            setattr(report, counter, getattr(report, counter) + part[name].count())
        with writing(path):
            part.write_parquet(path, compression="lz4")
    write_parquet(scan_parquet(*parts), folder / ITEMS, ITEM_GROUP)


def write_parquet(table: pl.LazyFrame, path: Path, group: int) -> None:
    """Stream a table to disk, in row groups of `group` rows."""
    with writing(path):
        table.sink_parquet(path, compression="zstd", row_group_size=group, maintain_order=True, engine="streaming")


def _copy(image: Image, folder: Path, item_id: str, number: int, names: SafeNames) -> str:
    """Copy a file to `folder / "images"`. Returns its path in `folder`; a URL stays one."""
    if isinstance(image, str):
        return image
    path, suffix = image
    name = f"images/{names.new(item_id, number, suffix)}"
    shutil.copyfile(path, folder / name)
    return name
