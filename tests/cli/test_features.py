"""Features from the command line: precomputed embeddings, strictness, shards, and what the folder holds."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from calling import Cli, Trained, small_items, small_log, write_folder
from PIL import Image

from msm4sr.features.store import FORMAT
from msm4sr.files import write_json

Refused = Callable[..., str]
QUICK = ("--set", "features.visual.kind=pooled", "--set", "pretrain.epochs=1", "--set", "finetune.epochs=1")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six items with ids only."""
    return write_folder(tmp_path / "data", small_log(), small_items())


def vectors(file: Path, n_items: int = 6, dim: int = 3, rows: int = 1) -> Path:
    rng = np.random.default_rng(dim)
    ids = [f"i{item}" for item in range(n_items)]
    pl.DataFrame({"item_id": ids, "vector": rng.random((n_items, rows, dim)).tolist()}).write_parquet(file)
    return file


def test_three_precomputed_modalities_train_without_texts_and_images(cli: Cli, data: Path, tmp_path: Path) -> None:
    options = []
    for dim, name in enumerate(("text", "visual", "audio"), start=3):
        options += ["--features", f"{name}={vectors(tmp_path / f'{name}.parquet', dim=dim, rows=dim - 2)}"]
    called = cli("run", data, "--out", tmp_path / "run", *QUICK, *options)
    assert called.code == 0, called
    for said in (
        "text: 6 of 6 items, 6 vectors",
        "visual: 6 of 6 items, 12 vectors",
        "audio: 6 of 6 items, 18 vectors",
    ):
        assert said in called.out
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["modalities"] == ["text", "visual", "audio"]
    assert (tmp_path / "run" / "metrics.json").exists()
    shown = cli("features", tmp_path / "run")
    assert shown.code == 0, shown
    assert "audio-precomputed" in shown.out
    said = "error: --data, --items and --seed are of the page; give its file with --html"
    assert cli("features", tmp_path / "run", "--items", "3").err == said


def test_later_stages_find_precomputed_embeddings_and_notice_that_they_changed(
    cli: Cli, refused: Refused, data: Path, tmp_path: Path
) -> None:
    audio = vectors(tmp_path / "audio.parquet")
    run = tmp_path / "run"
    called = cli("extract", data, "--out", run, *QUICK, "--features", f"audio={audio}", "--features", tmp_path / "kept")
    assert called.code == 0, called
    assert (tmp_path / "kept" / "audio-precomputed" / "manifest.json").exists()
    stored = yaml.safe_load((run / "config.yaml").read_text())["precomputed"]["audio"]
    assert stored["file"] == str(audio)
    assert len(stored["sha256"]) == 64
    assert cli("pretrain", run).code == 0
    vectors(audio, dim=4)
    message = refused("finetune", run)
    assert f"{audio}: the precomputed embeddings of audio have changed since {run} began" in message
    audio.unlink()
    assert f"{audio}: cannot be read" in refused("finetune", run)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("items={v}",), "'items' is used otherwise; choose another name"),
        (("seen={v}",), "'seen' is used otherwise"),
        (("my audio={v}",), "'my audio' cannot name a modality"),
        (("audio={v}", "audio={v}"), "audio already has a file; give one file per modality"),
        (("one", "two"), "give one folder, not one and two"),
        (("audio=nowhere.parquet",), "nowhere.parquet: cannot be read"),
    ],
)
def test_invalid_features_options(
    refused: Refused, data: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    file = vectors(tmp_path / "v.parquet")
    given = [word for option in options for word in ("--features", option.format(v=file))]
    assert said in refused("run", data, "--out", tmp_path / "run", *QUICK, *given)
    assert not (tmp_path / "run").exists()


def test_an_error_in_a_file_of_embeddings_appears_before_anything_is_encoded(
    refused: Refused, data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "v.parquet"
    pl.DataFrame({"item_id": ["i0", "i1"], "vector": [[1.0, 2.0], [1.0]]}).write_parquet(file)
    message = refused("run", data, "--out", tmp_path / "run", *QUICK, "--features", f"audio={file}")
    assert f"{file}: column 'vector', row 2 (item 'i1'): its length is 1, but that of row 1 is 2" in message
    assert not (tmp_path / "run").exists()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six items with images, one of them cut short."""
    folder = tmp_path / "photos"
    images = [f"{i}.png" for i in range(6)]
    write_folder(folder, small_log(), small_items(image=images, title=[f"Toy {i}" for i in range(6)]))
    for i, name in enumerate(images):
        Image.new("RGB", (32, 32), (40 * i, 10, 10)).save(folder / name)
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:50])
    return folder


def test_strict_names_the_broken_image_and_loses_nothing(
    cli: Cli, refused: Refused, photos: Path, tmp_path: Path
) -> None:
    for command in ("extract", "run", "extract"):
        message = refused(command, photos, "--out", tmp_path / "run", *QUICK, "--strict")
        assert f"{photos}/4.png: image of item 'i4': damaged or cut short" in message
        assert not (tmp_path / "run" / "config.yaml").exists()
    features = tmp_path / "run" / "features"
    assert len(list((features / "visual-pooled-efficientnet-lite0.chunks").glob("*.safetensors"))) == 1
    assert "image of item 'i4'" in refused(
        "extract", photos, "--out", tmp_path / "run", *QUICK, "--strict", "--shard", "1/2"
    )
    called = cli("extract", photos, "--out", tmp_path / "run", *QUICK)
    assert called.code == 0, called
    assert "1 images cannot be used" in called.out
    assert "visual: 5 of 6 items" in called.out
    # what is stored already is checked too
    assert "image of item 'i4'" in refused(
        "extract", photos, "--out", tmp_path / "run", *QUICK, "--strict", "--overwrite"
    )
    Image.new("RGB", (32, 32), "blue").save(photos / "4.png")
    called = cli("extract", photos, "--out", tmp_path / "run", *QUICK, "--strict", "--overwrite")
    assert called.code == 0, called
    assert "1 of 6 items are new or changed" in called.out
    assert "visual: 6 of 6 items" in called.out


def test_shards_are_encoded_and_merged_and_a_missing_one_is_named(
    cli: Cli, refused: Refused, photos: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    called = cli("extract", photos, "--out", run, *QUICK, "--shard", "1/2")
    assert called.code == 0, called
    assert "text-minilm: shard 1/2 is done (6 items)" in called.out
    assert f"next: msm4sr extract {photos} --out {run} --merge" in called.out
    assert not (run / "config.yaml").exists()
    message = refused("extract", photos, "--out", run, *QUICK, "--merge")
    assert "of 2 shards these are missing: 2; `msm4sr extract ... --shard 2/2` makes the first of them" in message
    assert cli("extract", photos, "--out", run, *QUICK, "--shard", "2/2").code == 0
    called = cli("extract", photos, "--out", run, *QUICK, "--merge")
    assert called.code == 0, called
    assert (run / "config.yaml").exists()
    assert "visual: 5 of 6 items" in called.out
    assert "two steps" in refused("extract", photos, "--out", run, *QUICK, "--merge", "--shard", "1/2")
    assert "from 1/16 to 16/16" in refused("extract", photos, "--out", run, *QUICK, "--shard", "3/2")
    given = ["--preset", "seed", "--model", "sasrec", "--seed", "3", "--set", "model.dim=8", "--features", f"{run} b"]
    called = cli("extract", photos, "--out", run / "x", *given, "--strict", "--shard", "1/2")
    assert f"next: msm4sr extract {photos} --out {run}/x --merge {shlex.join(given)} --strict" in called.out


def test_a_merge_without_shards_leaves_nothing(refused: Refused, photos: Path, tmp_path: Path) -> None:
    message = refused("extract", photos, "--out", tmp_path / "run", *QUICK, "--merge")
    assert "there are no shards here; `msm4sr extract ... --shard 1/N` makes one" in message
    assert not (tmp_path / "run").exists()


def test_the_table_describes_the_features_of_a_run(cli: Cli, photos: Path, tmp_path: Path) -> None:
    assert cli("extract", photos, "--out", tmp_path / "run", *QUICK).code == 0
    for where in (tmp_path / "run", tmp_path / "run" / "features"):
        called = cli("features", where)
        assert called.code == 0, called
        for said in (
            "text-minilm",
            "visual-pooled-efficientnet-lite0",
            "sentences",
            "max_sentences 10",
            "6 of 6 have rows",
            "5 of 6 have rows",
            "6, 384-d",
            "5, 1,280-d",
            "1 damaged or cut short",
            "MiB",
        ):
            assert said in called.out, said
        assert "vocabulary" not in called.out  # these features have none
        assert "(efficientnet" not in called.out  # a name is no fingerprint


@pytest.mark.parametrize(
    "change", [{"encoder": {}}, {"encoder": "x"}, {"settings": None}, {"items": "6"}, {"missing": []}]
)
def test_a_damaged_manifest_is_an_error_that_names_the_store(
    cli: Cli, refused: Refused, tmp_path: Path, change: dict[str, object]
) -> None:
    manifest = {
        "format": FORMAT, "modality": "text", "kind": "sentences", "encoder": {"name": "x", "fingerprint": "y"},
        "settings": {}, "items": 6, "items_with_rows": 6, "rows": 6, "dim": 3, "missing": {}, "broken": {},
    }  # fmt: skip
    write_json(tmp_path / "text-minilm" / "manifest.json", manifest)
    assert cli("features", tmp_path).code == 0
    write_json(tmp_path / "text-minilm" / "manifest.json", manifest | change)
    message = refused("features", tmp_path)
    assert f"{tmp_path / 'text-minilm'}: damaged features (" in message
    assert "delete the folder and extract again" in message


def test_the_page_shows_images_keywords_with_scores_and_sentences(
    cli: Cli, trained: Trained, shop: Path, features: Path, tmp_path: Path
) -> None:
    called = cli("features", trained.folder, "--html", tmp_path / "page.html", "--items", "10")
    assert called.code == 0, called
    assert "imagenet labels" in called.out
    page = (tmp_path / "page.html").read_text()
    assert page.count('<section class="sample">') == 10
    assert "data:image/jpeg;base64" in page
    assert len(re.findall(r'<ol class="keyword-scores">', page)) >= 9
    assert len(re.findall(r'<span class="number">-?\d+\.\d\d</span>', page)) == 15 * page.count(
        '<ol class="keyword-scores">'
    )
    assert page.count('<ol class="sentences">') >= 9
    assert "whether the keywords describe the images" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    again = cli("features", features, "--html", tmp_path / "again.html", "--items", "10", "--data", shop)
    assert again.code == 0, again
    other = cli("features", trained.folder, "--html", tmp_path / "other.html", "--items", "10", "--seed", "1")
    assert other.code == 0, other
    assert page == (tmp_path / "again.html").read_text() != (tmp_path / "other.html").read_text()


def test_broken_images_and_markup_in_titles_on_the_page(cli: Cli, photos: Path, tmp_path: Path) -> None:
    items = pl.read_parquet(photos / "items.parquet").with_columns(title=pl.lit("<b>Toy</b> & co"))
    items.write_parquet(photos / "items.parquet")
    assert cli("extract", photos, "--out", tmp_path / "run", *QUICK).code == 0
    assert cli("features", tmp_path / "run", "--html", tmp_path / "page.html").code == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count('<section class="sample">') == 6
    assert "&lt;b&gt;Toy&lt;/b&gt; &amp; co" in page
    assert "4.png: damaged or cut short" in page
    assert "keywords describe" not in page


def test_missing_features_are_an_error(
    refused: Refused, photos: Path, trained: Trained, features: Path, tmp_path: Path
) -> None:
    assert "no extracted features; create them with `msm4sr extract DATA --out RUN`" in refused("features", tmp_path)
    assert "give its folder with --data" in refused("features", features, "--html", tmp_path / "page.html")
    other = refused("features", features, "--html", tmp_path / "page.html", "--data", photos)
    assert f"{photos}: none of its items has features" in other
