"""The bytes of the smallest images, for tests that need files which are images."""

from __future__ import annotations

import io

from PIL import Image


def tiny_image(color: str = "red", kind: str = "PNG") -> bytes:
    """An image of 8 x 8 pixels in one colour."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(file, kind)
    return file.getvalue()
