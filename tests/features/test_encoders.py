"""Sentence encoders other than the default: tiny models that the test builds and saves, against their own library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import save_bert

from msm4sr.errors import InputError
from msm4sr.features.backends import agrees, choose_device, cosines
from msm4sr.features.text import SENTENCE_ENCODERS, MiniLM, TransformerSentenceEncoder, find_sentence_encoder

SENTENCES = [
    "a red fox",
    "the dog",
    "q",
    "jumps over the lazy dog and runs on",
    "xyz " * 90,
    "dog the",
    "ein zwei drei",
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(autouse=True)
def fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact figures are compared here; that bf16 is near them is tested at the end."""
    monkeypatch.setattr("msm4sr.features.backends.native_bf16", lambda device: False)


def save_pooled(bert: Path, folder: Path, mode: str, **options: object) -> Path:
    """A sentence-transformers folder: the BERT with this pooling."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformer = Transformer(str(bert))
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode=mode)
    SentenceTransformer(modules=[transformer, pooling], **options).save(str(folder))  # type: ignore[arg-type]
    return folder


def token_states(bert: Path, sentence: str, longest: int = 64) -> torch.Tensor:
    """[tokens, 32] of one sentence alone, without padding."""
    from transformers import BertModel, BertTokenizerFast

    tokens = BertTokenizerFast.from_pretrained(bert)(sentence, truncation=True, max_length=longest, return_tensors="pt")
    with torch.inference_mode():
        return BertModel.from_pretrained(bert).eval()(**tokens).last_hidden_state[0]


def unit(vector: torch.Tensor) -> np.ndarray:
    return (vector / vector.norm()).numpy()


POOLINGS = {
    "mean": lambda states: states.mean(dim=0),
    "cls": lambda states: states[0],
    "max": lambda states: states.max(dim=0).values,
    "lasttoken": lambda states: states[-1],
}


@pytest.mark.parametrize("batch_tokens", [1, 50, 1024])
def test_a_plain_bert_gives_the_mean_over_its_tokens(bert: Path, batch_tokens: int) -> None:
    encoder = TransformerSentenceEncoder(str(bert), batch_tokens=batch_tokens, device="cpu")
    vectors = encoder.encode(SENTENCES)
    assert encoder.backend == "torch fp32 on cpu"
    assert vectors.shape == (7, 32) == (7, encoder.dim)
    for vector, sentence in zip(vectors, SENTENCES, strict=True):
        assert np.allclose(vector, unit(POOLINGS["mean"](token_states(bert, sentence))), atol=1e-5), sentence


@pytest.mark.parametrize("mode", list(POOLINGS))
def test_the_pooling_that_a_model_defines_is_used(bert: Path, tmp_path: Path, mode: str) -> None:
    encoder = TransformerSentenceEncoder(str(save_pooled(bert, tmp_path / mode, mode)), batch_tokens=50)
    for vector, sentence in zip(encoder.encode(SENTENCES), SENTENCES, strict=True):
        assert np.allclose(vector, unit(POOLINGS[mode](token_states(bert, sentence))), atol=1e-5), sentence


def test_padding_on_the_left_is_removed_as_well(bert: Path, tmp_path: Path) -> None:
    folder = save_pooled(bert, tmp_path / "left", "lasttoken")
    settings = next(path for path in folder.rglob("tokenizer_config.json"))
    settings.write_text(settings.read_text().replace("{", '{"padding_side": "left",', 1))
    # One sentence per batch: a BERT counts positions from the padding, so that only a single sentence is unaffected.
    encoder = TransformerSentenceEncoder(str(folder), batch_tokens=1)
    assert encoder._model.tokenizer.padding_side == "left"
    for vector, sentence in zip(encoder.encode(SENTENCES), SENTENCES, strict=True):
        assert np.allclose(vector, unit(token_states(bert, sentence)[-1]), atol=1e-5), sentence


def test_the_prompt_of_a_model_precedes_every_sentence(bert: Path, tmp_path: Path) -> None:
    options = {"prompts": {"item": "query "}, "default_prompt_name": "item"}
    encoder = TransformerSentenceEncoder(str(save_pooled(bert, tmp_path / "prompt", "cls", **options)))
    plain = TransformerSentenceEncoder(str(save_pooled(bert, tmp_path / "plain", "cls")))
    assert np.allclose(encoder.encode(["red fox"]), plain.encode(["query red fox"]), atol=1e-5)
    assert not np.allclose(encoder.encode(["red fox"]), plain.encode(["red fox"]), atol=1e-2)


def test_the_shorter_of_the_settings_and_the_models_limit_holds(bert: Path) -> None:
    long = " ".join("abcdefghijklmnopqrstuvwxyz" * 4)
    for max_tokens, longest in ((10, 10), (128, 64)):
        vector = TransformerSentenceEncoder(str(bert), max_tokens=max_tokens).encode([long])[0]
        assert np.allclose(vector, unit(token_states(bert, long, longest).mean(dim=0)), atol=1e-5)


def test_more_sentences_than_are_tokenized_at_a_time_keep_their_order(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = TransformerSentenceEncoder(str(bert))
    together = encoder.encode(SENTENCES)
    monkeypatch.setattr("msm4sr.features.text._TOKENIZED", 3)
    done: list[int] = []
    assert np.allclose(encoder.encode(SENTENCES, done.append), together, atol=1e-5)
    assert sum(done) == len(SENTENCES)


def test_a_model_without_a_transformer_works_too(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "red": 1, "fox": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    module = StaticEmbedding(tokenizer, embedding_dim=8)
    SentenceTransformer(modules=[module]).save(str(tmp_path / "bag"))
    encoder = TransformerSentenceEncoder(str(tmp_path / "bag"))
    weight = module.embedding.weight.detach()
    vectors = encoder.encode(["red", "fox fox", "red fox"])
    for vector, rows in zip(vectors, ([1], [2, 2], [1, 2]), strict=True):
        assert np.allclose(vector, unit(weight[rows].mean(dim=0)), atol=1e-5)


def test_bf16_agrees_with_fp32_or_is_not_used(monkeypatch: pytest.MonkeyPatch, bert: Path) -> None:
    exact = MiniLM("minilm", device="cpu")
    monkeypatch.setattr("msm4sr.features.backends.native_bf16", lambda device: True)
    fast = MiniLM("minilm", device="cpu")
    assert (exact.backend, fast.backend) == ("torch fp32 on cpu", "torch bf16 autocast on cpu")
    sentences = ["A small boat on a wide sea.", "Batteries not included", "boat", "he walks " * 30]
    a, b = exact.encode(sentences), fast.encode(sentences)
    assert not np.array_equal(a, b)  # another backend, which
    assert agrees(a, b)
    monkeypatch.setattr("msm4sr.features.backends.agrees", lambda exact, other: False)
    assert TransformerSentenceEncoder(str(bert), device="cpu").backend == "torch fp32 on cpu"


def test_agreement_asks_for_the_mean_and_for_the_worst() -> None:
    exact = np.tile([1.0, 0.0], (1000, 1))

    def turned(*degrees: float) -> np.ndarray:
        angles = np.zeros(1000)
        angles[: len(degrees)] = degrees
        return np.stack([np.cos(np.radians(angles)), np.sin(np.radians(angles))], axis=1) * 3

    assert np.allclose(cosines(exact, turned(60))[:2], [0.5, 1])
    assert agrees(exact, turned(8))  # cosine .9903
    assert not agrees(exact, turned(8.2))  # .9898
    assert not agrees(exact, turned(*[3] * 1000))  # .9986 each
    assert agrees(exact, turned(*[2] * 1000))


def test_a_device_is_named_or_found() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for wrong in ("gpu", "cuda:99"):
        with pytest.raises(InputError, match=wrong):
            choose_device(wrong)


def test_encoders_are_found_by_name_else_read_as_folders(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_sentence_encoder("minilm") is MiniLM
    assert find_sentence_encoder(str(bert)) is TransformerSentenceEncoder
    monkeypatch.setitem(SENTENCE_ENCODERS._entries, "mine", MiniLM)
    assert find_sentence_encoder("mine") is MiniLM
    assert MiniLM.fingerprint_of("minilm") == MiniLM("minilm").fingerprint
