from __future__ import annotations

import hashlib
import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msm4sr.data.images import BrokenImage
from msm4sr.features import images
from msm4sr.features.images import ImageFiles, load_image


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png_header_only(width: int, height: int) -> bytes:
    """A PNG that ends after its header: decoding it must fail, reading its size works."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return start + struct.pack(">I", 100) + b"IDAT"


def reason(folder: Path, name: str) -> str:
    with pytest.raises(BrokenImage) as caught:
        load_image(folder, name)
    return caught.value.reason


def test_an_image_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    image = noise(20, 10)
    image.save(tmp_path / "a.png")
    loaded = load_image(tmp_path, "a.png")
    assert loaded.mode == "RGB"
    assert np.array_equal(np.asarray(loaded), np.asarray(image))


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp", "tiff"])
def test_a_file_cut_short_is_broken(tmp_path: Path, suffix: str) -> None:
    buffer = io.BytesIO()
    noise(120, 100).save(buffer, "jpeg" if suffix == "jpg" else suffix)
    (tmp_path / f"a.{suffix}").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 3])
    assert "damaged" in reason(tmp_path, f"a.{suffix}") or "not an image" in reason(tmp_path, f"a.{suffix}")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"%!PS-Adobe-3.0 EPSF-3.0\n", bytes(1000)])
def test_a_file_of_another_kind_is_broken(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    assert "not an image" in reason(tmp_path, "a.jpg")


@pytest.mark.parametrize("size", [(30_000, 2), (2, 30_000)])
def test_a_side_of_30000_pixels_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("1", size).save(tmp_path / "long.png")
    assert "20,000" in reason(tmp_path, "long.png")


@pytest.mark.parametrize("size", [(8_000, 8_000), (19_000, 19_000)])
def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header_only(*size))
    assert "50 megapixels" in reason(tmp_path, "bomb.png")
    (tmp_path / "small.png").write_bytes(png_header_only(80, 80))
    assert "damaged" in reason(tmp_path, "small.png")


def test_a_file_of_too_many_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(20, 10).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    assert "larger than" in reason(tmp_path, "a.png")


def test_a_path_may_not_leave_the_folder(tmp_path: Path) -> None:
    inside = tmp_path / "data"
    (inside / "images").mkdir(parents=True)
    for place in (tmp_path / "secret.png", inside / "images" / "fine.png"):
        noise(4, 4).save(place)
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    (inside / "up").symlink_to(tmp_path)
    (inside / "short.png").symlink_to("images/fine.png")
    for relative in (
        "../secret.png",
        "images/../../secret.png",
        "link.png",
        "up/secret.png",
        str(tmp_path / "secret.png"),
        str(inside / "images" / "fine.png"),
        "../../../../../../../../etc/passwd",
    ):
        assert "leaves" in reason(inside, relative), relative
    assert load_image(inside, "images/fine.png").size == (4, 4)
    assert load_image(inside, "images/../images/fine.png").size == (4, 4)
    assert load_image(inside, "short.png").size == (4, 4)


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    noise(4, 4).save(tmp_path / "real" / "a.png")
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    assert load_image(tmp_path / "alias", "a.png").size == (4, 4)


def test_odd_paths_are_broken_not_a_crash(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for relative in ("", "folder", "none.png", "a\0b.png", "pipe", "loop", "x" * 5000, "\ud800.png"):
        assert reason(tmp_path, relative)


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    rgba = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    rgba.putpixel((0, 0), (255, 0, 0, 255))
    rgba.save(tmp_path / "rgba.png")
    grey = Image.new("LA", (4, 4), (0, 0))
    grey.putpixel((0, 0), (0, 255))
    grey.save(tmp_path / "la.png")
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 255, 9, 9, 9])
    palette.putpixel((0, 0), 0)
    palette.save(tmp_path / "p.png", transparency=1)
    for name, solid in (("rgba.png", (255, 0, 0)), ("la.png", (0, 0, 0)), ("p.png", (0, 0, 255))):
        image = load_image(tmp_path, name)
        assert image.getpixel((0, 0)) == solid, name
        assert image.getpixel((3, 3)) == (255, 255, 255), name


def test_palette_cmyk_and_bilevel_become_rgb(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (0, 128, 255)).quantize(4).save(tmp_path / "p.gif")
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "cmyk.jpg", quality=95)
    Image.new("1", (8, 8), 1).save(tmp_path / "1.png")
    for name, colour in (("p.gif", (0, 128, 255)), ("cmyk.jpg", (0, 255, 255)), ("1.png", (255, 255, 255))):
        image = load_image(tmp_path, name)
        assert image.mode == "RGB"
        assert np.allclose(image.getpixel((4, 4)), colour, atol=6), name  # type: ignore[arg-type]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    Image.fromarray(ramp).save(tmp_path / "a.tiff")
    for name in ("a.png", "a.tiff"):
        loaded = np.asarray(load_image(tmp_path, name))[..., 0].astype(int)
        assert np.abs(loaded - np.round(ramp / 257)).max() <= 1, name


def test_the_first_frame_of_an_animation_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path, "a.gif").getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    from PIL import ImageOps

    image = noise(6, 4)
    exif = Image.Exif()
    exif[274] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as file:
        expected = ImageOps.exif_transpose(file).convert("RGB")
    assert np.array_equal(np.asarray(load_image(tmp_path, "a.png")), np.asarray(expected))
    assert load_image(tmp_path, "a.png").size == ((4, 6) if orientation >= 5 else (6, 4))


def test_a_size_hint_decodes_a_large_jpeg_smaller_but_large_enough(tmp_path: Path) -> None:
    Image.new("RGB", (3000, 2000), "green").save(tmp_path / "a.jpg")
    width, height = load_image(tmp_path, "a.jpg", size_hint=224).size
    assert 448 <= height < 2000
    assert width / height == pytest.approx(1.5, abs=0.01)
    assert load_image(tmp_path, "a.jpg").size == (3000, 2000)


@pytest.mark.parametrize(
    ("name", "mode", "size", "factor"),
    [
        ("rgba.png", "RGBA", (1500, 1100), 2),
        ("p.gif", "P", (1500, 1100), 2),
        ("deep.tiff", "I;16", (1000, 2000), 2),
        ("cmyk.tiff", "CMYK", (1400, 1400), 3),
        ("1.png", "1", (700, 460), 1),
        ("thin.png", "RGB", (3000, 5), 1),
    ],
)
def test_a_size_hint_reduces_other_large_images_too(
    tmp_path: Path, name: str, mode: str, size: tuple[int, int], factor: int
) -> None:
    """By averaging: the image resized to the requested size hardly changes."""
    if mode == "I;16":
        smooth = np.add.outer(np.arange(size[1]), np.arange(size[0])) * 20
        image = Image.fromarray(smooth.astype(np.uint16))
    else:
        image = noise(6, 4).resize(size, Image.Resampling.BICUBIC).convert("RGBA" if mode == "RGBA" else "RGB")
        if mode == "RGBA":
            image.putalpha(image.convert("L"))
        image = image.convert(mode) if mode != "RGBA" else image
    image.save(tmp_path / name)
    small, full = load_image(tmp_path, name, size_hint=224), load_image(tmp_path, name)
    assert full.size == size
    assert small.size == tuple(-(-side // factor) for side in size)
    a, b = (np.asarray(one.resize((224, 224), Image.Resampling.BICUBIC), np.float32) for one in (small, full))
    assert np.abs(a - b).mean() < 2


def test_nan_is_black(tmp_path: Path) -> None:
    Image.fromarray(np.array([[np.nan, 1.0], [np.inf, -np.inf]], np.float32)).save(tmp_path / "a.tiff")
    loaded = np.asarray(load_image(tmp_path, "a.tiff"))[..., 0]
    assert loaded[0, 0] == loaded[1, 1] == 0
    assert loaded[1, 0] == 255


def test_a_jpeg_of_a_million_scans_is_refused_before_decoding(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    noise(64, 64).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    assert 2 <= data.count(b"\xff\xda") <= images.MAX_SCANS
    scan = data[data.rindex(b"\xff\xda") : -2]
    (tmp_path / "a.jpg").write_bytes(data[:-2] + scan * 10_000 + data[-2:])
    assert "scans" in reason(tmp_path, "a.jpg")


def chunk(content: bytes) -> bytes:
    """A chunk of a PNG, from its type and data."""
    return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("PNG", chunk(b"tEXta\0b")),
        ("PNG", chunk(b"abCd")),
        ("JPEG", b"\xff\xfe\0\2"),
        ("JPEG", b"\xff"),
        ("GIF", b"!\xfe\1a\0"),
    ],
    ids=["texts", "unknown chunks", "comments", "fill bytes", "comments of a GIF"],
)
def test_an_image_of_many_parts_is_refused(tmp_path: Path, kind: str, part: bytes) -> None:
    buffer = io.BytesIO()
    noise(20, 10).save(buffer, kind)
    data = buffer.getvalue()
    start = {"PNG": 33, "JPEG": 2, "GIF": 13 + 3 * (2 << (data[10] & 7))}[kind]
    (tmp_path / "few").write_bytes(data[:start] + part * 100 + data[start:])
    assert load_image(tmp_path, "few").size == (20, 10)
    (tmp_path / "many").write_bytes(data[:start] + part * 400_000 + data[start:])
    assert "too many chunks or segments" in reason(tmp_path, "many")


BOMBS = """
import io, sys
from pathlib import Path
from msm4sr.data.images import BrokenImage
from msm4sr.features.images import ImageFiles
folder = Path(sys.argv[1])
files = sorted(path.name for path in folder.iterdir())
for image in ImageFiles(folder).decode_all(files, size_hint=224, workers=4):
    print(image.size if not isinstance(image, BrokenImage) else image.reason)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of memory from /proc")
def test_the_largest_images_do_not_fill_the_memory_and_nothing_is_printed(tmp_path: Path) -> None:
    """Four threads, four images of 49 megapixels and a header that makes Pillow warn: 0.8 GiB decoded at once."""
    size = (7000, 7000)
    Image.new("RGBA", size, (9, 9, 200, 9)).save(tmp_path / "a.png", compress_level=1)
    Image.fromarray(np.zeros(size, np.uint16)).save(tmp_path / "b.png", compress_level=1)
    for copy in ("c.png", "d.png"):
        (tmp_path / copy).write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "e.png").write_bytes(png_header_only(9500, 9500))
    done = subprocess.run([sys.executable, "-c", BOMBS, str(tmp_path)], capture_output=True, text=True, check=True)
    *found, peak = done.stdout.splitlines()
    assert found == ["(467, 467)"] * 4 + ["9500 x 9500 pixels: more than 50 megapixels"]
    assert int(peak) < 600 * 1024  # KiB
    assert done.stderr == ""


def test_many_images_keep_their_order_and_broken_ones_their_place(tmp_path: Path) -> None:
    names = []
    for number in range(40):
        names.append(f"{number}.png")
        Image.new("RGB", (1 + number, 1)).save(tmp_path / names[-1])
    (tmp_path / "7.png").write_bytes(b"junk")
    loaded = list(ImageFiles(tmp_path).decode_all(names, ahead=4))
    assert isinstance(loaded.pop(7), BrokenImage)
    assert [image.width for image in loaded if isinstance(image, Image.Image)] == [
        1 + number for number in range(40) if number != 7
    ]


def test_files_are_read_once_for_hash_and_pixels_while_they_fit_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    read_image = images.read_image
    monkeypatch.setattr(images, "read_image", lambda folder, path: reads.append(path) or read_image(folder, path))
    for name in ("a.png", "b.png"):
        noise(20, 10).save(tmp_path / name)
    data = (tmp_path / "a.png").read_bytes()
    files = ImageFiles(tmp_path, kept_bytes=len(data))
    assert files.hash("a.png") == (hashlib.sha256(data).hexdigest(), None) == files.hash("b.png")
    assert files.hash("none.png") == ("", "no such file")
    assert [image.size for image in files.decode_all(["a.png", "b.png"]) if isinstance(image, Image.Image)] == [
        (20, 10)
    ] * 2
    assert reads == ["a.png", "b.png", "none.png", "b.png"]  # the second did not fit
    files.forget()
    files.hash("a.png")
    assert len(reads) == 4
