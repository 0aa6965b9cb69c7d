from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_models import save_clip, save_vit

from msm4sr.errors import InputError
from msm4sr.features import text_space
from msm4sr.features.keywords import (
    ClipTagger,
    ImageTagger,
    LabelTagger,
    TextSpaceTagger,
    build_vocabulary,
    imagenet_labels,
    read_vocabulary,
    scored_words,
)
from msm4sr.features.store import Features
from msm4sr.features.text_space import assign_folds, fit_map, group_near_duplicates, map_images
from msm4sr.features.visual import Clip


def top_words(tagger: ImageTagger, images: np.ndarray, n: int = 15, block: int = 1024) -> list[list[str]]:
    return scored_words(tagger, images, n, block)[0]


class BagOfWords:
    """A sentence encoder with known vectors: the sum of one fixed random direction per word."""

    def encode(self, sentences: Sequence[str]) -> np.ndarray:
        rows = []
        for sentence in sentences:
            words = [np.random.default_rng(zlib.crc32(word.encode())).normal(size=48) for word in sentence.split()]
            rows.append(np.sum(words, axis=0))
        vectors = np.asarray(rows, np.float32).reshape(len(rows), 48)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# --- vocabulary


def test_vocabulary_is_content_words_by_how_many_items_use_them() -> None:
    texts = ["The red Guitar, a guitar!", "red drum 3000 x2", "red guitar's drum of ox", "blue", "and", "the", ""]
    assert build_vocabulary(texts, min_items=2, max_fraction=0.9) == ["red", "drum", "guitar"]
    assert build_vocabulary(texts, min_items=3, max_fraction=0.9) == ["red"]
    assert build_vocabulary(texts, min_items=2, max_fraction=0.3) == ["drum", "guitar"]
    assert build_vocabulary(texts, min_items=1, max_fraction=0.9, size=2) == ["red", "drum"]
    assert build_vocabulary([], 1, 1.0) == []


def test_words_of_other_languages_count_letter_by_letter() -> None:
    assert build_vocabulary(["Größe e\u0301tude", "größe \u00e9tude"], 2, 1.0) == ["größe", "\u00e9tude"]


# --- the offline tagger

KINDS = ["guitar", "kettle", "lantern", "sandal"]


def catalogue(n: int = 400, seed: int = 0) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Images of four kinds, texts that name the kind among other words, and the kind of each item."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, len(KINDS), n)
    centres = rng.normal(size=(len(KINDS), 30))
    pooled = (centres[kinds] + 0.5 * rng.normal(size=(n, 30))).astype(np.float32)
    others = [f"word{letter}" for letter in "abcdefghijklmnop"]
    texts = [" ".join([KINDS[kind], *rng.choice(others, 3)]) for kind in kinds]
    return pooled, texts, kinds


def tags(pooled: np.ndarray, texts: list[str], folds: np.ndarray, vocabulary: list[str], n: int = 3) -> list[list[str]]:
    encoder = BagOfWords()
    mapped, _ = map_images(pooled, encoder.encode(texts), np.ones(len(texts), bool), folds, ridges=(1.0,))
    return top_words(TextSpaceTagger(vocabulary, encoder.encode(vocabulary)), mapped, n)


VOCABULARY = [*KINDS, *(f"word{letter}" for letter in "abcdefghijklmnop")]


def test_the_tagger_finds_what_images_and_texts_share() -> None:
    pooled, texts, kinds = catalogue()
    found = tags(pooled, texts, np.arange(400) % 5, VOCABULARY)
    right = np.mean([words[0] == KINDS[kind] for words, kind in zip(found, kinds, strict=True)])
    assert right > 0.95


def test_without_a_relation_the_tagger_finds_none() -> None:
    pooled, texts, kinds = catalogue()
    shuffled = np.random.default_rng(1).permutation(400)
    found = tags(pooled[shuffled], texts, np.arange(400) % 5, VOCABULARY, n=1)
    right = np.mean([words[0] == KINDS[kind] for words, kind in zip(found, kinds, strict=True)])
    assert right < 0.5


def planted() -> tuple[np.ndarray, list[str]]:
    """The image of item 0 is like no other, and its text has a word of its own."""
    pooled, texts, _ = catalogue()
    pooled = np.concatenate([pooled, np.zeros((400, 1), np.float32)], axis=1)
    pooled[0] = 0
    pooled[0, -1] = 40.0
    texts[0] = "unique"
    return pooled, texts


def test_the_text_of_an_item_never_tags_its_own_image() -> None:
    pooled, texts = planted()
    folds = np.arange(400) % 5
    vocabulary = ["unique", *VOCABULARY]
    # If the same item were in another fold as well, its word would be found: the folds are what prevents it.
    leaked = tags(np.concatenate([pooled, pooled[:1]]), [*texts, "unique"], np.append(folds, folds[0] + 1), vocabulary)
    assert leaked[0][0] == "unique"
    found = tags(pooled, texts, folds, vocabulary, n=len(vocabulary))
    texts[0] = "something else"
    assert tags(pooled, texts, folds, vocabulary, n=len(vocabulary))[0] == found[0]
    assert tags(pooled, texts, folds, vocabulary, n=len(vocabulary))[1:] != found[1:]  # it teaches the others


def test_the_text_of_a_near_duplicate_never_tags_an_image() -> None:
    pooled, texts = planted()
    pooled = np.concatenate([pooled, pooled[:1] * 1.01])
    texts = [*texts, "unique"]
    items = np.arange(401)
    groups = group_near_duplicates([(items, BagOfWords().encode(texts)), (items, pooled)], 401)
    assert groups[0] == groups[400]
    folds = assign_folds(groups)
    vocabulary = ["unique", *VOCABULARY]
    found = tags(pooled, texts, folds, vocabulary, n=len(vocabulary))
    texts[0] = texts[400] = "something else"
    other = tags(pooled, texts, folds, vocabulary, n=len(vocabulary))
    assert (other[0], other[400]) == (found[0], found[400])


def test_items_without_text_are_tagged_but_teach_nothing() -> None:
    pooled, texts, kinds = catalogue()
    encoder = BagOfWords()
    vectors = encoder.encode(texts)
    has_text = np.arange(400) >= 50
    folds = np.arange(400) % 5
    vectors[:50] = 1e6  # must not matter
    mapped, _ = map_images(pooled, vectors, has_text, folds)
    words = top_words(TextSpaceTagger(VOCABULARY, encoder.encode(VOCABULARY)), mapped, 1)
    right = np.mean([words[row][0] == KINDS[kinds[row]] for row in range(50)])
    assert right > 0.9


def test_the_map_is_the_ridge_regression_of_the_other_folds() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 7)) + 3, rng.normal(size=(60, 4)) + 1
    folds = np.arange(60) % 3
    mapped, ridge = map_images(x, y, np.ones(60, bool), folds, ridges=(0.7,))
    assert ridge == 0.7
    for fold in range(3):
        train, rows = folds != fold, folds == fold
        a, b = x[train] - x[train].mean(axis=0), y[train] - y[train].mean(axis=0)
        penalty = 0.7 * (a**2).mean() * len(a) * np.eye(7)
        expected = (x[rows] - x[train].mean(axis=0)) @ np.linalg.solve(a.T @ a + penalty, a.T @ b)
        assert np.allclose(mapped[rows], expected, atol=1e-5)


def test_the_ridge_follows_how_much_the_images_reveal() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 20))
    clear, noise = x @ rng.normal(size=(20, 5)), rng.normal(size=(300, 5))
    folds, all_texts = np.arange(300) % 5, np.ones(300, bool)
    assert map_images(x, clear, all_texts, folds)[1] < 1 < map_images(x, noise, all_texts, folds)[1]


def test_texts_in_one_fold_alone_cannot_be_fitted() -> None:
    with pytest.raises(ValueError, match="one fold"):
        map_images(np.ones((4, 2)), np.ones((4, 2)), np.array([True, True, False, False]), np.array([0, 0, 1, 1]))


def test_the_map_for_new_images_is_fitted_on_all_items() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 7)) + 3, rng.normal(size=(50, 4)) + 1
    ids = [str(item) for item in range(60)]
    images, text = Features(x, np.arange(61), ids), Features(y, np.minimum(np.arange(61), 50), ids)
    fitted = fit_map(images, text, 0.7)
    a, b = x[:50] - x[:50].mean(axis=0), y - y.mean(axis=0)  # ten items have no text
    weights = np.linalg.solve(a.T @ a + 0.7 * (a**2).mean() * 50 * np.eye(7), a.T @ b)
    assert np.allclose(fitted(x), (x - x[:50].mean(axis=0)) @ weights, atol=1e-5)


# --- folds


def test_groups_are_near_duplicates_in_any_view_transitively() -> None:
    images = np.eye(6, dtype=np.float32)
    images[1] = images[0] * 3
    texts = np.eye(6, dtype=np.float32)[:4]
    texts[2] = texts[1]  # views may cover different items: texts of items 0, 1, 2, 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_space, "_TILE", (2, 3))
        groups = group_near_duplicates([(np.arange(6), images), (np.array([0, 1, 2, 5]), texts)], n_items=6)
    assert groups[0] == groups[1] == groups[2]
    assert len(np.unique(groups)) == 4


def test_one_placeholder_image_for_all_items_is_one_group_at_no_cost() -> None:
    items = np.arange(30_000)  # as pairs, 10^9
    groups = group_near_duplicates([(items, np.ones((30_000, 4), np.float32))], 30_000)
    assert len(np.unique(groups)) == 1


def crowd(clusters: int, copies: int, dim: int, seed: int = 0) -> np.ndarray:
    """Near-duplicates (cosine about .98) of random directions around a common one, as embeddings have it; shuffled."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(clusters, dim)) + 0.7
    noise = rng.normal(size=(clusters * copies, dim))
    vectors = np.repeat(centres, copies, axis=0) + 0.15 * noise
    return rng.permutation(vectors).astype(np.float32)


def joined(groups: np.ndarray) -> set[tuple[int, int]]:
    order = np.argsort(groups, kind="stable")
    same = groups[order][1:] == groups[order][:-1]
    return {(int(a), int(b)) for a, b in zip(order[:-1][same], order[1:][same], strict=True)}


def test_groups_are_those_of_each_with_each_whatever_the_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = crowd(150, 3, 24)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    close = (unit @ unit.T >= 0.95).astype(int)
    for _ in range(9):  # transitively, to the 512th degree
        close = ((close @ close) > 0).astype(int)
    monkeypatch.setattr(text_space, "_TILE", (37, 50))
    monkeypatch.setattr(text_space, "_MAX_PAIRS", 20)
    groups = group_near_duplicates([(np.arange(450), vectors)], 450)
    assert np.array_equal(groups[:, None] == groups, close > 0)
    assert len(np.unique(groups)) == 150


def test_beyond_its_size_an_index_finds_the_groups_that_comparison_finds() -> None:
    vectors = crowd(1000, 3, 200)
    items = np.arange(3000)
    exact = joined(group_near_duplicates([(items, vectors)], 3000))
    groups = group_near_duplicates([(items, vectors)], 3000, exact_rows=100)
    assert len(exact) == 2000
    assert len(joined(groups) & exact) >= 0.99 * len(exact)
    assert joined(groups) <= exact
    assert np.array_equal(groups, group_near_duplicates([(items, vectors)], 3000, exact_rows=100))


def test_folds_do_not_split_groups_and_have_equal_sizes() -> None:
    groups = np.repeat(np.arange(70), np.random.default_rng(0).integers(1, 6, 70)) * 3
    folds = assign_folds(groups)
    assert all(len(np.unique(folds[groups == group])) == 1 for group in np.unique(groups))
    sizes = np.bincount(folds)
    assert len(sizes) == 5
    assert sizes.max() - sizes.min() <= 1
    assert np.array_equal(folds, assign_folds(groups))


# --- best words, labels, CLIP


class Fixed:
    """The images are the scores."""

    name, vocabulary = "fixed", ("a", "b", "c")

    def rank(self, images: np.ndarray) -> np.ndarray:
        return images


def test_top_words_come_in_order_of_score_whatever_the_block() -> None:
    scores = np.array([[0.1, 0.9, 0.5], [0.3, 0.3, 0.3], [3.0, 2.0, 1.0]])
    expected = [["b", "c"], ["a", "b"], ["a", "b"]]
    assert top_words(Fixed(), scores, 2) == expected
    assert top_words(Fixed(), scores, 2, block=1) == expected
    assert top_words(Fixed(), scores, 9)[0] == ["b", "c", "a"]


def test_labels_are_ranked_by_logit() -> None:
    weight, bias = np.zeros((1000, 2)), np.zeros(1000)
    weight[3], bias[7] = (1, 0), 0.5
    labels = imagenet_labels()
    tagger = LabelTagger(weight, bias)
    assert top_words(tagger, np.array([[1.0, 9.0], [0.0, 0.0]]), 2) == [[labels[3], labels[7]], [labels[7], labels[0]]]


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


def test_clip_scores_are_cosines_of_the_models_own_projections(
    tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import CLIPModel, CLIPTokenizer

    monkeypatch.setattr("msm4sr.features.backends.native_bf16", lambda device: False)
    clip = Clip(str(tiny_clip), device="cpu")
    clip.batch_words = 2
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(3)]
    vocabulary = ["cat", "zebra", "tree", "ox", "lantern", "a phrase of words " * 20]
    vectors = clip.encode(images)
    assert vectors.shape == (3, clip.dim) == (3, 24)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    tagger = ClipTagger(clip, vocabulary)
    scores = tagger.rank(vectors)
    model = CLIPModel.from_pretrained(tiny_clip).eval()
    tokenizer = CLIPTokenizer.from_pretrained(tiny_clip)
    pixels = clip._processor(images=images, return_tensors="pt")["pixel_values"]
    for column, word in enumerate(vocabulary):  # one word at a time: no padding
        with torch.inference_mode():
            tokens = tokenizer([word], return_tensors="pt", truncation=True, max_length=77)
            output = model(pixel_values=pixels, **tokens)
            cosine = output.logits_per_image[:, 0] / model.logit_scale.exp()
        assert np.allclose(scores[:, column], cosine.numpy(), atol=1e-5), word
    assert top_words(tagger, vectors, 2)[0][0] == vocabulary[int(scores[0].argmax())]


def test_the_words_of_a_vocabulary_are_encoded_once(tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = Clip(str(tiny_clip))
    calls: list[int] = []
    encode = clip.encode_words
    monkeypatch.setattr(clip, "encode_words", lambda words: calls.append(len(words)) or encode(words))
    tagger = ClipTagger(clip, ["cat", "dog", "ox"])
    images = np.eye(24, dtype=np.float32)
    first = scored_words(tagger, images, 2, block=5)
    again = scored_words(tagger, images[:1], 2)
    assert calls == [3]
    assert first[0][0] == again[0][0]
    assert np.allclose(first[1][0], again[1][0])


def test_scores_belong_to_their_words() -> None:
    words, scores = scored_words(Fixed(), np.array([[0.1, 0.9, 0.5]]), 2)
    assert (words, scores.tolist()) == ([["b", "c"]], [[np.float32(0.9), 0.5]])
    assert scored_words(Fixed(), np.zeros((0, 3)), 2)[1].shape == (0, 2)


def test_a_tagger_that_cannot_be_loaded_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in (tmp_path / "empty", tmp_path / "missing", save_vit(tmp_path / "vit")):
        with pytest.raises(InputError, match=str(name)):
            Clip(str(name))


# --- vocabulary files


def test_a_word_file_gives_its_words_and_phrases_in_order(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_bytes("\ufeffzebra\r\n\n  red   fox \ncrème\nzebra\n".encode())
    assert read_vocabulary(tmp_path / "words.txt") == ["zebra", "red fox", "crème"]


@pytest.mark.parametrize(("content", "says"), [(None, "No such file"), (b" \n\n", "no word"), (b"caf\xe9", "UTF-8")])
def test_a_word_file_that_cannot_be_used_is_an_input_error(tmp_path: Path, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_vocabulary(tmp_path / "words.txt")
