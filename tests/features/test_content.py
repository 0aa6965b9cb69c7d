"""New items are encoded as extraction encoded those of the catalogue."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from msm4sr.data.dataset import Dataset, load_dataset
from msm4sr.data.items import Item
from msm4sr.data.toyshop import generate_toyshop
from msm4sr.errors import InputError
from msm4sr.features.backends import cosines
from msm4sr.features.content import ContentEncoder, keywords_digest
from msm4sr.features.extract import extract_features
from msm4sr.features.settings import FeatureSettings, TextSettings, VisualSettings, store_names
from msm4sr.features.store import Features, read_manifest, read_rows

KINDS = {
    "pooled": VisualSettings(kind="pooled"),
    "labels": VisualSettings(kind="keywords"),
    "learned": VisualSettings(kind="keywords", min_texts=20, num_keywords=5),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("content") / "toyshop"
    generate_toyshop(folder, users=60, items=60)
    return load_dataset(folder)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


def item_of(dataset: Dataset, row: int) -> Item:
    item = Item.from_row(dataset.items, row)
    return replace(item, images=[(dataset.folder / str(path)).read_bytes() for path in item.images])


def rows_of(features: Features, item: int) -> np.ndarray:
    return np.asarray(features[item])


@pytest.mark.parametrize("kind", KINDS)
def test_an_item_of_the_catalogue_gets_the_features_that_it_has(dataset: Dataset, out: Path, kind: str) -> None:
    settings = FeatureSettings(visual=KINDS[kind])
    stored = extract_features(dataset, out / kind, settings)
    encoder = ContentEncoder(out / kind, settings, {name: rows.dim for name, rows in stored.items()})
    items = list(range(12))
    encoded = encoder.encode([item_of(dataset, item) for item in items])
    names = store_names(settings)
    table = read_rows(out / kind / names["visual"])
    assert table is not None
    same = 0
    for item, found in zip(items, encoded, strict=True):
        text, visual = rows_of(stored["text"], item), rows_of(stored["visual"], item)
        assert found.features["text"].shape == text.shape
        assert len(text) == len(found.sentences)
        assert not len(text) or cosines(text, found.features["text"]).min() > 0.99  # bf16 rounding depends on the batch
        assert found.features["visual"].shape == visual.shape
        if kind == "pooled":
            np.testing.assert_allclose(found.features["visual"], visual, atol=1e-3)
        elif len(visual):
            words = table["words"][int(stored["visual"].offsets[item])].to_list()
            same += found.keywords[0] == words
            alike = len(set(found.keywords[0]) & set(words)) / len(words)
            # labels are the network's own; what was learned out of fold differs from what was learned from all
            assert alike == 1 if kind == "labels" else found.keywords[0]
    manifest = read_manifest(out / kind / names["visual"])
    assert manifest is not None
    if kind == "learned":
        assert manifest["tagger"] == "offline"
        vocabulary = set(manifest["vocabulary_words"])
        assert all(set(words) <= vocabulary for found in encoded for words in found.keywords)
    if kind == "labels":
        assert same > 0


def test_an_item_without_content_has_no_rows(out: Path) -> None:
    encoder = ContentEncoder(out, FeatureSettings(visual=KINDS["pooled"]), {"text": 384, "visual": 1280})
    empty, titled = encoder.encode([Item("N-1"), Item("N-2", "A title")])
    assert [rows.shape for rows in empty.features.values()] == [(0, 384), (0, 1280)]
    assert titled.features["text"].shape == (1, 384)
    assert titled.features["visual"].shape == (0, 1280)
    assert encoder.encode([]) == []


def test_an_image_that_cannot_be_used_is_an_error(dataset: Dataset, out: Path) -> None:
    encoder = ContentEncoder(out, FeatureSettings(visual=KINDS["pooled"]), {"text": 384, "visual": 1280})
    good = next(item.images[0] for row in range(60) if (item := item_of(dataset, row)).images)
    message = r"item 'N-1': image 2 cannot be used: not an image of a format that can be read \(JPEG, PNG, WEBP, GIF"
    with pytest.raises(InputError, match=message):
        encoder.encode([Item("N-1", "A title", images=[good, b"no image"])])
    with pytest.raises(InputError, match="image 1 cannot be used: give the bytes of the file"):
        encoder.encode([Item("N-1", images=["images/a.jpg"])])


def test_precomputed_embeddings_are_used_unchanged(out: Path) -> None:
    encoder = ContentEncoder(out, FeatureSettings(text=TextSettings()), {"audio": 3}, precomputed=["audio"])
    (found,) = encoder.encode([Item("N-1", "not read", features={"audio": np.array([1.0, 2.0, 3.0])})])
    np.testing.assert_array_equal(found.features["audio"], [[1, 2, 3]])
    assert found.features["audio"].dtype == np.float32
    assert list(found.sentences) == []


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"sound": np.zeros(3)}, "embeddings for 'sound': the run has precomputed embeddings of: audio"),
        ({"audio": np.zeros(4)}, "embeddings for 'audio': they must be 3-d and finite"),
        ({"audio": np.array([0.0, np.nan, 0.0])}, "3-d and finite"),
    ],
)
def test_embeddings_that_do_not_fit_are_an_error(out: Path, features: dict[str, np.ndarray], message: str) -> None:
    encoder = ContentEncoder(out, FeatureSettings(), {"audio": 3}, precomputed=["audio"])
    with pytest.raises(InputError, match=message):
        encoder.encode([Item("N-1", features=features)])


def test_keywords_of_a_run_whose_features_are_gone_are_an_error(dataset: Dataset, tmp_path: Path) -> None:
    encoder = ContentEncoder(tmp_path, FeatureSettings(visual=KINDS["labels"]), {"visual": 384})
    item = next(item for item in range(60) if item_of(dataset, item).images)
    with pytest.raises(InputError, match="the features that the run was trained on are gone"):
        encoder.encode([item_of(dataset, item)])


@pytest.mark.parametrize(("kind", "changed"), [("labels", "texts"), ("learned", "settings"), ("learned", "items")])
def test_keywords_learned_from_other_items_or_settings_are_an_error(
    dataset: Dataset, tmp_path: Path, kind: str, changed: str
) -> None:
    settings, item = FeatureSettings(visual=KINDS[kind]), item_of(dataset, 0)
    stored = extract_features(dataset, tmp_path, settings)
    dims, before = {name: rows.dim for name, rows in stored.items()}, keywords_digest(tmp_path, settings)
    assert ContentEncoder(tmp_path, settings, dims, keywords_of=before).encode([item])
    others = {
        "texts": dataset.items.with_columns(title=pl.concat_str("title", pl.lit(" kite"))),
        "items": dataset.items.head(40),
    }.get(changed, dataset.items)
    other = replace(dataset, items=others, item_ids=others["item_id"].to_list())
    words = {"num_keywords": 4, "vocabulary_size": 30} if changed == "settings" else {}
    visual = settings.visual.model_copy(update=words)
    extract_features(other, tmp_path, settings.model_copy(update={"visual": visual}))
    with pytest.raises(InputError, match="were replaced by those of other items or settings"):
        ContentEncoder(tmp_path, settings, dims, keywords_of=before).encode([item])
