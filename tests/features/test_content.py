"""New items are encoded as extraction encoded those of the catalogue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from msm4sr.data.dataset import Dataset, load_dataset
from msm4sr.data.toyshop import generate_toyshop
from msm4sr.errors import InputError
from msm4sr.features.backends import cosines
from msm4sr.features.content import Content, ContentEncoder
from msm4sr.features.extract import FeatureSettings, TextSettings, VisualSettings, extract_features, store_names
from msm4sr.features.store import Features, read_manifest, read_rows

WAYS = {
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


def content_of(dataset: Dataset, item: int) -> Content:
    title, text, images = dataset.items.select("title", "text", "image").row(item)
    return Content(title, text, [(dataset.folder / path).read_bytes() for path in images or ()])


def rows_of(features: Features, item: int) -> np.ndarray:
    return np.asarray(features.vectors[features.offsets[item] : features.offsets[item + 1]])


@pytest.mark.parametrize("way", WAYS)
def test_an_item_of_the_catalogue_gets_the_features_that_it_has(dataset: Dataset, out: Path, way: str) -> None:
    settings = FeatureSettings(visual=WAYS[way])
    stored = extract_features(dataset, out / way, settings)
    encoder = ContentEncoder(out / way, settings, {name: rows.vectors.shape[1] for name, rows in stored.items()})
    items = list(range(12))
    encoded = encoder.encode([content_of(dataset, item) for item in items])
    names = store_names(settings)
    table = read_rows(out / way / names["visual"])
    assert table is not None
    same = 0
    for item, found in zip(items, encoded, strict=True):
        text, visual = rows_of(stored["text"], item), rows_of(stored["visual"], item)
        assert found.rows["text"].shape == text.shape
        assert len(text) == len(found.sentences)
        assert not len(text) or cosines(text, found.rows["text"]).min() > 0.99  # bf16 rounds by a batch's company
        assert found.rows["visual"].shape == visual.shape
        if way == "pooled":
            np.testing.assert_allclose(found.rows["visual"], visual, atol=1e-3)
        elif len(visual):
            words = table["words"][int(stored["visual"].offsets[item])].to_list()
            same += found.keywords[0] == words
            alike = len(set(found.keywords[0]) & set(words)) / len(words)
            # labels are the network's own; what was learned out of fold differs from what was learned from all
            assert alike == 1 if way == "labels" else found.keywords[0]
    manifest = read_manifest(out / way / names["visual"])
    assert manifest is not None
    if way == "learned":
        assert manifest["tagger"] == "offline"
        vocabulary = set(manifest["vocabulary_words"])
        assert all(set(picture) <= vocabulary for found in encoded for picture in found.keywords)
    if way == "labels":
        assert same > 0


def test_what_cannot_be_used_is_told_and_what_is_lacking_has_no_row(out: Path) -> None:
    encoder = ContentEncoder(out, FeatureSettings(visual=WAYS["pooled"]), {"text": 384, "visual": 1280})
    empty, broken = encoder.encode([Content(), Content("A title", pictures=[b"no picture"])])
    assert [rows.shape for rows in empty.rows.values()] == [(0, 384), (0, 1280)]
    assert broken.rows["text"].shape == (1, 384)
    assert broken.rows["visual"].shape == (0, 1280)
    assert broken.broken == {0: "not an image (JPEG, PNG, WEBP, GIF, BMP, TIFF can be read)"}


def test_vectors_of_ones_own_are_taken_as_they_are(out: Path) -> None:
    encoder = ContentEncoder(out, FeatureSettings(text=TextSettings()), {"audio": 3}, own=["audio"])
    (found,) = encoder.encode([Content("not read", vectors={"audio": np.array([1.0, 2.0, 3.0])})])
    np.testing.assert_array_equal(found.rows["audio"], [[1, 2, 3]])
    assert found.sentences == []


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ({"sound": np.zeros(3)}, "vectors for 'sound': the run takes vectors of these modalities: audio"),
        ({"audio": np.zeros(4)}, "vectors for 'audio': they should be 3 finite numbers a row"),
        ({"audio": np.array([0.0, np.nan, 0.0])}, "3 finite numbers"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(out: Path, vectors: dict[str, np.ndarray], message: str) -> None:
    encoder = ContentEncoder(out, FeatureSettings(), {"audio": 3}, own=["audio"])
    with pytest.raises(InputError, match=message):
        encoder.encode([Content(vectors=vectors)])


def test_keywords_of_a_run_whose_features_are_gone_are_told(dataset: Dataset, tmp_path: Path) -> None:
    encoder = ContentEncoder(tmp_path, FeatureSettings(visual=WAYS["labels"]), {"visual": 384})
    item = next(item for item in range(60) if content_of(dataset, item).pictures)
    with pytest.raises(InputError, match="the features that the run was trained on are gone"):
        encoder.encode([content_of(dataset, item)])
