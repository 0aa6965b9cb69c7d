"""What counts as an image: content of a supported format and of bounded size, whatever the name of the file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, BinaryIO, cast

from PIL import Image, UnidentifiedImageError

MAX_BYTES = 64 * 1024 * 1024
MAX_PIXELS = 50_000_000
MAX_SIDE = 20_000
# Pillow reads a file part by part (chunks of a PNG, segments of a JPEG), so that one of millions of parts would keep it
# busy for seconds. An image of 50 megapixels has tens of thousands.
MAX_READS = 300_000
# Formats whose decoders are Pillow's own. EPS and the like would start other programs.
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}
FORMATS = tuple(_SUFFIXES)

# A warning of a decoder either comes back as BrokenImage or does not affect the image. Set once for the process, since
# `catch_warnings` is not thread-safe.
warnings.filterwarnings("ignore", module=r"PIL\.")


class BrokenImage(Exception):
    """An image that cannot be used; `reason` says why, for the owner of the file."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _BoundedFile:
    """A file that is read at most `MAX_READS` times."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._reads = file, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        self._reads += 1
        if self._reads > MAX_READS:
            raise BrokenImage(f"more than {MAX_READS:,} reads: too many chunks or segments")
        return self._file.read(size)


def open_image(file: BinaryIO) -> Image.Image:
    """Open an image by its header, without decoding it. Raises BrokenImage if it is none or too large."""
    try:
        image = Image.open(cast(BinaryIO, _BoundedFile(file)), formats=FORMATS)
    except BrokenImage:
        raise
    except UnidentifiedImageError as error:
        raise BrokenImage(f"not an image of a format that can be read ({', '.join(FORMATS)})") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BrokenImage(f"more than {MAX_PIXELS // 10**6} megapixels") from error
    except Exception as error:  # decoders raise all kinds of errors on a damaged file; none may end a run
        raise BrokenImage(f"damaged or cut short ({type(error).__name__})") from error
    width, height = image.size
    if max(width, height) > MAX_SIDE:
        raise BrokenImage(f"{width} x {height} pixels: a side is over {MAX_SIDE:,}")
    if width * height > MAX_PIXELS:
        raise BrokenImage(f"{width} x {height} pixels: more than {MAX_PIXELS // 10**6} megapixels")
    return image


def image_suffix(file: BinaryIO) -> str:
    """The usual suffix of an image's format, such as `.jpg`. Raises BrokenImage."""
    with open_image(file) as image:
        return _SUFFIXES.get(str(image.format), ".jpg")  # MPO: a JPEG of several images


def file_suffix(path: Path) -> str:
    """The usual suffix of the format of an image file. Raises BrokenImage."""
    try:
        with path.open("rb") as file:
            if path.stat().st_size > MAX_BYTES:
                raise BrokenImage(f"file larger than {MAX_BYTES // 2**20} MiB")
            return image_suffix(file)
    except OSError as error:
        raise BrokenImage(f"cannot be read ({type(error).__name__})") from error
