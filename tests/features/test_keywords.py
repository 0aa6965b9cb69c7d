from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msm4sr.errors import InputError
from msm4sr.features.keywords import (
    ClipTagger,
    LabelTagger,
    TextSpaceTagger,
    assign_folds,
    best_words,
    build_vocabulary,
    group_near_duplicates,
    imagenet_labels,
    map_pictures,
)


class BagOfWords:
    """A sentence encoder whose vectors are known: the sum of one fixed random direction a word."""

    name = fingerprint = "bag of words"
    dim = 48

    def encode(self, sentences: Sequence[str], advance: Callable[[int], None] | None = None) -> np.ndarray:
        rows = []
        for sentence in sentences:
            words = [np.random.default_rng(zlib.crc32(word.encode())).normal(size=48) for word in sentence.split()]
            rows.append(np.sum(words, axis=0))
        vectors = np.asarray(rows, np.float32).reshape(len(rows), 48)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# --- vocabulary


def test_vocabulary_is_content_words_by_how_many_items_use_them() -> None:
    texts = [
        "The red Guitar, a guitar!",
        "red drum 3000 x2",
        "red guitar's drum of ox",
        "blue",
        "and",
        "the",
        "",
    ]
    assert build_vocabulary(texts, min_items=2, max_share=0.9) == ["red", "drum", "guitar"]
    assert build_vocabulary(texts, min_items=3, max_share=0.9) == ["red"]
    assert build_vocabulary(texts, min_items=2, max_share=0.3) == ["drum", "guitar"]
    assert build_vocabulary(texts, min_items=1, max_share=0.9, size=2) == ["red", "drum"]
    assert build_vocabulary([], 1, 1.0) == []


def test_words_of_other_languages_count_letter_by_letter() -> None:
    assert build_vocabulary(["Größe e\u0301tude", "größe \u00e9tude"], 2, 1.0) == ["größe", "\u00e9tude"]


# --- the offline tagger

KINDS = ["guitar", "kettle", "lantern", "sandal"]


def catalogue(n: int = 400, seed: int = 0) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Pictures of four kinds, texts that name the kind among other words, and each item's kind."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, len(KINDS), n)
    looks = rng.normal(size=(len(KINDS), 30))
    pooled = (looks[kinds] + 0.5 * rng.normal(size=(n, 30))).astype(np.float32)
    others = [f"word{letter}" for letter in "abcdefghijklmnop"]
    texts = [" ".join([KINDS[kind], *rng.choice(others, 3)]) for kind in kinds]
    return pooled, texts, kinds


def tags(pooled: np.ndarray, texts: list[str], folds: np.ndarray, vocabulary: list[str], n: int = 3) -> list[list[str]]:
    encoder = BagOfWords()
    mapped, _ = map_pictures(pooled, encoder.encode(texts), np.ones(len(texts), bool), folds, ridges=(1.0,))
    return best_words(TextSpaceTagger(encoder), mapped, vocabulary, n)


VOCABULARY = [*KINDS, *(f"word{letter}" for letter in "abcdefghijklmnop")]


def test_the_tagger_finds_what_pictures_and_texts_share() -> None:
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
    """Item 0 looks like nothing else, and its text holds a word that no other has."""
    pooled, texts, _ = catalogue()
    pooled = np.concatenate([pooled, np.zeros((400, 1), np.float32)], axis=1)
    pooled[0] = 0
    pooled[0, -1] = 40.0
    texts[0] = "unique"
    return pooled, texts


def test_an_items_own_text_never_tags_its_picture() -> None:
    pooled, texts = planted()
    folds = np.arange(400) % 5
    vocabulary = ["unique", *VOCABULARY]
    # If the same item also stood in another fold, its word would be found: the property is the folds' doing.
    leaked = tags(np.concatenate([pooled, pooled[:1]]), [*texts, "unique"], np.append(folds, folds[0] + 1), vocabulary)
    assert leaked[0][0] == "unique"
    found = tags(pooled, texts, folds, vocabulary, n=len(vocabulary))
    texts[0] = "something else"
    assert tags(pooled, texts, folds, vocabulary, n=len(vocabulary))[0] == found[0]
    assert tags(pooled, texts, folds, vocabulary, n=len(vocabulary))[1:] != found[1:]  # it teaches the others


def test_a_near_duplicates_text_never_tags_a_picture() -> None:
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
    mapped, _ = map_pictures(pooled, vectors, has_text, folds)
    words = best_words(TextSpaceTagger(encoder), mapped, VOCABULARY, 1)
    right = np.mean([words[row][0] == KINDS[kinds[row]] for row in range(50)])
    assert right > 0.9


def test_the_map_is_the_ridge_regression_of_the_other_folds() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 7)) + 3, rng.normal(size=(60, 4)) + 1
    folds = np.arange(60) % 3
    mapped, ridge = map_pictures(x, y, np.ones(60, bool), folds, ridges=(0.7,))
    assert ridge == 0.7
    for fold in range(3):
        train, rows = folds != fold, folds == fold
        a, b = x[train] - x[train].mean(axis=0), y[train] - y[train].mean(axis=0)
        penalty = 0.7 * (a**2).mean() * len(a) * np.eye(7)
        expected = (x[rows] - x[train].mean(axis=0)) @ np.linalg.solve(a.T @ a + penalty, a.T @ b)
        assert np.allclose(mapped[rows], expected, atol=1e-5)


def test_the_ridge_follows_how_much_the_pictures_say() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 20))
    clear, noise = x @ rng.normal(size=(20, 5)), rng.normal(size=(300, 5))
    folds, all_texts = np.arange(300) % 5, np.ones(300, bool)
    assert map_pictures(x, clear, all_texts, folds)[1] < 1 < map_pictures(x, noise, all_texts, folds)[1]


def test_texts_in_one_fold_alone_cannot_be_fitted() -> None:
    with pytest.raises(ValueError, match="one fold"):
        map_pictures(np.ones((4, 2)), np.ones((4, 2)), np.array([True, True, False, False]), np.array([0, 0, 1, 1]))


# --- folds


def test_groups_follow_likeness_in_any_view_and_friends_of_friends() -> None:
    pictures = np.eye(6, dtype=np.float32)
    pictures[1] = pictures[0] * 3
    texts = np.eye(6, dtype=np.float32)[:4]
    texts[2] = texts[1]  # views may cover different items: texts of items 0, 1, 2, 5
    groups = group_near_duplicates([(np.arange(6), pictures), (np.array([0, 1, 2, 5]), texts)], n_items=6, block=2)
    assert groups[0] == groups[1] == groups[2]
    assert len(np.unique(groups)) == 4


def test_one_placeholder_picture_for_a_whole_catalogue_is_one_group_at_no_cost() -> None:
    items = np.arange(30_000)  # as pairs, 10^9
    groups = group_near_duplicates([(items, np.ones((30_000, 4), np.float32))], 30_000)
    assert len(np.unique(groups)) == 1


def test_folds_keep_groups_whole_and_are_of_equal_size() -> None:
    groups = np.repeat(np.arange(70), np.random.default_rng(0).integers(1, 6, 70)) * 3
    folds = assign_folds(groups)
    assert all(len(np.unique(folds[groups == group])) == 1 for group in np.unique(groups))
    sizes = np.bincount(folds)
    assert len(sizes) == 5
    assert sizes.max() - sizes.min() <= 1
    assert np.array_equal(folds, assign_folds(groups))


# --- best words, labels, CLIP


def test_best_words_come_in_order_of_score_whatever_the_block() -> None:
    class Fixed:
        name = "fixed"

        def rank(self, images: np.ndarray, vocabulary: Sequence[str]) -> np.ndarray:
            return images

    scores = np.array([[0.1, 0.9, 0.5], [0.3, 0.3, 0.3], [3.0, 2.0, 1.0]])
    expected = [["b", "c"], ["a", "b"], ["a", "b"]]
    assert best_words(Fixed(), scores, ["a", "b", "c"], 2) == expected
    assert best_words(Fixed(), scores, ["a", "b", "c"], 2, block=1) == expected
    assert best_words(Fixed(), scores, ["a", "b", "c"], 9)[0] == ["b", "c", "a"]


def test_labels_are_ranked_by_logit() -> None:
    weight, bias = np.zeros((1000, 2)), np.zeros(1000)
    weight[3], bias[7] = (1, 0), 0.5
    labels = imagenet_labels()
    tagger = LabelTagger(weight, bias)
    assert best_words(tagger, np.array([[1.0, 9.0], [0.0, 0.0]]), labels[:20], 2) == [
        [labels[3], labels[7]],
        [labels[7], labels[0]],
    ]


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of random weights with a tokenizer of single letters, saved as transformers saves one."""
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: row for row, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt")).save_pretrained(folder)
    side = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**side, "vocab_size": len(tokens), "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    vision = {**side, "image_size": 30, "patch_size": 6}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(folder)
    crop = {"height": 30, "width": 30}
    CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size=crop).save_pretrained(folder)
    return folder


def test_clip_scores_are_cosines_of_the_models_own_projections(tiny_clip: Path) -> None:
    import torch
    from transformers import CLIPModel, CLIPTokenizer

    tagger = ClipTagger(str(tiny_clip), batch_size=2)
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(3)]
    vocabulary = ["cat", "zebra", "tree", "ox", "lantern"]
    vectors = tagger.encode(pictures)
    assert vectors.shape == (3, tagger.dim) == (3, 24)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    scores = tagger.rank(vectors, vocabulary)
    model = CLIPModel.from_pretrained(tiny_clip).eval()
    tokenizer = CLIPTokenizer.from_pretrained(tiny_clip)
    pixels = tagger._processor(images=pictures, return_tensors="pt")["pixel_values"]
    for column, word in enumerate(vocabulary):  # one word at a time: no padding
        with torch.inference_mode():
            output = model(pixel_values=pixels, **tokenizer([word], return_tensors="pt"))
            cosine = output.logits_per_image[:, 0] / model.logit_scale.exp()
        assert np.allclose(scores[:, column], cosine.numpy(), atol=1e-5), word
    assert best_words(tagger, vectors, vocabulary, 2)[0][0] == vocabulary[int(scores[0].argmax())]


def test_a_tagger_that_cannot_be_loaded_is_an_input_error(tmp_path: Path) -> None:
    for name in (str(tmp_path), str(tmp_path / "missing")):
        with pytest.raises(InputError, match=str(tmp_path)):
            ClipTagger(name)
