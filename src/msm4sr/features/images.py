"""Images from untrusted files, as RGB.

A path comes from data, so it may not leave the folder of the data set; a file may be truncated, not an image, or a
few kilobytes that unpack to gigabytes. All of these raise `BrokenImage`; extraction counts and lists them.
`msm4sr.data.images` decides by the header what an image is.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TypeVar

import numpy as np
from PIL import Image

from msm4sr.data.images import MAX_BYTES, BrokenImage, open_image

A = TypeVar("A")
B = TypeVar("B")

# Images larger than this are decoded one at a time, however many threads there are: at the limit of pixels an image
# needs 400 MiB, in some formats 800.
LARGE_PIXELS = 16_000_000
_ONE_LARGE = Lock()
# Pillow allocates blocks of 16 MiB by default. glibc keeps blocks below 32 MiB for the thread that freed them; larger
# ones go back to the system, so that four threads do not hold the memory of four large images that are done.
Image.core.set_block_size(64 * 1024 * 1024)  # type: ignore[attr-defined]
# A progressive JPEG has about ten scans. Each goes over all pixels, so that a small file of a million scans would keep
# a decoder busy for days.
MAX_SCANS = 200
_START_OF_SCAN = b"\xff\xda"
# EXIF orientation (tag 274) -> the transposition to upright.
_ORIENTATION_TAG = 274
_TURNS = ["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"]
_UPRIGHT = {orientation: Image.Transpose[turn] for orientation, turn in enumerate(_TURNS, start=2)}


def load_image(folder: Path, relative: str, size_hint: int | None = None) -> Image.Image:
    """The image at `folder / relative` as RGB, upright, first frame only, transparency on white.

    `size_hint` is the side in pixels that the caller will resize to. If all sides are more than twice as long, the
    image is reduced by an integer factor (a JPEG while it is decoded), which is faster, needs little memory, and makes
    no visible difference. None: full size.

    Raises:
        BrokenImage: path outside the folder, no such file, over 64 MiB, over 50 megapixels or 20,000 pixels a side
            (both refused by the header, before decoding), a JPEG of over 200 scans, not an image, or cut short.
    """
    return decode_image(read_image(folder, relative), size_hint)


def read_image(folder: Path, relative: str) -> bytes:
    """The bytes of a file inside `folder`, symbolic links resolved. Raises BrokenImage."""
    if relative.startswith(("https://", "http://")):
        raise BrokenImage("an address; `msm4sr fetch-images` downloads it")
    try:
        root = folder.resolve()
        path = (root / relative).resolve()
        if Path(relative).is_absolute() or not path.is_relative_to(root):
            raise BrokenImage("path leaves the data set's folder")
        if not path.is_file():
            raise BrokenImage("no such file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError, RuntimeError) as error:  # unreadable; a NUL in the path; a loop of links
        raise BrokenImage(f"cannot be read ({type(error).__name__})") from error
    if len(data) > MAX_BYTES:
        raise BrokenImage(f"file larger than {MAX_BYTES // 2**20} MiB")
    return data


def decode_image(data: bytes, size_hint: int | None = None) -> Image.Image:
    """Decode the bytes of an image file; see `load_image`."""
    if data[:2] == b"\xff\xd8" and data.count(_START_OF_SCAN) > MAX_SCANS:
        raise BrokenImage(f"a JPEG of more than {MAX_SCANS} scans")
    try:
        with open_image(io.BytesIO(data)) as image:
            width, height = image.size
            with _ONE_LARGE if width * height > LARGE_PIXELS else nullcontext():
                if size_hint is not None:
                    image.draft(None, (2 * size_hint, 2 * size_hint))  # no effect on formats other than JPEG
                image.load()
                turn = _UPRIGHT.get(_orientation(image))
                factor = 1 if size_hint is None else max(1, min(image.size) // (2 * size_hint))
                rgb = _to_rgb(image, factor)
        return rgb if turn is None else rgb.transpose(turn)
    except BrokenImage:
        raise
    except Exception as error:  # decoders raise all kinds of errors on a damaged file; none may end a run
        raise BrokenImage(f"damaged or cut short ({type(error).__name__})") from error


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a damaged EXIF block says nothing about the image itself
        return 1


def _to_rgb(image: Image.Image, factor: int = 1) -> Image.Image:
    """RGB, each side divided by `factor`; colours are averaged, not indices of a palette."""
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits a pixel: Pillow's own conversion would clip at 255
        return _to_grey(image).reduce(factor).convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        straight = (image if image.mode in {"RGBA", "LA"} else image.convert("RGBA")).reduce(factor).convert("RGBA")
        white = Image.new("RGBA", straight.size, "white")
        return Image.alpha_composite(white, straight).convert("RGB")
    return (image if image.mode in {"RGB", "L", "CMYK"} else image.convert("RGB")).reduce(factor).convert("RGB")


def _to_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    strips = [slice(top, top + 64) for top in range(0, len(values), 64)]  # as float all at once it would be large

    def numbers(rows: slice) -> np.ndarray:
        return np.nan_to_num(values[rows].astype(np.float32))

    highest = max((float(numbers(rows).max(initial=0.0)) for rows in strips), default=0.0)
    scale = 1.0
    if image.mode.startswith("I;16") or highest > 255:
        scale = 255 / 65535 if highest <= 65535 else 255 / highest
    elif image.mode == "F" and highest <= 1:
        scale = 255.0
    grey = np.empty(values.shape, np.uint8)
    for rows in strips:
        grey[rows] = np.clip(np.rint(numbers(rows) * scale), 0, 255)
    return Image.fromarray(grey)


class ImageFiles:
    """The image files of a data set; each is read once for its hash and its pixels.

    At most `kept_bytes` of files are kept between hashing and decoding; a file beyond that is read again.
    """

    def __init__(self, folder: Path, kept_bytes: int = 256 * 1024 * 1024) -> None:
        self.folder, self._kept_bytes, self._free = folder, kept_bytes, kept_bytes
        self._kept: dict[str, bytes] = {}
        self._hashes: dict[str, tuple[str, str | None]] = {}

    def forget(self) -> None:
        """Drop the bytes of all files, but not their hashes."""
        self._kept.clear()
        self._free = self._kept_bytes

    def hash(self, path: str) -> tuple[str, str | None]:
        """(sha256 of a file, None), or ("", reason) for a file that cannot be read."""
        if path not in self._hashes:
            try:
                data = read_image(self.folder, path)
            except BrokenImage as error:
                self._hashes[path] = "", error.reason
            else:
                self._hashes[path] = hashlib.sha256(data).hexdigest(), None
                if len(data) <= self._free:
                    self._kept[path] = data
                    self._free -= len(data)
        return self._hashes[path]

    def decode(self, path: str, size_hint: int | None = None) -> Image.Image | BrokenImage:
        """The image of a file, as `load_image` reads it."""
        try:
            return decode_image(self._kept.pop(path, b"") or read_image(self.folder, path), size_hint)
        except BrokenImage as error:
            return error

    def decode_all(
        self, paths: Sequence[str], size_hint: int | None = None, workers: int | None = None, ahead: int = 64
    ) -> Iterator[Image.Image | BrokenImage]:
        """Yield the images in order, decoded by threads while the caller works on those already yielded.

        At most `ahead` images wait in memory; with a `size_hint` they are small by then.
        """
        decode = partial(self.decode, size_hint=size_hint)
        return in_threads(decode, paths, workers or max(2, (os.cpu_count() or 1) // 2), ahead)


def in_threads(function: Callable[[A], B], items: Iterable[A], workers: int, ahead: int) -> Iterator[B]:
    """`map(function, items)` in `workers` threads, which run at most `ahead` items ahead of the caller.

    Unlike `Executor.map`, it reads `items` no further than that. An exception of `function` is raised in its turn.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="features") as pool:
        waiting: deque[Future[B]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
