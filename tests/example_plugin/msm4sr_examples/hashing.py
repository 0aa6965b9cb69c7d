"""A sentence encoder without a network: each word adds 1 to one of 256 places."""

from collections.abc import Callable, Sequence

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer

from msm4sr.features.text import SENTENCE_ENCODERS


@SENTENCE_ENCODERS.register("hashing")
class HashingEncoder:
    """Feature hashing of words (Weinberger et al. 2009), unit length."""

    dim = 256
    backend = "scikit-learn"

    def __init__(self, name: str, max_tokens: int, *, device: str) -> None:
        self.name, self.fingerprint = name, self.fingerprint_of(name)
        self._vectorizer = HashingVectorizer(n_features=self.dim, alternate_sign=False)

    @classmethod
    def fingerprint_of(cls, name: str) -> str:
        return f"{name}-{cls.dim}"  # features are extracted again when it changes

    def encode(self, sentences: Sequence[str], advance: Callable[[int], None] | None = None) -> np.ndarray:
        vectors: np.ndarray = self._vectorizer.transform(sentences).toarray().astype(np.float32)
        if advance is not None:
            advance(len(sentences))
        return vectors
