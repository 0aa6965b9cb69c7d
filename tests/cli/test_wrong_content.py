"""Hostile images and texts: none of them ends a run; each that cannot be used is counted and named."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import polars as pl
import pytest
from calling import Cli, small_items, small_log, write_folder
from PIL import Image

POOLED = ("--set", "features.visual.kind=pooled")


def png_of_size(width: int, height: int) -> bytes:
    """A valid one-bit PNG, all black: a few kilobytes, whatever its size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" * (1 + (width + 7) // 8)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(row * height, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.fixture
def hazards(tmp_path: Path) -> Path:
    """A catalogue of seven: one good image, six that cannot be used."""
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    Image.linear_gradient("L").save(data / "images" / "good.png")
    good = (data / "images" / "good.png").read_bytes()
    (data / "images" / "cut.png").write_bytes(good[: len(good) // 2])
    (data / "images" / "text.jpg").write_text("This is not an image.")
    (data / "images" / "wide.png").write_bytes(png_of_size(30_000, 10))
    (data / "images" / "bomb.png").write_bytes(png_of_size(19_000, 19_000))
    (tmp_path / "secret.png").write_bytes(good)
    images = ["images/good.png", "images/cut.png", "images/text.jpg", "images/wide.png", "images/bomb.png"]
    images += ["../secret.png", "../../../../../../../../../../etc/passwd"]
    return write_folder(data, small_log(items=7), small_items(7, title=[f"Toy {i}" for i in range(7)], image=images))


def test_each_image_that_cannot_be_used_is_counted_and_the_first_are_named(
    cli: Cli, hazards: Path, tmp_path: Path
) -> None:
    called = cli("extract", hazards, "--out", tmp_path / "run", *POOLED)
    assert called.code == 0, called
    assert "visual: 1 of 7 items" in called.out
    assert "6 images cannot be used; their items have no vector of them" in called.out
    for said in (
        "images/cut.png of item 'i1': damaged or cut short",
        "images/text.jpg of item 'i2': not an image",
        "images/wide.png of item 'i3': 30000 x 10 pixels: a side is over 20,000",
        "images/bomb.png of item 'i4': more than 50 megapixels",
        "../secret.png of item 'i5': path leaves the data set's folder",
        "and 1 more, listed in",
    ):
        assert said in called.out
    listed = tmp_path / "run" / "features" / "visual-pooled-efficientnet-lite0" / "missing.parquet"
    assert str(listed) in called.out
    assert any("etc/passwd" in image for image in pl.read_parquet(listed)["image"].drop_nulls())


def test_every_stage_reports_them_and_the_model_trains_without_them(cli: Cli, hazards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    called = cli("run", hazards, "--out", run, *POOLED, "--set", "pretrain.epochs=1", "--set", "finetune.epochs=1")
    assert called.code == 0, called
    again = cli("evaluate", run)
    assert "6 images cannot be used" in again.out
    assert "encoding" not in again.out
    html = (run / "report.html").read_text()
    assert "root:" not in html


def test_a_repaired_image_is_read(cli: Cli, hazards: Path, tmp_path: Path) -> None:
    cli("extract", hazards, "--out", tmp_path / "run", *POOLED)
    (hazards / "images" / "cut.png").write_bytes((hazards / "images" / "good.png").read_bytes())
    called = cli("extract", hazards, "--out", tmp_path / "run", *POOLED, "--overwrite")
    assert "visual: 2 of 7 items" in called.out
    assert "5 images cannot be used" in called.out


def test_only_images_that_cannot_be_used_are_as_none(cli: Cli, hazards: Path, tmp_path: Path) -> None:
    (hazards / "images" / "good.png").write_text("gone")
    called = cli(
        "run", hazards, "--out", tmp_path / "run", *POOLED, "--set", "pretrain.epochs=1", "--set", "finetune.epochs=1"
    )
    assert called.code == 0, called
    assert "visual: missing for every item" in called.out
    assert "7 images cannot be used" in called.out


def test_a_text_of_100_000_characters(cli: Cli, tmp_path: Path) -> None:
    texts = ["word " * 20_000, "x" * 100_000, "Short.", "\n\n\t ", "é" * 5_000, None]
    data = write_folder(tmp_path / "data", small_log(), small_items(text=texts))
    run = tmp_path / "run"
    called = cli("run", data, "--out", run, *POOLED, "--set", "pretrain.epochs=1", "--set", "finetune.epochs=1")
    assert called.code == 0, called
    assert "text: 4 of 6 items" in called.out  # white space is no text
    assert "visual: missing for every item" in called.out
