"""CLIP from a model folder named on the command line: small and random here, but every step is the real one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from calling import QUICK, Cli, small_log, write_folder
from PIL import Image
from tiny_models import save_clip

from msm4sr.features.keywords import build_vocabulary
from msm4sr.features.store import find_stores, load_features, read_rows
from msm4sr.features.text import MiniLM

NEAR = 0.01  # of cosines that spread by five times as much (their deviation); bf16 is as near as this


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("models") / "clip")


def direct_scores(clip: Path, paths: Sequence[Path], words: Sequence[str]) -> np.ndarray:
    """cos(CLIP(image), CLIP(word)) [paths, words], by transformers alone, one image and one word at a time."""
    from transformers import AutoImageProcessor, CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(clip).eval()
    tokenizer = CLIPTokenizer.from_pretrained(clip)
    processor = AutoImageProcessor.from_pretrained(clip, backend="pil")
    with torch.inference_mode():
        images = [
            model.visual_projection(
                model.vision_model(**processor(images=Image.open(path).convert("RGB"), return_tensors="pt"))[1]
            )
            for path in paths
        ]
        texts = [model.text_projection(model.text_model(**tokenizer([word], return_tensors="pt"))[1]) for word in words]
    return torch.cosine_similarity(torch.cat(images)[:, None], torch.cat(texts)[None], dim=-1).numpy()


def assert_best(words: Sequence[str], scores: np.ndarray, vocabulary: Sequence[str]) -> None:
    """`words` are those with the best of `scores` [vocabulary], best first."""
    place = {word: row for row, word in enumerate(vocabulary)}
    chosen = scores[[place[word] for word in words]]
    assert len(set(words)) == len(words)
    assert np.all(np.diff(chosen) <= NEAR)
    assert chosen.min() >= np.delete(scores, [place[word] for word in words]).max() - NEAR


def stored(features: Path) -> tuple[np.ndarray, np.ndarray, list[list[list[str]]], dict[str, object]]:
    """Vectors, offsets, words by item and image, and the manifest of keyword features."""
    (folder,) = (store for store in find_stores(features) if store.name.startswith("visual-keywords-"))
    read, rows = load_features(folder), read_rows(folder)
    assert rows is not None
    words = [rows["words"][int(start) : int(end)].to_list() for start, end in pairwise(read.offsets)]
    return read.values, read.offsets, words, json.loads((folder / "manifest.json").read_text())


def test_a_run_with_clip_keeps_the_words_that_clip_itself_ranks_best(
    cli: Cli, shop: Path, clip: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    tagger = ("--set", "features.visual.kind=keywords", "--set", f"features.visual.tagger={clip}")
    called = cli("run", shop, "--out", out, *QUICK, *tagger, "--set", "features.visual.num_keywords=5")
    assert called.code == 0, called
    assert (out / "metrics.json").exists()

    vectors, offsets, words, manifest = stored(out / "features")
    items = pl.read_parquet(shop / "items.parquet")
    lists = ([entry] if isinstance(entry, str) else entry or [] for entry in items["image"].to_list())
    paths = [path for entry in lists for path in entry]
    vocabulary = build_vocabulary(f"{title or ''} {text or ''}" for title, text in items["title", "text"].iter_rows())
    assert manifest["tagger"] == str(clip)
    assert manifest["vocabulary_words"] == vocabulary
    assert len(vocabulary) > 20
    assert manifest["backends"]
    flat = [row for item in words for row in item]
    assert len(flat) == len(vectors) == offsets[-1] == len(paths) > 50
    scores = direct_scores(clip, [shop / path for path in paths], vocabulary)
    assert scores.std(axis=1).min() > 5 * NEAR
    for row, chosen in zip(scores, flat, strict=True):
        assert len(chosen) == 5
        assert_best(chosen, row, vocabulary)
    encoded = MiniLM("minilm").encode([" ".join(row) for row in flat])  # equation 2
    assert (encoded * vectors).sum(axis=1).min() > 0.999


def test_a_vocabulary_file_and_several_images_per_item(
    cli: Cli, refused: Callable[..., str], clip: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    names = []
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (3 + number, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((50, 40)).save(folder / f"{number}.png")
        names.append(f"{number}.png")
    images = [names[:3], None, names[3:4], ["none.png"], names[4:], []]
    write_folder(folder, small_log(), {"item_id": [f"i{item}" for item in range(6)], "image": images})
    words = tmp_path / "words.txt"
    words.write_text("red fox\nzebra\nox\n\nlantern\nkettle\nsand\nzebra\nwave\n")
    vocabulary = ["red fox", "zebra", "ox", "lantern", "kettle", "sand", "wave"]

    def command(out: str, tagger: str | Path) -> list[str | Path]:
        settings = {"kind": "keywords", "tagger": tagger, "vocabulary_file": words, "num_keywords": 3}
        changes = [part for key, value in settings.items() for part in ("--set", f"features.visual.{key}={value}")]
        return ["extract", folder, "--out", tmp_path / out, "--features", tmp_path / "shared", *changes]

    called = cli(*command("first", clip))
    assert called.code == 0, called
    _, offsets, kept, manifest = stored(tmp_path / "shared")
    assert np.diff(offsets).tolist() == [3, 0, 1, 0, 1, 0]
    assert manifest["vocabulary"] == "word file"
    flat = [row for item in kept for row in item]
    scores = direct_scores(clip, [folder / name for name in names], vocabulary)
    for row, chosen in zip(scores, flat, strict=True):
        assert len(chosen) == 3
        assert_best(chosen, row, vocabulary)

    words.write_text("zebra\nox\nkettle\n")  # other words in the same file are noticed
    assert cli(*command("second", clip)).code == 0
    assert {word for item in stored(tmp_path / "shared")[2] for row in item for word in row} == {
        "zebra",
        "ox",
        "kettle",
    }
    assert "vocabulary_file" in refused(*command("third", "offline"))


def test_a_folder_without_a_clip_is_an_error_that_names_it(
    refused: Callable[..., str], shop: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for name in (tmp_path / "empty", tmp_path / "missing"):
        said = refused(
            *("extract", shop, "--out", tmp_path / "run"),
            *("--set", "features.visual.kind=keywords", "--set", f"features.visual.tagger={name}"),
        )
        assert str(name) in said
