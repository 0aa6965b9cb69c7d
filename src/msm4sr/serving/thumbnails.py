"""Small versions of the items' images, made when first requested and stored in the state folder.

Where that cannot be written (the run is in a read-only file system, and the state is in a database), each process has
a temporary folder.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from msm4sr.data.images import BrokenImage
from msm4sr.features.images import decode_image
from msm4sr.files import atomic_file
from msm4sr.reports.pages.thumbnails import small_jpeg
from msm4sr.serving.service import Service

logger = logging.getLogger(__name__)

SIDES = (240, 640)  # pixels of the longer side: on a card, on the page of an item
JPEG = b"\xff\xd8", b"\xff\xd9"  # how a complete file starts and ends
DECODERS = 2  # images decoded at once, so that recommendations have a core


class ThumbnailCache:
    """The thumbnails of a service. Thread-safe."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._folder = service.settings.state / "thumbnails"
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._decoding = threading.BoundedSemaphore(DECODERS)

    def get(self, item_id: str, number: int, side: int) -> tuple[bytes, str] | None:
        """A JPEG of an image of an item, of about `side` pixels, and its ETag; None without one that can be read.

        Raises StoreUnavailable for an image of an added item that is not cached.
        """
        if (source := self._source(item_id, number)) is None:
            return None
        name, changed = source
        side = min(SIDES, key=lambda one: abs(one - side))
        file = self._file(name, side)
        with suppress(OSError):
            current = changed is None or int(file.stat().st_mtime) == changed
            if current and (kept := file.read_bytes()).startswith(JPEG[0]) and kept.endswith(JPEG[1]):
                return kept, _tag(kept)
        added = self._service.added_by(item_id) is not None
        if (stored := self._service.image(item_id, number) if added else b"") is None:
            return None
        with self._decoding:
            try:
                data = stored if added else self._service.recommender.read_image(item_id, number)
                thumbnail = small_jpeg(decode_image(data, side), side)
            except BrokenImage:
                return None
        self._keep(file, thumbnail, changed)
        return thumbnail, _tag(thumbnail)

    def _keep(self, file: Path, thumbnail: bytes, changed: int | None) -> None:
        """Store a thumbnail. On a full disk it is not; the next request makes it again."""
        try:
            with atomic_file(file) as path:
                path.write_bytes(thumbnail)
                if changed is not None:
                    os.utime(path, (changed, changed))
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES) and self._temporary is None:
                self._temporary = tempfile.TemporaryDirectory(prefix="msm4sr-thumbnails-")
                logger.warning("%s: %s; thumbnails are in %s", self._folder, error.strerror, self._temporary.name)
                self._folder = Path(self._temporary.name)

    def files(self, item_id: str) -> list[Path]:
        """Where the thumbnails of an item are, if they were made."""
        recommender = self._service.recommender
        row = recommender.catalogue.row(item_id)
        numbers = range(0 if row is None else len(recommender.catalogue.item(row).images))
        sources = [found for number in numbers if (found := self._source(item_id, number)) is not None]
        return [self._file(name, side) for name, _ in sources for side in SIDES]

    def _file(self, source: str, side: int) -> Path:
        name = hashlib.blake2b(f"{source} {side}".encode("utf-8", "replace"), digest_size=16).hexdigest()
        return self._folder / f"{name}.jpg"

    def _source(self, item_id: str, number: int) -> tuple[str, int | None] | None:
        """What names an image of an item, and the time of the last change of its file, in seconds; None without one.

        The time is None where an image never changes (of an added item), or its file is gone.
        """
        recommender = self._service.recommender
        catalogue = recommender.catalogue
        row = catalogue.row(item_id)
        if row is None or number >= len(catalogue.item(row).images):
            return None
        if catalogue.is_added(row):
            return f"added {item_id} {number} {self._service.added_by(item_id)} {self._service.store.name}", None
        changed = None
        image = f"{recommender.folder}/{catalogue.items.images[row][number]}"
        with suppress(OSError):
            changed = int(Path(image).stat().st_mtime)
        return image, changed


def _tag(thumbnail: bytes) -> str:
    return f'"{hashlib.blake2b(thumbnail, digest_size=16).hexdigest()}"'
