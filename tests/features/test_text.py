from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm4sr.errors import InputError
from msm4sr.features.text import MiniLM, TransformerSentenceEncoder, item_sentences

TEXT = "Mr. Fox runs at 3.5 km/h. He is quick! Is the dog lazy? Yes."


def test_the_title_comes_first_and_the_sentences_in_order() -> None:
    assert item_sentences("The Fox", TEXT) == [
        "The Fox",
        "Mr. Fox runs at 3.5 km/h.",
        "He is quick!",
        "Is the dog lazy?",
        "Yes.",
    ]


def test_the_title_counts_among_the_sentences() -> None:
    assert item_sentences("The Fox", TEXT, max_sentences=2) == ["The Fox", "Mr. Fox runs at 3.5 km/h."]
    assert item_sentences(None, TEXT, max_sentences=2) == ["Mr. Fox runs at 3.5 km/h.", "He is quick!"]
    assert item_sentences("The Fox", TEXT, max_sentences=1) == ["The Fox"]


@pytest.mark.parametrize(
    ("title", "text"), [(None, None), ("", ""), (" \n", "\t"), (None, "... -- !"), ("\x00", "\ud800")]
)
def test_an_item_without_words_has_no_sentence(title: str | None, text: str | None) -> None:
    assert item_sentences(title, text) == []


def test_a_title_alone_and_a_text_alone_are_enough() -> None:
    assert item_sentences("Only a title", None) == ["Only a title"]
    assert item_sentences(None, "Only a text") == ["Only a text"]


@pytest.mark.parametrize("unit", ["a", "word ", "1. ", "Mr. ", "'a ", "(", ". ", "\n", "¿", "x.y? "])
def test_a_hundred_thousand_characters_cost_next_to_nothing(unit: str) -> None:
    begin = time.process_time()
    sentences = item_sentences(None, (unit * 100_000)[:100_000])
    assert time.process_time() - begin < 5  # 0.4 s at worst on an idle core; uncut, minutes
    assert len(sentences) <= 10
    assert sum(map(len, sentences)) <= 4_000


def test_characters_after_the_cut_are_not_read() -> None:
    assert item_sentences("abcdef", "One two. Three four.", max_characters=8) == ["abcdef", "One two."]


def test_control_characters_and_surrogates_are_removed() -> None:
    sentences = item_sentences("A\x00B\ud800 C\x1b", "x\x07y\udfff.\r\nNew line.")
    assert sentences == ["A B C", "x y .", "New line."]
    "".join(sentences).encode("utf-8")


@given(st.text(st.characters(), max_size=300), st.text(st.characters(), max_size=300))
def test_no_text_whatever_crashes_or_gives_an_empty_sentence(title: str, text: str) -> None:
    sentences = item_sentences(title, text)
    assert all(sentence.strip() == sentence and sentence for sentence in sentences)
    "".join(sentences).encode("utf-8")


@pytest.fixture(scope="module")
def minilm() -> TransformerSentenceEncoder:
    return MiniLM("minilm", batch_tokens=40)


def test_minilm_gives_unit_vectors(minilm: TransformerSentenceEncoder) -> None:
    vectors = minilm.encode(["a cat", "a kitten", "the stock market fell"])
    assert vectors.shape == (3, minilm.dim) == (3, 384)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3


def test_sorting_by_length_leaves_each_sentence_its_vector(minilm: TransformerSentenceEncoder) -> None:
    sentences = ["one", "a rather longer sentence about two things", "three words here", "four", "five " * 20]
    done: list[int] = []
    together = minilm.encode(sentences, done.append)
    alone = np.concatenate([minilm.encode([sentence]) for sentence in sentences])
    assert (together * alone).sum(axis=1).min() > 0.9995  # bf16, where the machine has it
    assert (together @ together.T - np.eye(5)).max() < 0.95  # no two of them are alike
    assert sum(done) == 5
    assert len(done) > 1


def test_no_sentence_gives_no_row(minilm: TransformerSentenceEncoder) -> None:
    assert minilm.encode([]).shape == (0, 384)


def test_tokens_after_the_limit_are_not_read(minilm: TransformerSentenceEncoder) -> None:
    long = "word " * 200
    first, second, third = minilm.encode([long, long + "banana", "banana " + long])
    assert first @ second > 0.9995 > 0.99 > first @ third


def test_a_folder_that_holds_no_model_is_an_input_error(tmp_path: Path) -> None:
    for name in (str(tmp_path), str(tmp_path / "missing")):
        with pytest.raises(InputError, match=str(tmp_path)):
            TransformerSentenceEncoder(name)


def test_other_weights_in_the_same_folder_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = TransformerSentenceEncoder.fingerprint_of(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert TransformerSentenceEncoder.fingerprint_of(str(tmp_path)) != before
    assert TransformerSentenceEncoder.fingerprint_of("hub/name") == "hub/name"
    assert Path(MiniLM.source("minilm")).is_dir()
    assert TransformerSentenceEncoder.source("hub/name") == "hub/name"
