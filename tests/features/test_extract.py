from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import pairwise
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from pydantic import ValidationError

from msm4sr.data.dataset import Dataset, load_dataset
from msm4sr.features.backends import agrees
from msm4sr.features.extract import Extraction, extract_features
from msm4sr.features.images import read_image
from msm4sr.features.settings import FeatureSettings, TextSettings, VisualSettings
from msm4sr.features.store import Features, load_features, read_manifest, read_missing, read_rows
from msm4sr.features.text_space import map_to_text_space

Row = tuple[str, str | None, str | None, list[str] | None]


@pytest.fixture
def make(tmp_path: Path) -> Callable[[list[Row]], Dataset]:
    """A prepared folder with these items (item_id, title, text, image), read back."""

    def build(rows: list[Row]) -> Dataset:
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        schema = {"item_id": pl.String, "title": pl.String, "text": pl.String, "image": pl.List(pl.String)}
        pl.DataFrame(rows, schema=schema, orient="row").write_parquet(folder / "items.parquet")
        log = [("u", rows[0][0], position) for position in range(3)]
        schema = {"user_id": pl.String, "item_id": pl.String, "position": pl.Int32}
        pl.DataFrame(log, schema=schema, orient="row").write_parquet(folder / "interactions.parquet")
        return load_dataset(folder)

    return build


def draw(folder: Path, name: str, colour: str, seed: int = 0) -> str:
    image = Image.new("RGB", (64, 64), colour)
    for row in range(8):
        image.putpixel((row, seed % 64), (seed % 256, 0, 0))
    image.save(folder / name)
    return name


TEXT, IMAGES, KEYWORDS = "text-minilm", "visual-pooled-efficientnet-lite0", "visual-keywords-offline-minilm"
POOLED = FeatureSettings.model_validate({"visual": {"kind": "pooled"}})
Shop = tuple[Dataset, Path]


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "msm4sr")
    return caplog


@pytest.fixture
def shop(make: Callable[[list[Row]], Dataset], tmp_path: Path) -> Shop:
    folder = tmp_path / "data"
    folder.mkdir()
    red, blue = draw(folder, "red.png", "red"), draw(folder, "blue.png", "blue")
    (folder / "cut.png").write_bytes((folder / "red.png").read_bytes()[:60])
    (tmp_path / "secret.png").write_bytes((folder / "red.png").read_bytes())
    dataset = make(
        [
            ("both", "A red thing", "It is red. It is square.", [red, blue]),
            ("text only", None, "It is red. It is square.", None),
            ("image only", None, None, [blue]),
            ("broken", "Broken", " ", ["cut.png", "../secret.png", "none.png", red]),
            ("nothing", "", None, []),
        ]
    )
    return dataset, tmp_path / "features"


def rows(features: Features, item: int) -> np.ndarray:
    return features[item]


def words_of(folder: Path, visual: Features) -> list[list[list[str]]]:
    """The keywords of each image of each item."""
    table = read_rows(folder)
    assert table is not None
    words = table["words"].to_list()
    return [words[start:end] for start, end in pairwise(visual.offsets.tolist())]


def test_rows_belong_to_their_items_and_missing_content_has_none(shop: Shop) -> None:
    dataset, out = shop
    features = extract_features(dataset, out, POOLED)
    text, visual = features["text"], features["visual"]
    assert text.item_ids == visual.item_ids == dataset.item_ids
    assert np.diff(text.offsets).tolist() == [3, 2, 0, 1, 0]
    assert np.diff(visual.offsets).tolist() == [2, 0, 1, 1, 0]
    assert text.dim == 384
    assert visual.dim == 1280
    assert np.array_equal(rows(text, 0)[1:], rows(text, 1))
    assert np.array_equal(rows(visual, 0)[1:], rows(visual, 2))
    assert np.array_equal(rows(visual, 0)[:1], rows(visual, 3))
    assert not np.any(np.all(text.values == 0, axis=1))


def test_images_that_cannot_be_used_are_listed_with_reasons(shop: Shop, log: pytest.LogCaptureFixture) -> None:
    dataset, out = shop
    extract_features(dataset, out, POOLED)
    broken = read_missing(out / IMAGES).filter(pl.col("image").is_not_null())
    listed = {(item, image): reason for item, image, reason in broken.select("item_id", "image", "reason").rows()}
    assert list(listed) == [("broken", "cut.png"), ("broken", "../secret.png"), ("broken", "none.png")]
    assert "leaves" in listed["broken", "../secret.png"]
    assert "no such file" in listed["broken", "none.png"]
    assert "3 images cannot be used" in log.text
    manifest = read_manifest(out / IMAGES)
    assert manifest is not None
    assert sum(manifest["broken"].values()) == 3


def test_items_without_text_or_image_are_listed_with_reasons(shop: Shop) -> None:
    dataset, out = shop
    extract_features(dataset, out, POOLED)
    for folder, names in ((TEXT, ["image only", "nothing"]), (IMAGES, ["text only", "nothing"])):
        missing = read_missing(out / folder).filter(pl.col("image").is_null())
        assert missing["item_id"].to_list() == names
        assert missing["item"].to_list() == [dataset.item_ids.index(name) for name in names]
        manifest = read_manifest(out / folder)
        assert manifest is not None
        assert list(manifest["missing"].values()) == [2]


def test_a_row_names_its_image(shop: Shop) -> None:
    dataset, out = shop
    extract_features(dataset, out, POOLED)
    table = read_rows(out / IMAGES)
    assert table is not None
    assert table["image"].to_list() == ["red.png", "blue.png", "blue.png", "red.png"]


def test_keywords_of_a_small_catalogue_are_labels_through_the_text_encoder(shop: Shop) -> None:
    from msm4sr.features.keywords import imagenet_labels
    from msm4sr.features.text import MiniLM

    dataset, out = shop
    visual = extract_features(dataset, out, FeatureSettings())["visual"]
    assert np.diff(visual.offsets).tolist() == [2, 0, 1, 1, 0]
    words = words_of(out / KEYWORDS, visual)
    assert [len(images) for images in words] == [2, 0, 1, 1, 0]
    assert all(len(keywords) == 15 and set(keywords) <= set(imagenet_labels()) for keywords in words[0])
    assert words[0][1] == words[2][0] != words[0][0]
    encoded = MiniLM("minilm").encode([" ".join(words[0][0])])
    assert agrees(rows(visual, 0)[:1], encoded)  # in bf16 the digits depend on the size of the batch
    table = read_rows(out / KEYWORDS)
    assert table is not None
    assert table["image"].to_list() == ["red.png", "blue.png", "blue.png", "red.png"]
    assert all(scores == sorted(scores, reverse=True) and len(scores) == 15 for scores in table["scores"].to_list())
    manifest = read_manifest(out / KEYWORDS)
    assert manifest is not None
    assert (manifest["tagger"], manifest["vocabulary"]) == ("imagenet labels", "imagenet labels")
    assert set(words[0][0]) <= set(manifest["vocabulary_words"])
    assert sum(manifest["broken"].values()) == 3


def test_enough_texts_teach_the_words_of_the_catalogue(make: Callable[[list[Row]], Dataset], tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    kinds = {"red": "tomato ketchup", "blue": "ocean wave"}
    items: list[Row] = []
    for number in range(60):
        colour = ("red", "blue")[number % 2]
        image = draw(folder, f"{number}.png", colour, seed=number * 4)
        # No two texts alike: near-duplicates would all share one fold.
        text = f"{kinds[colour]} {' '.join(str(k * number) for k in range(2, 12))}"
        items.append((str(number), None, text if number < 50 else None, [image]))
    settings = FeatureSettings.model_validate(
        {"visual": {"min_texts": 10, "num_keywords": 2, "vocabulary_max_fraction": 0.9}}
    )
    # All reds look alike: with the usual grouping each colour would be a single group.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("msm4sr.features.text_space.group_near_duplicates", lambda views, n_items: np.arange(n_items))
        visual = extract_features(make(items), tmp_path / "features", settings)["visual"]
    out = tmp_path / "features"
    for number, words in enumerate(words_of(out / KEYWORDS, visual)):
        assert set(words[0]) == set(kinds[("red", "blue")[number % 2]].split()), number
    manifest = read_manifest(out / KEYWORDS)
    assert manifest is not None
    assert (manifest["tagger"], manifest["fitted_on_items"]) == ("offline", 50)
    assert load_features(out / "words-minilm").item_ids == manifest["vocabulary_words"]


def test_when_an_image_changes_only_new_keyword_lists_are_encoded(shop: Shop, log: pytest.LogCaptureFixture) -> None:
    dataset, out = shop
    before = extract_features(dataset, out, FeatureSettings())["visual"]
    words = words_of(out / KEYWORDS, before)
    log.clear()
    draw(dataset.folder, "blue.png", "green")
    after = extract_features(dataset, out, FeatureSettings())["visual"]
    assert f"{KEYWORDS}: 2 of 5 items are new or changed" in log.text
    again = words_of(out / KEYWORDS, after)
    assert again[0][0] == words[0][0]
    assert again[3] == words[3]
    assert again[0][1] == again[2][0] != words[2][0]
    assert np.array_equal(rows(before, 3), rows(after, 3))
    assert not np.array_equal(rows(before, 2), rows(after, 2))
    table = read_rows(out / KEYWORDS)
    assert table is not None
    assert table["image"].to_list() == ["red.png", "blue.png", "blue.png", "red.png"]
    assert len(read_missing(out / KEYWORDS)) == 5


def test_unchanged_features_need_no_model(
    shop: Shop, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, out = shop
    first = extract_features(dataset, out, FeatureSettings())
    log.clear()

    def no_model(*args: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("msm4sr.features.text.TransformerSentenceEncoder.__init__", no_model)
    monkeypatch.setattr("msm4sr.features.efficientnet.EfficientNetLite0.__init__", no_model)
    second = extract_features(dataset, out, FeatureSettings())
    for name in ("text", "visual"):
        assert np.array_equal(first[name].values, second[name].values)
    assert all("cannot be used" in message or message.startswith("  ") for message in log.messages)


def test_what_changed_is_encoded_again_and_logged(shop: Shop, log: pytest.LogCaptureFixture) -> None:
    dataset, out = shop
    before = extract_features(dataset, out, POOLED)
    log.clear()

    draw(dataset.folder, "blue.png", "green")
    after = extract_features(dataset, out, POOLED)
    said = "\n".join(log.messages)
    assert f"{IMAGES}: 2 of 5 items are new or changed" in said
    assert "text" not in said
    assert not np.array_equal(rows(before["visual"], 2), rows(after["visual"], 2))
    assert np.array_equal(rows(before["visual"], 3), rows(after["visual"], 3))

    one = FeatureSettings.model_validate({"text": {"max_sentences": 1}, "visual": {"kind": "pooled"}})
    assert np.diff(extract_features(dataset, out, one)["text"].offsets).tolist() == [1, 1, 0, 1, 0]
    assert "settings changed since this was extracted" in log.text

    path = out / TEXT / "manifest.json"
    path.write_text("{")
    extract_features(dataset, out, one)
    assert "extracting again" in log.text
    assert read_manifest(out / TEXT) is not None


def test_a_store_of_an_older_format_is_extracted_again(shop: Shop, log: pytest.LogCaptureFixture) -> None:
    dataset, out = shop
    (out / TEXT).mkdir(parents=True)
    (out / TEXT / "manifest.json").write_text('{"format": 1}')
    assert extract_features(dataset, out, POOLED)["text"].n_rows == 6
    assert f"{out / TEXT}/manifest.json: format 1, but this version reads 4; delete {out / TEXT}" in log.text


def test_a_catalogue_without_any_content_gives_no_rows(make: Callable[[list[Row]], Dataset], tmp_path: Path) -> None:
    dataset = make([("a", None, None, None), ("b", None, None, None)])
    for settings in (FeatureSettings(), POOLED):
        for features in extract_features(dataset, tmp_path / "features", settings).values():
            assert features.n_rows == 0
            assert features.offsets.tolist() == [0, 0, 0]


def test_a_worker_is_sent_no_histories(tmp_path: Path) -> None:
    sizes = []
    for users in (10, 1_000):
        folder = tmp_path / str(users)
        folder.mkdir()
        log = [{"user_id": user, "item_id": item, "timestamp": item} for user in range(users) for item in range(5)]
        pl.DataFrame(log).write_parquet(folder / "interactions.parquet")
        sizes.append(len(ForkingPickler.dumps(Extraction(load_dataset(folder), tmp_path / "features"))))
    assert sizes[1] - sizes[0] < 100


def test_an_unknown_setting_is_an_error() -> None:
    for wrong in (
        {"txt": {}},
        {"text": {"encodr": "x"}},
        {"visual": {"kind": "clip"}},
        {"visual": {"num_keywords": 0}},
    ):
        with pytest.raises(ValidationError):
            FeatureSettings.model_validate(wrong)


def test_every_setting_has_a_description() -> None:
    for model in (FeatureSettings, TextSettings, VisualSettings):
        for name, field in model.model_fields.items():
            assert (field.description or "").endswith("."), name


def test_one_placeholder_image_everywhere_leaves_the_labels_of_imagenet() -> None:
    """All items are near-duplicates then: nothing can be learned out of fold."""
    images = Features(np.ones((4, 3), np.float32), np.arange(5), list("abcd"))
    text = Features(np.eye(4, dtype=np.float32), np.arange(5), list("abcd"))
    assert map_to_text_space(images, text) is None


def test_an_image_file_is_read_once_for_its_hash_and_its_pixels(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, out = shop
    reads: list[str] = []

    def counted(folder: Path, path: str) -> bytes:
        reads.append(path)
        return read_image(folder, path)

    monkeypatch.setattr("msm4sr.features.images.read_image", counted)
    files = ["red.png", "blue.png", "cut.png", "../secret.png", "none.png"]
    for change in (lambda: None, lambda: None, lambda: draw(dataset.folder, "blue.png", "green")):
        change()
        reads.clear()
        extract_features(dataset, out, POOLED)
        assert sorted(reads) == sorted(files)
