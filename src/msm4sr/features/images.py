"""Pictures from disk, as RGB, with every hazard of a stranger's file turned into one exception.

A path comes from data, so it may not leave the data set's folder; a file may be cut short, no image at all,
or a few kilobytes that unpack to gigabytes. All of these raise `BrokenImage`; extraction counts and lists
them.
"""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

MAX_BYTES = 64 * 1024 * 1024
MAX_PIXELS = 50_000_000
MAX_SIDE = 20_000
# Formats whose decoders are Pillow's own. EPS and the like would start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# EXIF orientation (tag 274) -> what turns the picture upright.
_ORIENTATION_TAG = 274
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BrokenImage(Exception):
    """A picture that cannot be used. `reason` says why, in words for the person who owns the file."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def load_image(folder: Path, relative: str, size_hint: int | None = None) -> Image.Image:
    """The picture at `folder / relative` as RGB, upright, first frame only, transparency on white.

    `size_hint`: the side in pixels that the caller will resize to; a JPEG more than twice as large is then
    decoded at a half, a quarter or an eighth of its size, which is faster and makes no visible difference.
    Default None: full size.

    Raises `BrokenImage`: path outside the folder, no such file, over 64 MiB, over 50 megapixels or 20,000
    pixels a side (both refused by the header, before decoding), not an image, or cut short.
    """
    return decode_image(read_image(folder, relative), size_hint)


def read_image(folder: Path, relative: str) -> bytes:
    """The file's bytes, if it lies inside `folder` after all symbolic links. Raises `BrokenImage`."""
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
    """Bytes of an image file -> RGB picture; see `load_image`."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(*image.size)
            if size_hint is not None:
                image.draft(None, (2 * size_hint, 2 * size_hint))  # no effect on formats other than JPEG
            image.load()
            turn = _UPRIGHT.get(_orientation(image))
            picture = _to_rgb(image)
        return picture if turn is None else picture.transpose(turn)
    except BrokenImage:
        raise
    except UnidentifiedImageError as error:
        raise BrokenImage(f"not an image ({', '.join(FORMATS)} can be read)") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BrokenImage(f"more than {MAX_PIXELS // 10**6} megapixels") from error
    except Exception as error:  # decoders raise whatever they like on a damaged file; none of it may end a run
        raise BrokenImage(f"damaged or cut short ({type(error).__name__})") from error


def _check_size(width: int, height: int) -> None:
    if width > MAX_SIDE or height > MAX_SIDE:
        raise BrokenImage(f"{width} x {height} pixels: a side is over {MAX_SIDE:,}")
    if width * height > MAX_PIXELS:
        raise BrokenImage(f"{width} x {height} pixels: more than {MAX_PIXELS // 10**6} megapixels")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a damaged EXIF block says nothing about the picture itself
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        straight = image.convert("RGBA")
        white = Image.new("RGBA", straight.size, "white")
        return Image.alpha_composite(white, straight).convert("RGB")
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits a pixel: Pillow's own conversion would clip at 255
        grey = np.asarray(image).astype(np.float32)
        top = float(grey.max(initial=0.0))
        if image.mode.startswith("I;16") or top > 255:
            grey *= 255 / 65535 if top <= 65535 else 255 / top
        elif image.mode == "F" and top <= 1:
            grey *= 255
        return Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def image_digest(folder: Path, relative: str) -> tuple[str, str | None]:
    """(sha256 of the file's bytes, None), or ("", reason) for a file that cannot be read at all."""
    try:
        return hashlib.sha256(read_image(folder, relative)).hexdigest(), None
    except BrokenImage as error:
        return "", error.reason


def load_images(
    folder: Path, relatives: Sequence[str], size_hint: int | None = None, workers: int = 2, ahead: int = 64
) -> Iterator[Image.Image | BrokenImage]:
    """The pictures in order, decoded by `workers` threads while the caller works on those already yielded.

    At most `ahead` pictures wait in memory. A picture that cannot be used is yielded as its `BrokenImage`.
    """

    def load(relative: str) -> Image.Image | BrokenImage:
        try:
            return load_image(folder, relative, size_hint)
        except BrokenImage as error:
            return error

    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        waiting: deque[Future[Image.Image | BrokenImage]] = deque()
        try:
            for relative in relatives:
                waiting.append(pool.submit(load, relative))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
