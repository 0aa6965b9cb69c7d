"""Damaged files and odd texts: a corpus made here, mutated with seeds. Nothing may crash, hang or go uncounted."""

from __future__ import annotations

import io
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from msm4sr.data.images import BrokenImage
from msm4sr.features.efficientnet import EfficientNetLite0
from msm4sr.features.images import ImageFiles
from msm4sr.features.text import MiniLM, item_sentences
from msm4sr.features.visual import encode_images

MUTANTS_PER_FILE = 30

# Decoders warn, but the result shows what became of the file; outside pytest `images` has the same filter.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")


def photo(width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(width).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def corpus() -> dict[str, bytes]:
    """One small file of every kind that a catalogue may hold."""
    image = photo(60, 40)
    palette = image.quantize(16)
    clear = image.copy()
    clear.putalpha(image.convert("L"))
    deep = Image.fromarray(np.linspace(0, 65535, 2400).astype(np.uint16).reshape(40, 60))
    turned = Image.Exif()
    turned[274] = 6
    frames = {"save_all": True, "append_images": [photo(60, 41).crop((0, 0, 60, 40))]}
    return {
        "plain.jpg": saved(image, "JPEG"),
        "progressive.jpg": saved(image, "JPEG", progressive=True),
        "turned.jpg": saved(image, "JPEG", exif=turned),
        "grey.jpg": saved(image.convert("L"), "JPEG"),
        "cmyk.jpg": saved(image.convert("CMYK"), "JPEG"),
        "plain.png": saved(image, "PNG"),
        "clear.png": saved(clear, "PNG"),
        "palette.png": saved(palette, "PNG", transparency=3),
        "deep.png": saved(deep, "PNG"),
        "bilevel.png": saved(image.convert("1"), "PNG"),
        "pixel.png": saved(photo(1, 1), "PNG"),
        "animated.png": saved(image, "PNG", **frames),
        "plain.gif": saved(palette, "GIF"),
        "animated.gif": saved(palette, "GIF", **frames),
        "plain.webp": saved(image, "WEBP"),
        "clear.webp": saved(clear, "WEBP", lossless=True),
        "animated.webp": saved(image, "WEBP", **frames),
        "plain.bmp": saved(image, "BMP"),
        "palette.bmp": saved(palette, "BMP"),
        "plain.tiff": saved(image, "TIFF"),
        "packed.tiff": saved(image, "TIFF", compression="tiff_lzw"),
        "deep.tiff": saved(deep, "TIFF"),
        "float.tiff": saved(Image.fromarray(np.linspace(-1, 9, 2400, dtype=np.float32).reshape(40, 60)), "TIFF"),
    }


def flip(data: bytearray, others: list[bytes], rng: np.random.Generator) -> bytearray:
    for place in rng.integers(0, 8 * len(data), int(rng.integers(1, 9))):
        data[place // 8] ^= 1 << (place % 8)
    return data


def cut(data: bytearray, others: list[bytes], rng: np.random.Generator) -> bytearray:
    return data[: int(rng.integers(0, len(data)))]


def splice(data: bytearray, others: list[bytes], rng: np.random.Generator) -> bytearray:
    """A piece of another file in the middle, or of this one again."""
    other = [bytes(data), *others][int(rng.integers(0, len(others) + 1))]
    start, place = int(rng.integers(0, len(other))), int(rng.integers(0, len(data)))
    return data[:place] + other[start : start + int(rng.integers(1, 300))] + data[place:]


def extremes(data: bytearray, others: list[bytes], rng: np.random.Generator) -> bytearray:
    """Sizes, counts and offsets are in the first bytes: two or four of them become very large, or zero."""
    width = int(rng.choice([2, 4]))
    place = int(rng.integers(2, min(len(data), 64)))
    data[place : place + width] = [b"\xff" * width, b"\x00" * width, b"\x7f" + b"\xff" * (width - 1)][rng.integers(3)]
    return data


def mend_png(data: bytes) -> bytes:
    """The same chunks with right check sums, so that the decoder behind them is reached."""
    mended, place = bytearray(data[:8]), 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        body = data[place + 4 : place + 8 + length]
        mended += struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        place += 12 + length
    return bytes(mended)


MUTATIONS = (flip, cut, splice, extremes)


@pytest.fixture(scope="module")
def mutants(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder, names = tmp_path_factory.mktemp("mutants"), []
    originals = corpus()
    for row, (name, data) in enumerate(originals.items()):
        for number in range(MUTANTS_PER_FILE):
            rng = np.random.default_rng([row, number])
            mutant = bytes(MUTATIONS[number % 4](bytearray(data), list(originals.values()), rng))
            if name.endswith(".png") and number % 3:
                mutant = mend_png(mutant)
            names.append(f"{number}-{name}")
            (folder / names[-1]).write_bytes(mutant)
    return folder, names


def test_the_corpus_itself_can_be_read(tmp_path: Path) -> None:
    originals = corpus()
    for name, data in originals.items():
        (tmp_path / name).write_bytes(data)
    for name, image in zip(originals, ImageFiles(tmp_path).decode_all(list(originals)), strict=True):
        assert isinstance(image, Image.Image), (name, image)
        assert image.size in {(60, 40), (40, 60), (1, 1)}, name


def test_mutated_files_are_images_or_broken_with_a_reason(
    mutants: tuple[Path, list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    folder, names = mutants
    assert len(names) >= 500
    assert len({(folder / name).read_bytes() for name in names}) > 0.95 * len(names)
    counted: Counter[str] = Counter()
    for name, image in zip(names, ImageFiles(folder).decode_all(names, size_hint=224), strict=True):
        if isinstance(image, BrokenImage):
            counted["broken"] += 1
            assert image.reason, name
        else:
            counted["decoded"] += 1
            assert image.mode == "RGB", name
            assert min(image.size) >= 1, name
    assert sum(counted.values()) == len(names)
    assert min(counted["decoded"], counted["broken"]) > len(names) / 10, counted  # both ends are reached
    said = capfd.readouterr()
    # libtiff itself writes a line on some damage, past Python.
    assert [line for line in (said.out + said.err).splitlines() if not line.startswith("tempfile.tif: ")] == []


def test_what_can_be_decoded_has_a_finite_vector(mutants: tuple[Path, list[str]]) -> None:
    folder, names = mutants
    few = names[::12]
    results = list(encode_images(EfficientNetLite0(device="cpu"), ImageFiles(folder).decode_all(few, size_hint=224)))
    assert len(results) == len(few)
    vectors = [result for result in results if not isinstance(result, BrokenImage)]
    assert len(vectors) > 5
    assert np.isfinite(vectors).all()


@pytest.fixture(scope="module")
def minilm() -> MiniLM:
    return MiniLM("minilm")


odd_texts = st.one_of(
    st.text(st.characters(), max_size=400),  # any code point, surrogates and controls included
    st.text("aA1.!?'\"()[]- \n\t\u200b\u202e\u0301", max_size=600),  # what a sentence splitter reacts to
    st.builds(lambda piece, times: piece * times, st.text(st.characters(), max_size=6), st.integers(0, 3000)),
    st.binary(max_size=300).map(lambda data: data.decode("latin-1")),
)


@given(st.lists(st.tuples(st.none() | odd_texts, st.none() | odd_texts), min_size=4, max_size=4))
def test_odd_texts_have_finite_vectors_or_none(minilm: MiniLM, items: list[tuple[str | None, str | None]]) -> None:
    """Fifty times four items: 200 odd texts and more."""
    sentences = [item_sentences(title, text, max_characters=1000) for title, text in items]
    for (title, text), found in zip(items, sentences, strict=True):
        if not found:  # missing: there was nothing to read
            assert not any(character.isalnum() for character in (text or "")[:1000])
            assert not (title or "")[:1000].isalnum()
    vectors = minilm.encode([sentence for item in sentences for sentence in item])
    assert vectors.shape == (sum(map(len, sentences)), 384)
    assert np.isfinite(vectors).all()
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
